"""The turns of the threads that write to SQLite, and the commits that they share.

SQLite has one writer at a time and lets the others poll, which is slow and unfair. So the writers of a process wait for
their turn here. A commit waits for the disk, often longer than the transaction computes. So a writer that may share its
commit leaves its transaction open if others wait. Each of them writes into the same transaction, behind a savepoint,
and the last one commits for all. No writer goes on before that commit is durable. The error of a writer undoes its own
part alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, NestedTransaction
from sqlalchemy.exc import DBAPIError

from gradmedic_service.database.errors import DatabaseBusy

MAX_PARTS = 16
"""Largest number of writers that share a commit. The first one waits for the others: for 16 appends, about as long as
for one commit on a slow disk."""
RETRY_AFTER_SECONDS = 1


class SharedTransaction:
    """A transaction into which several writers write, one after another."""

    def __init__(self, engine: Engine) -> None:
        self._connection = engine.connect()
        try:
            self._transaction = self._connection.begin()
        except BaseException:
            self._connection.close()
            raise
        self.parts = 0
        """Number of writers whose part is complete."""
        self.error: BaseException | None = None
        """Why nothing of the transaction was stored; None while it is open, and after its commit."""
        self._is_ended = threading.Event()

    @contextmanager
    def write_part(self) -> Iterator[Connection]:
        """Yield the connection to the next writer; undo its part if it raises."""
        savepoint = self._connection.begin_nested() if self.parts else None
        try:
            yield self._connection
            if savepoint is not None:
                savepoint.commit()
        except BaseException as error:
            if savepoint is not None:
                self._undo(savepoint, error)
            raise
        self.parts += 1

    def end(self) -> None:
        """Commit the parts, or roll back if there is none, and let the writers go on."""
        try:
            if self.parts and self.error is None:
                with self._transaction:
                    pass  # it commits; if the commit fails, it rolls back
            else:
                self._transaction.rollback()
        except BaseException as error:
            self.error = self.error or error
        finally:
            self._connection.close()
            self._is_ended.set()

    def _undo(self, savepoint: NestedTransaction, reason: BaseException) -> None:
        """Undo what was written since a savepoint, because of an error.

        If SQLite has rolled back all parts, as it does when the disk is full, none is stored, for the same reason.
        """
        try:
            savepoint.rollback()
        except DBAPIError as error:
            self.error = reason if isinstance(reason, DBAPIError) else error

    def wait_for_end(self) -> None:
        """Wait until the parts are durable. Raises the error for which nothing of the transaction was stored."""
        self._is_ended.wait()
        if self.error is not None:
            raise self.error


class WriteTurns:
    """The turns of the writers of one process.

    Args:
        engine: Begins transactions that may write from their first statement on.
        timeout: Seconds to wait for a turn.
    """

    def __init__(self, engine: Engine, timeout: float) -> None:
        self._engine = engine
        self._timeout = timeout
        self._changed = threading.Condition()
        self._is_taken = False
        self._waiting = 0
        """Number of threads that wait for their turn. One of them will end the open transaction."""
        self._open: SharedTransaction | None = None
        """The transaction of earlier turns that is not committed yet."""

    @contextmanager
    def write(self, *, shares_commit: bool) -> Iterator[Connection]:
        """Wait for the turn, and yield the connection of a writing transaction.

        At the end it has been committed, or rolled back if the block raises. With `shares_commit`, the commit may be
        that of other writers, too. Raises DatabaseBusy.
        """
        self._take()
        transaction = self._open
        try:
            if transaction is not None and not shares_commit:
                transaction.end()
                transaction = None
            transaction = transaction or SharedTransaction(self._engine)
        except BaseException:
            self._give_back(None, may_stay_open=False)
            raise
        try:
            with transaction.write_part() as connection:
                yield connection
        finally:
            self._give_back(transaction, may_stay_open=shares_commit)
        transaction.wait_for_end()

    def _take(self) -> None:
        with self._changed:
            self._waiting += 1
            try:
                has_turn = self._changed.wait_for(lambda: not self._is_taken, self._timeout)
            finally:
                self._waiting -= 1
            if not has_turn:
                raise DatabaseBusy("Other writes took too long.", retry_after=RETRY_AFTER_SECONDS)
            self._is_taken = True

    def _give_back(self, transaction: SharedTransaction | None, *, may_stay_open: bool) -> None:
        """End the turn, and the transaction unless others wait and may write into it."""
        with self._changed:
            has_room = transaction is not None and transaction.error is None and 0 < transaction.parts < MAX_PARTS
            if may_stay_open and has_room and self._waiting:
                self._open, self._is_taken = transaction, False
                self._changed.notify()
                return
        self._open = None
        if transaction is not None:
            transaction.end()
        with self._changed:
            self._is_taken = False
            self._changed.notify()
