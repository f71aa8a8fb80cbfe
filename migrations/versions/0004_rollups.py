"""Rollups of the telemetry.

Revision ID: 0004
Revises: 0003

The previous version can still append steps: `position` may be null. PostgreSQL no longer compresses the compressed data
again, and can read parts of it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

COMPRESSED = (("telemetry_chunks", "data"), ("telemetry_rollups", "data"), ("diagnosis_snapshots", "state"))


def upgrade() -> None:
    """Add the table, and number the existing chunks."""
    op.create_table(
        "telemetry_rollups",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("first_step", sa.BigInteger(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "level", "first_step", name="pk_telemetry_rollups"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_telemetry_rollups_run_id_runs", ondelete="CASCADE"),
    )
    op.add_column("telemetry_chunks", sa.Column("position", sa.Integer(), nullable=True))
    op.execute(
        "UPDATE telemetry_chunks SET position = numbered.position FROM (SELECT run_id, first_step, "
        "row_number() OVER (PARTITION BY run_id ORDER BY first_step) - 1 AS position "
        "FROM telemetry_chunks) AS numbered "
        "WHERE telemetry_chunks.run_id = numbered.run_id AND telemetry_chunks.first_step = numbered.first_step"
    )
    if op.get_bind().dialect.name == "postgresql":
        for table, column in COMPRESSED:
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL")


def downgrade() -> None:
    """Remove the table and the column."""
    with op.batch_alter_table("telemetry_chunks") as chunks:
        chunks.drop_column("position")
    op.drop_table("telemetry_rollups")
