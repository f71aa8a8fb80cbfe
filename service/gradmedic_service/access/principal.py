"""Who asks: the holder of a key, or whoever sits at this machine.

One idea: a service never asks how somebody was recognized, only what they may reach. What they may not reach does not
exist for them: the answer is that of a missing object.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from gradmedic.protocol.access import SCOPES
from gradmedic_service.access.errors import BeyondKey

TICKET = "ticket"
"""What a one-time ticket may: be redeemed. Nobody can ask for a key with this scope."""
EVERY_SCOPE = frozenset((*SCOPES, TICKET))


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Somebody with scopes, for one run, one project or all."""

    name: str
    key_id: UUID | None = None
    """None where no key was needed."""
    project: str | None = None
    """None reaches every project."""
    run_id: UUID | None = None
    """None reaches every run of the project."""
    scopes: frozenset[str] = EVERY_SCOPE

    def holds(self, *scopes: str) -> bool:
        """Whether at least one of the scopes is held; `admin` holds all."""
        return "admin" in self.scopes or not self.scopes.isdisjoint(scopes)

    def reaches_project(self, project: str | None) -> bool:
        """Whether what concerns a project as a whole may be seen; None is what concerns all of them."""
        return self.project is None or self.project == project

    def reaches_run(self, run_id: UUID, project: str) -> bool:
        """Whether a run of a project may be seen."""
        return (self.project is None or self.project == project) and (self.run_id is None or self.run_id == run_id)

    def must_reach(self, project: str | None, run_id: UUID | None = None) -> None:
        """Raise BeyondKey unless something new may be made there; what is there already makes no difference."""
        if not self.reaches_project(project):
            wanted = "every project" if project is None else f"project {project!r}"
            raise BeyondKey(f"The API key {self.name!r} is for project {self.project!r}, not for {wanted}.")
        if self.run_id is not None and self.run_id != run_id:
            raise BeyondKey(f"The API key {self.name!r} is for run {self.run_id} alone.")


LOOPBACK = Principal(name="loopback")
"""Whoever sits at this machine, where no key is needed."""
OPERATOR = Principal(name="command line")
"""Whoever can reach the database itself."""
