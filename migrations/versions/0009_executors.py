"""Reruns whose first worker chooses the executor, and attempts that wait for a process on another machine.

Revision ID: 0009
Revises: 0008

The previous version can still serve requests: it names an executor for each rerun that it makes, and the new column may
be null.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Allow reruns without an executor, and mark the attempts that wait."""
    with op.batch_alter_table("reruns") as reruns:
        reruns.alter_column("executor", existing_type=sa.String(16), nullable=True)
    with op.batch_alter_table("attempts") as attempts:
        attempts.add_column(sa.Column("is_waiting", sa.Boolean(), nullable=True))


def downgrade() -> None:
    """Give reruns without an executor the local one, which was the only one."""
    with op.batch_alter_table("attempts") as attempts:
        attempts.drop_column("is_waiting")
    op.execute("UPDATE reruns SET executor = 'local' WHERE executor IS NULL")
    with op.batch_alter_table("reruns") as reruns:
        reruns.alter_column("executor", existing_type=sa.String(16), nullable=False)
