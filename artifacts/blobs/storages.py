"""Which blob storage a configuration names."""

from __future__ import annotations

import re
from pathlib import Path

from artifacts.archive_url import ArchiveUrl
from artifacts.blobs.directory_storage import DirectoryStorage
from artifacts.blobs.storage import BlobStorage
from artifacts.config import Config, ConfigError
from artifacts.errors import BadRequest
from artifacts.sources.transport import Timeouts

_SPOOL = "spool"
# What begins like a URL; a directory of such a name can be written as ``./s3:``.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def open_storage(config: Config) -> BlobStorage:
    """Open the blob storage that the configuration names; a directory beside the rest by default.

    A bucket is not asked for anything yet.

    Raises:
        ConfigError: what it names is no storage.
        DevserverError: a directory cannot be used.
    """
    location = (config.blob_storage or "").strip() or str(config.data_dir / "blobs")
    if _SCHEME.match(location) is None:
        return DirectoryStorage(Path(location).absolute())
    # Each is imported by who uses it: the others' starts stay fast.
    from artifacts.blobs.bucket_storage import Bucket, BucketStorage

    url = _bucket_url(location)
    timeouts = Timeouts(config.connect_timeout, config.stall_timeout)
    bucket: Bucket
    if url.scheme == "s3":
        from artifacts.blobs.s3_storage import S3Bucket

        bucket = S3Bucket(url.authority, timeouts, config.max_connections)
    else:
        from artifacts.blobs.gs_storage import GoogleBucket

        bucket = GoogleBucket(url.authority, timeouts, config.max_connections)
    return BucketStorage(bucket, url.path, config.data_dir.absolute() / _SPOOL)


def _bucket_url(location: str) -> ArchiveUrl:
    try:
        url = ArchiveUrl.parse_prefix(location)
    except BadRequest:
        url = None
    if url is None or url.scheme not in {"s3", "gs"} or not url.authority:
        raise ConfigError(
            f"--blob-storage: {location!r} is neither a directory nor s3://BUCKET/PREFIX nor "
            "gs://BUCKET/PREFIX"
        )
    return url
