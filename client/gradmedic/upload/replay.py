"""Sends the sessions that are on disk: those of offline runs, and what other processes could not send.

A session is delivered like the steps of a live run. It is locked while its process lives, so that no two processes send
it at once. The service ignores steps that it gets a second time.
"""

from __future__ import annotations

import logging
from pathlib import Path
from uuid import UUID

from gradmedic.exceptions import ConflictError, NotFoundError
from gradmedic.recording.description import RunDescription
from gradmedic.transport.http import Service
from gradmedic.upload.delivery import Delivery
from gradmedic.upload.journal import Journal, list_sessions, read_run_id

logger = logging.getLogger("gradmedic")

_UNBOUNDED = 2**62


class Replay:
    """Sends one session."""

    def __init__(self, service: Service, run_id: UUID, journal: Journal) -> None:
        self.run_id = run_id
        self._journal = journal
        content = journal.description()
        self._description = None if content is None else RunDescription(0, content)
        self._delivery = Delivery(service, run_id, journal, generation=journal.position.generation, is_replay=True)
        self._steps = journal.count_steps()
        self._is_first_block = True
        self.sent = 0
        """Number of steps that the service has taken, or had before."""

    @property
    def remaining(self) -> int:
        """Number of steps that are left to send."""
        return self._steps - self.sent

    def send_next(self) -> bool:
        """Make one attempt to send the next block or the final status; return whether nothing is left.

        Raises:
            GradmedicError: the attempt failed.
        """
        if self._description is None:
            return True
        try:
            self._delivery.prepare(self._description)
            entries = self._journal.read(self._journal.position.acknowledged, self._delivery.block_steps)
            if entries:
                result = self._delivery.send(entries, is_repeated=self._is_first_block)
                self._is_first_block = False
                if result.last_number is not None:
                    self.sent += sum(number <= result.last_number for number, _ in entries)
                    self._journal.acknowledge(result.last_number)
                return False
            if (status := self._journal.final_status()) is not None:
                self._delivery.send_final_status(status)
        except (ConflictError, NotFoundError) as error:
            if not self._delivery.is_registered:
                raise  # the key or the project is refused, and not the run
            # The run went on elsewhere from an earlier step, or was deleted.
            logger.warning("gradmedic: %d steps of run %s are obsolete: %s", self.remaining, self.run_id, error)
        return True

    def send_all(self) -> None:
        """Make attempts until nothing is left; may be called again after a failure.

        Raises:
            GradmedicError: an attempt failed.
        """
        while not self.send_next():
            pass

    def delete(self) -> None:
        """Delete the session: all of it was sent."""
        self._journal.delete()

    def release(self) -> None:
        """Unlock the session and leave it on disk for another attempt."""
        self._journal.close()


def find_replays(service: Service, directory: Path, run_id: UUID | None = None) -> list[Replay]:
    """Return the sessions that are left to send, oldest first, without those of living processes.

    Args:
        service: receives them.
        directory: where runs keep what they did not send.
        run_id: id of the run whose sessions are returned; None returns those of all runs.
    """
    replays = []
    for session in list_sessions(directory, run_id):
        session_run_id = read_run_id(session)
        if session_run_id is None:
            continue
        try:
            journal = Journal.open(session, _UNBOUNDED)
        except OSError as error:
            logger.warning("gradmedic cannot read %s: %s", session, error)
            continue
        if journal is not None:
            replays.append(Replay(service, session_run_id, journal))
    return replays
