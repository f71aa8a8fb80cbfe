"""From `run.log()` to a recorded step.

    Run.log() ── Draft ──▶ Recorder ── Step ──▶ upload.Uploader ── block ──▶ transport.Service
    training thread        thread               thread
       ▲                     │ spikes               │ answers
       └────── events ───────┴──────────────────────┘

Steps move in one direction. What comes back - a spike, a verdict, a request to stop - goes into one queue of events,
which the training thread reads at its next `log()`, `flush()` or `finish()`.
"""
