"""From `run.log()` to a recorded step: sampling, layers, spikes."""
