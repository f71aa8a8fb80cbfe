"""What lists show of a run's steps: last loss and metrics, a curve of the loss, duration, first bad layer.

Revision ID: 0014
Revises: 0013

The previous version can still serve requests: it leaves the new columns as they are. This version finds that they are
not up to date when it reads the run's next block, and builds them anew from the stored steps.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("runs", sa.Column("progress", sa.LargeBinary(), nullable=True))
    op.add_column("runs", sa.Column("last_values", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("runs", sa.Column("duration", sa.Double(), nullable=True))
    op.add_column("runs", sa.Column("first_bad_layer", sa.Text(), nullable=True))


def downgrade() -> None:
    """Remove the columns."""
    for column in ("first_bad_layer", "duration", "last_values", "progress"):
        op.drop_column("runs", column)
