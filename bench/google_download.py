"""The peer: google-cloud-storage's ``Blob.download_to_filename``, in a process of its own.

Prints the seconds and the CPU seconds that the call took as JSON; what importing takes is not
counted. The checksum is checked, as devserver does.
"""

from __future__ import annotations

import json
import sys
import time

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage


def main() -> None:
    endpoint, bucket, name, path = sys.argv[1:]
    client = storage.Client(
        project="bench",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": endpoint},
    )
    begun_at, cpu_before = time.monotonic(), time.process_time()
    client.bucket(bucket).blob(name).download_to_filename(path, checksum="crc32c")
    seconds, cpu_seconds = time.monotonic() - begun_at, time.process_time() - cpu_before
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds}))


if __name__ == "__main__":
    main()
