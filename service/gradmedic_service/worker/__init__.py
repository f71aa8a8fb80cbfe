"""The worker: runs the trials of reruns on this machine. It speaks HTTP, and never opens the service's database."""
