"""The tables of the database, for SQLite and PostgreSQL alike.

Uploads come as *chunks*, each kept as a *blob* under its SHA-1. A blob belongs to each organization
that has sent it; nobody else is told that it is there. A *file* is a list of blobs, the *blob
index*, and belongs to one organization. *Debug files* and *builds* name files; *symcaches* are made
of debug files. A *lease* keeps a blob that no file uses yet, until the client that was told of it
has had the time to use it.

Checksums are SHA-1, in 40 lower-case hex digits; times are seconds since 1970; sizes are in bytes.
What a blob index names need not be there: a blob that was found damaged is dropped, and its files
are whole again as soon as it is sent once more.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_CHECKSUM = String(40)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(255), nullable=False, unique=True),
    # SHA-256 of the token, in hex digits: tokens have 256 random bits, so that no salt is needed.
    Column("hash", String(64), nullable=False, unique=True),
    Column("organization", String(255), nullable=False),
    # Separated by blanks.
    Column("scopes", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)

blobs = Table(
    "blobs",
    metadata,
    Column("checksum", _CHECKSUM, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("stored_at", Double, nullable=False),
)

owners = Table(
    "owners",
    metadata,
    Column("checksum", ForeignKey("blobs.checksum", ondelete="CASCADE"), primary_key=True),
    Column("organization", String(255), primary_key=True),
)

leases = Table(
    "leases",
    metadata,
    Column("checksum", ForeignKey("blobs.checksum", ondelete="CASCADE"), primary_key=True),
    Column("expires_at", Double, nullable=False, index=True),
)

files = Table(
    "files",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("organization", String(255), nullable=False),
    Column("checksum", _CHECKSUM, nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
    Column("crc32c", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("organization", "checksum"),
)

blob_index = Table(
    "blob_index",
    metadata,
    Column("file_id", ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("offset", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("checksum", _CHECKSUM, nullable=False, index=True),
)

debug_files = Table(
    "debug_files",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("organization", String(255), nullable=False),
    Column("project", String(255), nullable=False),
    Column("file_id", ForeignKey("files.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("organization", "project", "file_id"),
    Index(None, "file_id"),
    # The newest of a project are listed.
    Index(None, "organization", "project", "created_at"),
)

debug_objects = Table(
    "debug_objects",
    metadata,
    Column("debug_file_id", ForeignKey("debug_files.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    # Lower case, as in 8fd7dd32-7311-a6f8-bad5-0bd4bd2d4843, with -AGE at its end where it has one.
    Column("debug_id", String(64), nullable=False, index=True),
    Column("code_id", String(255), nullable=True, index=True),
    # elf, macho, pe, breakpad, …
    Column("format", String(32), nullable=False),
    # exe, lib, dbg, …, as the upload protocol calls them (`data.type`).
    Column("kind", String(32), nullable=False),
    Column("architecture", String(32), nullable=False),
    # Separated by blanks.
    Column("features", Text, nullable=False),
)

symcaches = Table(
    "symcaches",
    metadata,
    Column("debug_file_id", ForeignKey("debug_files.id", ondelete="CASCADE"), primary_key=True),
    # Of the object that it is of, and of the format.
    Column("number", Integer, primary_key=True),
    Column("version", Integer, primary_key=True),
    # Why there is none; NULL for one that was built.
    Column("error", Text, nullable=True),
    Column("created_at", Double, nullable=False),
)

builds = Table(
    "builds",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("target", String(255), nullable=False),
    Column("build", String(255), nullable=False),
    Column("organization", String(255), nullable=False),
    Column("project", String(255), nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("target", "build"),
)

build_files = Table(
    "build_files",
    metadata,
    Column("build_id", ForeignKey("builds.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("file_id", ForeignKey("files.id"), nullable=False, index=True),
)

assemblies = Table(
    "assemblies",
    metadata,
    # What is to be assembled, and from what: a digest of all of it.
    Column("offer", String(64), primary_key=True),
    # begun: the detail says what is to be assembled; failed: it cannot be, and why;
    # failed_for_now: another try may be of use
    Column("state", String(16), nullable=False),
    Column("detail", Text, nullable=False),
    Column("expires_at", Double, nullable=False, index=True),
)
