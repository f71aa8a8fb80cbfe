"""From a recorded step to an acknowledged block: outbox, journal, uploader, replay."""
