"""Snapshots of the diagnosis, and rewinding.

Revision ID: 0003
Revises: 0002

The previous version can still append steps: the new columns may be null.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table and the columns."""
    op.create_table(
        "diagnosis_snapshots",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "step", name="pk_diagnosis_snapshots"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_diagnosis_snapshots_run_id_runs", ondelete="CASCADE"),
    )
    op.add_column("diagnosis_states", sa.Column("steps_since_snapshot", sa.Integer(), nullable=True))
    op.add_column("runs", sa.Column("rewound_to", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Remove the table and the columns."""
    with op.batch_alter_table("runs") as runs:
        runs.drop_column("rewound_to")
    with op.batch_alter_table("diagnosis_states") as states:
        states.drop_column("steps_since_snapshot")
    op.drop_table("diagnosis_snapshots")
