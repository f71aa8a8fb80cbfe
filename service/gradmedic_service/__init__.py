"""The gradmedic service: runs, telemetry and diagnoses over HTTP."""
