"""``python -m bench [NAMES…]``: measure, and print a table."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import requests

from bench.benchmarks import BENCHMARKS, GROUPS
from bench.measure import Gap, Row
from bench.place import Place, Unmeasured
from bench.report import describe_machine, print_row, print_table, write_json

_FAILURES = (RuntimeError, OSError, subprocess.SubprocessError, requests.RequestException)


def main() -> None:
    options = _parse_options()
    # As by Ctrl-C: all that was started is ended, and all files are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    rows: list[Row] = []
    gaps: list[Gap] = []
    unmeasured: dict[str, str] = {}
    failed = False
    print(", ".join(f"{name} {value}" for name, value in describe_machine().items()))
    with tempfile.TemporaryDirectory(prefix="devserver-bench-", dir=options.directory) as directory:
        place = Place(Path(directory).resolve(), options.quick)
        place.directory.chmod(0o755)
        for name in _named(options.names) or BENCHMARKS:
            begun_at = time.monotonic()
            try:
                for row in BENCHMARKS[name](place):
                    if isinstance(row, Gap):
                        gaps.append(row)
                        failed = failed or row.is_failure
                        verb = "failed" if row.is_failure else "is not measured"
                        print(f"\n{row.what}\n    {verb}: {row.reason}")
                        continue
                    rows.append(row)
                    print_row(row)
            except Unmeasured as error:
                unmeasured[name] = str(error)
                print(f"\n{name} is not measured: {error}")
            except _FAILURES as error:
                # The others are worth having all the same.
                failed = True
                unmeasured[name] = f"{type(error).__name__}: {error}"
                print(f"\n{name} failed: {unmeasured[name]}")
            print(f"({name} took {time.monotonic() - begun_at:.0f} s)", flush=True)
    print_table(rows)
    if options.quick:
        print("\nA quick run: a look, not a measurement.")
    if options.json is not None:
        write_json(options.json, rows, gaps, unmeasured, quick=options.quick)
    sys.exit(failed)


def _parse_options() -> argparse.Namespace:
    lines = [f"  {name:14} {run.__doc__}" for name, run in BENCHMARKS.items()]
    lines += [f"  {name:14} All of {', '.join(of_group)}." for name, of_group in GROUPS.items()]
    names = "\n".join(lines)
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"Measure devserver beside its peers.\n\nbenchmarks:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="benchmarks to run; all by default"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures to FILE")
    parser.add_argument(
        "--quick", action="store_true", help="smaller sizes and one round: about six minutes"
    )
    parser.add_argument(
        "--directory",
        type=Path,
        help="where to put temporary files, on a disk (not in memory); the system's by default",
    )
    options = parser.parse_args()
    known = (*BENCHMARKS, *GROUPS)
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(known)}")
    return options


def _named(names: Sequence[str]) -> list[str]:
    """Return the benchmarks of these names, those of a group one by one, each of them once."""
    return list(dict.fromkeys(each for name in names for each in GROUPS.get(name, (name,))))


if __name__ == "__main__":
    main()
