"""How the machine is doing, for lab schedulers."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import psutil

_SAMPLING_SECONDS = 2.0


@dataclass(frozen=True)
class Load:
    cpu_percent: float = 0.0
    disk_bytes_per_second: float = 0.0
    network_bytes_per_second: float = 0.0


class LoadSampler:
    """Samples the machine's load in the background, so that telling it takes no time."""

    def __init__(self) -> None:
        self.latest = Load()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="load-sampler", daemon=True)

    def start(self) -> None:
        psutil.cpu_percent()
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=5)

    def _sample(self) -> None:
        before_at, before = time.monotonic(), _bytes_moved()
        while not self._stopped.wait(_SAMPLING_SECONDS):
            now_at, now = time.monotonic(), _bytes_moved()
            seconds = now_at - before_at
            self.latest = Load(
                psutil.cpu_percent(),
                (now[0] - before[0]) / seconds,
                (now[1] - before[1]) / seconds,
            )
            before_at, before = now_at, now


def _bytes_moved() -> tuple[int, int]:
    """Return the bytes that disks and network cards have moved since the machine started."""
    disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
    return (
        disk.read_bytes + disk.write_bytes if disk else 0,
        network.bytes_sent + network.bytes_recv if network else 0,
    )
