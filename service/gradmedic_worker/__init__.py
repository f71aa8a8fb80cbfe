"""The worker: runs the trials of reruns, here or on a Ray cluster. It speaks HTTP and never opens the database."""
