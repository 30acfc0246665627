"""Symcaches: which were built of debug files, and which cannot be."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "symcaches",
        sa.Column("debug_file_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["debug_file_id"],
            ["debug_files.id"],
            name=op.f("fk_symcaches_debug_file_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("debug_file_id", "number", "version", name=op.f("pk_symcaches")),
    )
    op.create_index(op.f("ix_files_checksum"), "files", ["checksum"], unique=False)
