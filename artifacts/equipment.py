"""Equipment: what all downloaders of a server share."""

from __future__ import annotations

from dataclasses import dataclass

from artifacts.catalog import Catalog
from artifacts.fetch import FetchLimits
from artifacts.sources.registry import Sources
from artifacts.staging import Staging
from artifacts.timers import Timers
from artifacts.unpack_limits import UnpackLimits
from artifacts.workers import Workers


@dataclass(frozen=True)
class Equipment:
    """What all downloaders of a server share.

    Attributes:
        connections: threads that read from archives; their limit is that of parallel connections.
        writeback: threads that wait for the disk while more comes.
        threads: those that plan, unpack and publish.
        timers: what looks for files that are still being uploaded.
    """

    staging: Staging
    sources: Sources
    catalog: Catalog
    connections: Workers
    writeback: Workers
    threads: Workers
    fetch_limits: FetchLimits
    unpack_limits: UnpackLimits
    timers: Timers
