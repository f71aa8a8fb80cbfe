"""The worker: runs the trials of reruns. It uses the HTTP API only, and never opens the database."""
