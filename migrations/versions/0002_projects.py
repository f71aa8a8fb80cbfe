"""Projects, and the detectors that they and runs mute.

Revision ID: 0002
Revises: 0001

The previous version can still create runs: the new column may be null, and a run does not need its project's row.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table and the column, and create the projects of existing runs."""
    op.create_table(
        "projects",
        sa.Column("name", sa.String(512), nullable=False),
        sa.Column("muted_detectors", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_projects"),
    )
    op.execute(
        "INSERT INTO projects (name, muted_detectors, created_at) "
        "SELECT project, '[]', min(created_at) FROM runs GROUP BY project"
    )
    op.add_column("runs", sa.Column("muted_detectors", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    """Remove the table and the column."""
    with op.batch_alter_table("runs") as runs:
        runs.drop_column("muted_detectors")
    op.drop_table("projects")
