"""Sends what was recorded on disk and not sent: of offline runs, and of processes that died or could not reach anybody.

One idea: a session is replayed through the same conversation that a live run has. It is locked while its process lives,
so nothing is sent twice at once, and what is sent again after a failure is ignored by the service.
"""

from __future__ import annotations

import logging
from pathlib import Path
from uuid import UUID

from gradmedic.exceptions import ConflictError, NotFoundError
from gradmedic.transport.http import Service
from gradmedic.upload.delivery import Delivery
from gradmedic.upload.journal import Journal, run_of, sessions

logger = logging.getLogger("gradmedic")

_UNBOUNDED = 2**62


class Replay:
    """One session on its way to the service."""

    def __init__(self, service: Service, run_id: UUID, journal: Journal) -> None:
        self.run_id = run_id
        self._journal = journal
        self._description = journal.description()
        self._delivery = Delivery(
            service, run_id, journal=lambda: journal, generation=journal.position.generation, is_replay=True
        )
        self._count = sum(journal.remaining())
        self._is_first = True
        self.sent = 0
        """Steps that the service has taken from it so far, those included that it had before."""

    @property
    def remaining(self) -> int:
        """Steps that are left to send."""
        return self._count - self.sent

    def advance(self) -> bool:
        """Make one attempt; return whether nothing is left to do. Raises GradmedicError."""
        if self._description is None:
            return True
        try:
            self._delivery.prepare(self._description)
            entries = self._journal.read(self._journal.position.acknowledged, self._delivery.block_steps)
            if entries:
                number = self._delivery.send(entries, is_repeated=self._is_first)
                self._is_first = False
                if number is not None:
                    self.sent += sum(each <= number for each, _ in entries)
                    self._journal.acknowledge(number)
                return False
            if (status := self._journal.ending()) is not None:
                self._delivery.end(status)
        except (ConflictError, NotFoundError) as error:
            if not self._delivery.is_registered:
                raise  # that speaks of the key or the project
            # The run went on elsewhere from an earlier step, or was deleted: nobody waits for these steps.
            logger.warning("gradmedic: %d steps of run %s are obsolete: %s", self.remaining, self.run_id, error)
        return True

    def send_all(self) -> None:
        """Make attempts until nothing is left; may be called again after a failure. Raises GradmedicError."""
        while not self.advance():
            pass

    def close(self) -> None:
        """Delete the session: all of it was sent."""
        self._journal.delete()

    def keep(self) -> None:
        """Leave the session for another time."""
        self._journal.close()


def find_leftovers(service: Service, directory: Path, run_id: UUID | None = None) -> list[Replay]:
    """Return what was left to send, oldest first; sessions of living processes are not touched.

    Args:
        service: where to.
        directory: where runs keep what they did not send.
        run_id: of one run; without it, all.
    """
    found = []
    for session in sessions(directory, run_id):
        of = run_of(session)
        if of is None:
            continue
        try:
            journal = Journal.open(session, _UNBOUNDED)
        except OSError as error:
            logger.warning("gradmedic cannot read %s: %s", session, error)
            continue
        if journal is not None:
            found.append(Replay(service, of, journal))
    return found
