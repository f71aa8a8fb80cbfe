"""Sends the sessions that are on disk: those of offline runs, and what other processes could not send.

A session is delivered like the steps of a live run. It is locked while its process lives, so that no two processes send
it at once. The service ignores steps that it gets a second time. What cannot be read of a session is counted and kept
on disk, and the rest is sent. A session of which a file cannot be opened stays as it is.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from gradmedic.exceptions import ConflictError, NotFoundError
from gradmedic.recording.description import RunDescription
from gradmedic.recording.step import Step
from gradmedic.transport.http import Service
from gradmedic.upload.damage import Damage
from gradmedic.upload.delivery import Delivery
from gradmedic.upload.journal import Journal, kept_path, list_sessions

logger = logging.getLogger("gradmedic")

_UNBOUNDED = 2**62


class Replay:
    """Sends one session."""

    def __init__(self, service: Service, run_id: UUID, journal: Journal) -> None:
        self.run_id = run_id
        self._journal = journal
        content = journal.description()
        self._description = None if content is None else RunDescription(0, content)
        if content is None and (journal.unsent_steps or journal.damage):
            journal.give_up()
        self._delivery = Delivery(service, run_id, journal, generation=journal.position.generation, is_replay=True)
        self._steps = journal.unsent_steps
        self._is_first_block = True
        self.sent = 0
        """Number of steps that the service has taken, or had before."""
        self.refused = 0
        """Number of steps that the service refused."""

    @property
    def remaining(self) -> int:
        """Number of steps that are left to send."""
        return self._steps - self.sent - self.refused

    @property
    def damage(self) -> Damage:
        """What cannot be read."""
        return self._journal.damage

    @property
    def damaged_files(self) -> list[Path]:
        """The files with what cannot be read, as they are named now."""
        return [path if path.exists() else kept_path(path) for path in self.damage.files]

    def describe_damage(self) -> str:
        """Return a sentence about what cannot be read."""
        damage = self.damage
        return (
            f"{damage.steps} steps of run {self.run_id} ({damage.bytes} bytes) cannot be read. They are kept in "
            + ", ".join(map(str, self.damaged_files))
        )

    def send_next(self) -> bool:
        """Make one attempt to send the next block or the final status; return whether nothing is left.

        Raises:
            GradmedicError: the attempt failed.
            OSError: a file cannot be read any more.
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
                    taken = sum(number <= result.last_number for number, entry in entries if isinstance(entry, Step))
                    self.sent += taken - result.refused_steps
                    self.refused += result.refused_steps
                    self._acknowledge(result.last_number)
                return False
            if (status := self._journal.final_status) is not None:
                self._delivery.send_final_status(status)
        except (ConflictError, NotFoundError) as error:
            if not self._delivery.is_registered:
                raise  # the key or the project is refused, and not the run
            # The run went on elsewhere from an earlier step, or was deleted.
            logger.warning("gradmedic: %d steps of run %s are obsolete: %s", self.remaining, self.run_id, error)
        return True

    def delete(self) -> None:
        """Delete the session: all of it was sent that can be read."""
        self._journal.delete()

    def release(self) -> None:
        """Unlock the session and leave it on disk for another attempt."""
        self._journal.close()

    def _acknowledge(self, number: int) -> None:
        try:
            self._journal.acknowledge(number)
        except OSError as error:  # what was sent is sent again another time, and ignored
            logger.warning("gradmedic cannot note in %s what was sent: %s", self._journal.folder, error)


@dataclass(frozen=True, slots=True)
class UnreadableSession:
    """A session, or all sessions of a run, of which a file or folder cannot be opened."""

    run_id: UUID
    folder: Path
    error: OSError

    def __str__(self) -> str:
        return f"{self.folder} of run {self.run_id} cannot be read and is kept: {self.error}"


@dataclass(frozen=True, slots=True)
class FoundSessions:
    """The sessions that are left to send, oldest first."""

    replays: list[Replay] = field(default_factory=list)
    unreadable: list[UnreadableSession] = field(default_factory=list)


def find_sessions(service: Service, directory: Path, run_id: UUID | None = None) -> FoundSessions:
    """Return the sessions that are left to send, without those of living processes.

    Args:
        service: receives them.
        directory: where runs keep what they did not send.
        run_id: id of the run whose sessions are returned; None returns those of all runs.

    Raises:
        OSError: the directory cannot be read.
    """
    found = FoundSessions()
    for folder in sorted(directory.iterdir()) if directory.is_dir() else ():
        folder_run_id = _read_run_id(folder)
        if folder_run_id is None or run_id not in (None, folder_run_id):
            continue
        try:
            sessions = list_sessions(folder)
        except OSError as error:
            found.unreadable.append(UnreadableSession(folder_run_id, folder, error))
            continue
        for session in sessions:
            try:
                journal = Journal.open(session, _UNBOUNDED)
            except OSError as error:
                found.unreadable.append(UnreadableSession(folder_run_id, session, error))
                continue
            if journal is not None:
                found.replays.append(Replay(service, folder_run_id, journal))
    return found


def _read_run_id(folder: Path) -> UUID | None:
    """Return the id of the run whose folder this is, None for another file or folder."""
    try:
        return UUID(folder.name) if folder.is_dir() else None
    except ValueError:
        return None
