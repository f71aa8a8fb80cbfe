"""HTTP requests to the service, with retries."""
