"""Sessions of browsers, and the time at which a silent run becomes stalled.

Revision ID: 0008
Revises: 0007

The previous version can still create runs and append steps: the new columns may be null.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table and the columns."""
    op.create_table(
        "browser_sessions",
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_browser_sessions"),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_keys.id"], name="fk_browser_sessions_key_id_api_keys", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_browser_sessions_expires_at", "browser_sessions", ["expires_at"])
    op.add_column("runs", sa.Column("patience", sa.Double(), nullable=True))
    op.add_column("runs", sa.Column("stalls_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Remove the table and the columns."""
    with op.batch_alter_table("runs") as runs:
        runs.drop_column("stalls_at")
        runs.drop_column("patience")
    op.drop_table("browser_sessions")
