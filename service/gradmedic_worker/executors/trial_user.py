"""The user that trials run as, if `worker.user` names one.

Trials then read and write what this user may, and no longer what the worker's user may: neither the worker's key and
memory, nor the operator's files. Trials that run at the same time are of one user, and not isolated from each other.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gradmedic.exceptions import ConfigurationError
from gradmedic_worker.executors.local_processes import UserIds

CAPABILITIES = {"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}
"""Linux's rights, with their bits, that a worker needs to start, end and clean up processes of another user."""
CLOSED_PATHS = 'for path; do test -x "$path" || printf "%s\\n" "$path"; done'
"""Shell command that prints those of its arguments which its user may not execute, or pass through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialUser:
    """The user that trials run as."""

    name: str
    ids: UserIds
    home: Path

    def build_environment(self, folder: Path) -> dict[str, str]:
        """Return the variables that name the user and its home, which is `folder` if the user has none."""
        home = self.home if self.home.is_dir() else folder
        return {"HOME": str(home), "USER": self.name, "LOGNAME": self.name}

    def check_access(self, paths: Iterable[Path]) -> None:
        """Check that the user may execute these programs, and pass through these folders. Raises ConfigurationError."""
        checked = subprocess.run(  # noqa: S603 (our own command)
            ["/bin/sh", "-c", CLOSED_PATHS, "sh", *map(str, paths)],
            user=self.ids.uid,
            group=self.ids.gid,
            extra_groups=self.ids.groups,
            cwd="/",
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        closed = checked.stdout.splitlines()
        if closed:
            raise ConfigurationError(f"worker.user: the user {self.name!r} may not execute or enter {closed[0]}")


def find_trial_user(name: str) -> TrialUser:
    """Return the user of a name.

    Raises:
        ConfigurationError: There is no such user, it has the worker's own rights or more, or the worker may not start
            processes of another user.
    """
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):
        raise ConfigurationError(f"worker.user: there is no user {name!r}") from None
    if entry.pw_uid in (0, os.getuid()):
        owner = "root" if entry.pw_uid == 0 else "the worker's own user"
        raise ConfigurationError(f"worker.user: {name!r} is {owner}; name a user with fewer rights")
    if os.geteuid() != 0:
        raise ConfigurationError(f"worker.user: only a worker that runs as root can run trials as {name!r}")
    missing = _find_missing_capabilities()
    if missing:
        raise ConfigurationError(f"worker.user: this worker's root has no {', '.join(missing)}")
    groups = os.getgrouplist(name, entry.pw_gid)
    return TrialUser(name=name, ids=UserIds(uid=entry.pw_uid, gid=entry.pw_gid, groups=groups), home=Path(entry.pw_dir))


def _find_missing_capabilities() -> list[str]:
    """Return the needed rights that this process does not have, as in a container that has dropped them."""
    if sys.platform != "linux":
        return []
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    effective = int(lines["CapEff"], 16)
    return [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]
