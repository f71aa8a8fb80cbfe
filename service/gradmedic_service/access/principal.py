"""The principal of a request: the holder of an API key, or the user of this machine.

A domain's service does not depend on how a principal was authenticated, only on what it reaches. An object that it does
not reach is answered like an object that does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from gradmedic.protocol.access import SCOPES
from gradmedic_service.access.errors import BeyondKey

RESULT = "authentication_result"
"""Key of the principal in a request's state; there is the error instead where a request has none."""
TICKET = "ticket"
"""The scope of a one-time ticket, which can only be redeemed. No request can make a key with this scope."""
EVERY_SCOPE = frozenset((*SCOPES, TICKET))


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The sender of a request: its scopes, and the run, the project or all projects that it reaches."""

    name: str
    key_id: UUID | None = None
    """Id of the API key; None where no key was needed."""
    project: str | None = None
    """The only project that the principal reaches; None for every project."""
    run_id: UUID | None = None
    """The only run that the principal reaches; None for every run of the project."""
    session_digest: bytes | None = None
    """Digest of the cookie of a browser's session; None if the request had the API key itself, or none was needed."""
    scopes: frozenset[str] = EVERY_SCOPE

    def has_scope(self, *scopes: str) -> bool:
        """Whether the principal has at least one of the scopes; `admin` includes all."""
        return "admin" in self.scopes or not self.scopes.isdisjoint(scopes)

    def reaches_project(self, project: str | None) -> bool:
        """Whether the principal may see a project as a whole; None stands for all projects together.

        A key of one run sees no project as a whole.
        """
        return self.run_id is None and self.project in (None, project)

    def reaches_run(self, run_id: UUID, project: str) -> bool:
        """Whether the principal may see a run of a project."""
        return self.project in (None, project) and self.run_id in (None, run_id)

    def check_reach(self, project: str | None, run_id: UUID | None = None) -> None:
        """Raise BeyondKey unless the principal may create something there, whether or not it exists already."""
        if self.project not in (None, project):
            wanted = "every project" if project is None else f"project {project!r}"
            raise BeyondKey(f"The API key {self.name!r} is for project {self.project!r}, not for {wanted}.")
        if self.run_id is not None and self.run_id != run_id:
            raise BeyondKey(f"The API key {self.name!r} is for run {self.run_id} alone.")


LOOPBACK = Principal(name="loopback")
"""The principal of requests from this machine, where they need no key."""
OPERATOR = Principal(name="command line")
"""The principal of commands, which open the database itself."""
