"""An index of the running runs, in which the due work finds those that are silent.

Revision ID: 0010
Revises: 0009

The previous version can still serve requests: it reads the status `stalled` as it is stored.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index."""
    is_running = sa.text("status = 'running'")
    op.create_index("ix_runs_running", "runs", ["id"], postgresql_where=is_running, sqlite_where=is_running)


def downgrade() -> None:
    """Remove the index. Stalled runs become running, because the previous version computes which runs are stalled."""
    op.drop_index("ix_runs_running", table_name="runs")
    op.execute("UPDATE runs SET status = 'running' WHERE status = 'stalled'")
