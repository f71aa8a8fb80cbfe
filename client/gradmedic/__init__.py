"""gradmedic: stream gradient statistics from a training loop, read what is wrong, why, and what fixes it."""
