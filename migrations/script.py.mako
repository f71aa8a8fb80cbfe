"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}

Do not break the previous version of the code: it serves requests while this
migration runs, and after a rollback. Add first, move data, and remove in a later release. Change tables in batches, for
SQLite.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    """Upgrade to this revision."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Downgrade to the previous revision."""
    ${downgrades if downgrades else "pass"}
