"""Runs, their telemetry and their diagnosis.

Revision ID: 0001
Revises: nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NAME = sa.String(512)


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("project", NAME, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("group", NAME, nullable=True),
        sa.Column("framework", NAME, nullable=True),
        sa.Column("trainable", NAME, nullable=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("since_step", sa.BigInteger(), nullable=True),
        sa.Column("last_step", sa.BigInteger(), nullable=True),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("statistics", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("metrics", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("layer_counts", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("facts_digest", sa.LargeBinary(16), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    op.create_index("ix_runs_created_at_id", "runs", ["created_at", "id"])
    op.create_index("ix_runs_name_id", "runs", ["name", "id"])
    op.create_index("ix_runs_project_created_at_id", "runs", ["project", "created_at", "id"])
    op.create_table(
        "run_details",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("notes", sa.Text(), nullable=True),
        sa.Column("config", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("training", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("layers", sa.JSON(none_as_null=True), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_run_details"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_run_details_run_id_runs", ondelete="CASCADE"),
    )
    op.create_table(
        "run_tags",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("tag", NAME, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "position", name="pk_run_tags"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_run_tags_run_id_runs", ondelete="CASCADE"),
    )
    op.create_index("ix_run_tags_tag_run_id", "run_tags", ["tag", "run_id"])
    op.create_table(
        "diagnosis_states",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_diagnosis_states"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_diagnosis_states_run_id_runs", ondelete="CASCADE"),
    )
    op.create_table(
        "verdict_changes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("finding", NAME, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_verdict_changes"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_verdict_changes_run_id_runs", ondelete="CASCADE"),
    )
    op.create_index("ix_verdict_changes_run_id_step", "verdict_changes", ["run_id", "step"])
    op.create_table(
        "telemetry_chunks",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("first_step", sa.BigInteger(), nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("step_count", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "first_step", name="pk_telemetry_chunks"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_telemetry_chunks_run_id_runs", ondelete="CASCADE"),
    )


def downgrade() -> None:
    """Remove every table."""
    for table in ("telemetry_chunks", "verdict_changes", "diagnosis_states", "run_tags", "run_details", "runs"):
        op.drop_table(table)
