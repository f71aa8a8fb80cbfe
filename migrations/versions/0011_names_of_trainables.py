"""Trainables of several projects under one name.

Revision ID: 0011
Revises: 0010

The previous version can still serve requests: it finds a trainable by the column `name`, which stays unique. There, a
name that several projects use belongs to the one that had it first, as before. The others have a text that is no name.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column and the index by which a key's trainables are found."""
    op.add_column("trainables", sa.Column("given_name", sa.String(512), nullable=True))
    op.create_index("ix_trainables_owner", "trainables", ["owner"])


def downgrade() -> None:
    """Remove the trainables whose name another project has; their workers offer them again, and are refused."""
    op.execute("DELETE FROM trainables WHERE given_name IS NOT NULL")
    op.drop_index("ix_trainables_owner", table_name="trainables")
    with op.batch_alter_table("trainables") as trainables:
        trainables.drop_column("given_name")
