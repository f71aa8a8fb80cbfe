"""What the loss of a run does, and the level that a person reads.

Revision ID: 0012
Revises: 0011

The previous version can still serve requests: it leaves the new columns at `unknown`, until this version reads the
run's next block.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

COLUMNS = ("learning", "level")
LEVEL_OF_VERDICT = """
UPDATE {table} SET level = CASE verdict
    WHEN 'undetermined' THEN 'unknown' WHEN 'healthy' THEN 'ok' ELSE 'critical' END
"""


def upgrade() -> None:
    """Add the columns; the level follows from the stored verdict."""
    for table in ("runs", "verdict_changes"):
        for column in COLUMNS:
            op.add_column(table, sa.Column(column, sa.String(16), nullable=False, server_default="unknown"))
        op.execute(LEVEL_OF_VERDICT.format(table=table))


def downgrade() -> None:
    """Remove the columns."""
    for table in ("verdict_changes", "runs"):
        for column in COLUMNS:
            op.drop_column(table, column)
