"""Trainables, reruns, trials and attempts; runs of attempts; the settings of projects for reruns.

Revision ID: 0006
Revises: 0005

The previous version can still serve requests: every new column may be null. It lists the runs of trials
among the others.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables and the columns."""
    with op.batch_alter_table("projects") as projects:
        projects.add_column(sa.Column("rerun_automatically", sa.Boolean(), nullable=True))
        projects.add_column(sa.Column("max_concurrent_trials", sa.Integer(), nullable=True))
        projects.add_column(sa.Column("max_rerun_seconds", sa.Double(), nullable=True))
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("parent_id", sa.Uuid(), nullable=True))
        runs.add_column(sa.Column("stop_after", sa.BigInteger(), nullable=True))
        runs.create_foreign_key("fk_runs_parent_id_runs", "runs", ["parent_id"], ["id"], ondelete="CASCADE")
        runs.create_index("ix_runs_parent_id", ["parent_id"])
    op.create_table(
        "trainables",
        sa.Column("name", sa.String(512), nullable=False),
        sa.Column("owner", sa.String(512), nullable=False),
        sa.Column("project", sa.String(512), nullable=True),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("timeout", sa.Double(), nullable=False),
        sa.Column("parameters", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_trainables"),
    )
    op.create_table(
        "reruns",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("project", sa.String(512), nullable=False),
        sa.Column("trainable", sa.String(512), nullable=False),
        sa.Column("owner", sa.String(512), nullable=False),
        sa.Column("executor", sa.String(16), nullable=False),
        sa.Column("is_automatic", sa.Boolean(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("candidates", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("parameters", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("seeds", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("steps", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("max_trials", sa.Integer(), nullable=False),
        sa.Column("outcomes", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_reruns"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_reruns_run_id_runs", ondelete="CASCADE"),
    )
    op.create_index("ix_reruns_run_id", "reruns", ["run_id"])
    op.create_index("ix_reruns_created_at_id", "reruns", ["created_at", "id"])
    op.create_index("ix_reruns_status", "reruns", ["status"])
    op.create_table(
        "trials",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("rerun_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("candidate", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason_to_stop", sa.Text(), nullable=True),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("rungs", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("curve", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_trials"),
        sa.ForeignKeyConstraint(["rerun_id"], ["reruns.id"], name="fk_trials_rerun_id_reruns", ondelete="CASCADE"),
    )
    op.create_index("ix_trials_rerun_id_candidate_seed", "trials", ["rerun_id", "candidate", "seed"], unique=True)
    op.create_index("ix_trials_status", "trials", ["status"])
    op.create_table(
        "attempts",
        sa.Column("trial_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("worker", sa.String(512), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("environment", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("output", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("trial_id", "number", name="pk_attempts"),
        sa.ForeignKeyConstraint(["trial_id"], ["trials.id"], name="fk_attempts_trial_id_trials", ondelete="CASCADE"),
    )
    op.create_index("ix_attempts_run_id", "attempts", ["run_id"], unique=True)


def downgrade() -> None:
    """Remove the tables and the columns, and the runs of attempts, which would have no owner."""
    op.execute("DELETE FROM runs WHERE parent_id IS NOT NULL")
    for table in ("attempts", "trials", "reruns", "trainables"):
        op.drop_table(table)
    with op.batch_alter_table("runs") as runs:
        runs.drop_index("ix_runs_parent_id")
        runs.drop_constraint("fk_runs_parent_id_runs", type_="foreignkey")
        runs.drop_column("stop_after")
        runs.drop_column("parent_id")
    with op.batch_alter_table("projects") as projects:
        for column in ("max_rerun_seconds", "max_concurrent_trials", "rerun_automatically"):
            projects.drop_column(column)
