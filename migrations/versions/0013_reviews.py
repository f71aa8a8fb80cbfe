"""Reviews: a user's answer to the question whether the verdict on a run is right.

Revision ID: 0013
Revises: 0012

The previous version can still serve requests: it does not read the new table, and a run that it deletes takes its
review along.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "run_reviews",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("answer", sa.String(16), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=True),
        sa.Column("level", sa.String(16), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("judged_verdict", sa.String(16), nullable=False),
        sa.Column("judged_level", sa.String(16), nullable=False),
        sa.Column("diagnosis_version", sa.String(32), nullable=False),
        sa.Column("reviewed_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_reviews_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_run_reviews")),
    )
    op.create_index(op.f("ix_run_reviews_answer_run_id"), "run_reviews", ["answer", "run_id"])


def downgrade() -> None:
    """Remove the table with all reviews."""
    op.drop_table("run_reviews")
