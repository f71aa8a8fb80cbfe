"""From a recorded step to an acknowledged block.

The uploader's thread takes the oldest entries from the outbox, delivers them as a block, and removes them from the
outbox when the service has acknowledged them. The outbox writes everything to the journal on disk, from which a replay
delivers what a process did not send.
"""
