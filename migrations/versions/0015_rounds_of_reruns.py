"""Rounds of reruns: how many rounds a rerun may have, and which ones it has.

Revision ID: 0015
Revises: 0014

The previous version can still serve requests: it takes the candidates of all rounds for those of one.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("reruns", sa.Column("plan", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    """Remove the column."""
    op.drop_column("reruns", "plan")
