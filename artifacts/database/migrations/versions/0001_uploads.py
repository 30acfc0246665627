"""The first schema: tokens, blobs, files, debug files, builds, assemblies."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "assemblies",
        sa.Column("offer", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("offer", name=op.f("pk_assemblies")),
    )
    op.create_index(op.f("ix_assemblies_expires_at"), "assemblies", ["expires_at"], unique=False)
    op.create_table(
        "blobs",
        sa.Column("checksum", sa.String(length=40), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("stored_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("checksum", name=op.f("pk_blobs")),
    )
    op.create_table(
        "builds",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("target", sa.String(length=255), nullable=False),
        sa.Column("build", sa.String(length=255), nullable=False),
        sa.Column("organization", sa.String(length=255), nullable=False),
        sa.Column("project", sa.String(length=255), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_builds")),
        sa.UniqueConstraint("target", "build", name=op.f("uq_builds_target_build")),
    )
    op.create_table(
        "files",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("organization", sa.String(length=255), nullable=False),
        sa.Column("checksum", sa.String(length=40), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("crc32c", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
        sa.UniqueConstraint(
            "organization", "checksum", name=op.f("uq_files_organization_checksum")
        ),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("organization", sa.String(length=255), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("hash", name=op.f("uq_tokens_hash")),
        sa.UniqueConstraint("name", name=op.f("uq_tokens_name")),
    )
    op.create_table(
        "blob_index",
        sa.Column("file_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("checksum", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(
            ["file_id"], ["files.id"], name=op.f("fk_blob_index_file_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("file_id", "number", name=op.f("pk_blob_index")),
    )
    op.create_index(op.f("ix_blob_index_checksum"), "blob_index", ["checksum"], unique=False)
    op.create_table(
        "build_files",
        sa.Column("build_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("file_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["build_id"], ["builds.id"], name=op.f("fk_build_files_build_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name=op.f("fk_build_files_file_id")),
        sa.PrimaryKeyConstraint("build_id", "name", name=op.f("pk_build_files")),
    )
    op.create_index(op.f("ix_build_files_file_id"), "build_files", ["file_id"], unique=False)
    op.create_table(
        "debug_files",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("organization", sa.String(length=255), nullable=False),
        sa.Column("project", sa.String(length=255), nullable=False),
        sa.Column("file_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["file_id"], ["files.id"], name=op.f("fk_debug_files_file_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_debug_files")),
        sa.UniqueConstraint(
            "organization",
            "project",
            "file_id",
            name=op.f("uq_debug_files_organization_project_file_id"),
        ),
    )
    op.create_index(op.f("ix_debug_files_file_id"), "debug_files", ["file_id"], unique=False)
    op.create_index(
        op.f("ix_debug_files_organization_project_created_at"),
        "debug_files",
        ["organization", "project", "created_at"],
        unique=False,
    )
    op.create_table(
        "leases",
        sa.Column("checksum", sa.String(length=40), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["checksum"], ["blobs.checksum"], name=op.f("fk_leases_checksum"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("checksum", name=op.f("pk_leases")),
    )
    op.create_index(op.f("ix_leases_expires_at"), "leases", ["expires_at"], unique=False)
    op.create_table(
        "owners",
        sa.Column("checksum", sa.String(length=40), nullable=False),
        sa.Column("organization", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(
            ["checksum"], ["blobs.checksum"], name=op.f("fk_owners_checksum"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("checksum", "organization", name=op.f("pk_owners")),
    )
    op.create_table(
        "debug_objects",
        sa.Column("debug_file_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("debug_id", sa.String(length=64), nullable=False),
        sa.Column("code_id", sa.String(length=255), nullable=True),
        sa.Column("format", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("architecture", sa.String(length=32), nullable=False),
        sa.Column("features", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["debug_file_id"],
            ["debug_files.id"],
            name=op.f("fk_debug_objects_debug_file_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("debug_file_id", "number", name=op.f("pk_debug_objects")),
    )
    op.create_index(op.f("ix_debug_objects_code_id"), "debug_objects", ["code_id"], unique=False)
    op.create_index(op.f("ix_debug_objects_debug_id"), "debug_objects", ["debug_id"], unique=False)
