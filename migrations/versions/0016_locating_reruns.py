"""Reruns of the kind `locate`: the kind of a rerun, and the origin that its trials have found.

Revision ID: 0016
Revises: 0015

The previous version can still serve requests. It takes a rerun of the kind `locate` for a race without candidates, so
such reruns should be started after every replica has the new version.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("reruns", sa.Column("kind", sa.String(16), nullable=False, server_default="repair"))
    op.add_column("reruns", sa.Column("origin", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("trials", sa.Column("origin", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    """Remove the columns."""
    op.drop_column("trials", "origin")
    op.drop_column("reruns", "origin")
    op.drop_column("reruns", "kind")
