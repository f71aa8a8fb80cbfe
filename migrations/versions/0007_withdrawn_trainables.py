"""The worker that last offered a trainable, and the time since which no worker offers it.

Revision ID: 0007
Revises: 0006

The previous version can still serve requests: the new columns may be null. It does not withdraw trainables.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    with op.batch_alter_table("trainables") as trainables:
        trainables.add_column(sa.Column("worker", sa.String(512), nullable=True))
        trainables.add_column(sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Remove the columns."""
    with op.batch_alter_table("trainables") as trainables:
        trainables.drop_column("withdrawn_at")
        trainables.drop_column("worker")
