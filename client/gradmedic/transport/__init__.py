"""HTTP requests to the service. Each is sent once: the callers decide about retries."""
