"""All benchmarks, by the name that ``python -m bench`` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bench.assembling import assembling
from bench.behind_nginx import behind_nginx
from bench.cold import cold
from bench.footprint import idle, memory
from bench.growing import growing
from bench.look_ups import look_ups
from bench.many_machines import one_build, waiters
from bench.many_slow import slow_clients
from bench.measure import Gap, Row
from bench.place import Place
from bench.publishing import publish
from bench.reading_back import read_back
from bench.serving import serving
from bench.staging_speed import far_archive, fast_archive, many_files
from bench.symcaches import symcaches
from bench.unpacking import unpacking
from bench.upload_again import upload_again
from bench.uploading import upload_memory, uploads
from bench.walks import walks

BENCHMARKS: dict[str, Callable[[Place], Iterator[Row | Gap]]] = {
    "fast-archive": fast_archive,
    "far-archive": far_archive,
    "many-files": many_files,
    "unpacking": unpacking,
    "one-build": one_build,
    "waiters": waiters,
    "serving": serving,
    "behind-nginx": behind_nginx,
    "slow-clients": slow_clients,
    "growing": growing,
    "cold": cold,
    "uploads": uploads,
    "upload-again": upload_again,
    "assembling": assembling,
    "read-back": read_back,
    "publish": publish,
    "upload-memory": upload_memory,
    "symcaches": symcaches,
    "look-ups": look_ups,
    "walks": walks,
    "memory": memory,
    "idle": idle,
}

# Names for several of them.
GROUPS: dict[str, Sequence[str]] = {"symbols": ("symcaches", "look-ups", "walks")}
