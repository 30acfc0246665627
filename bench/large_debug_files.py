"""Large debug files, each of them one of a kind: symbols of Breakpad, and a program of C++."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from symbolic.debuginfo import Archive

from bench.measure import Gap
from bench.place import Place, Unmeasured
from bench.processes import CALL_SECONDS, REPOSITORY
from bench.programs import need, program_path, versioned

CRASH_LAB = REPOSITORY / "tests" / "data" / "crash_lab"
CRASH_LAB_NAME = "crash_lab"
# As Breakpad spells the debug id of that program, which its minidump has as well.
CRASH_LAB_IDENTIFIER = "8FD7DD327311A6F8BAD50BD4BD2D48430"
# A function that is on the stack in the minidump.
CRASH_LAB_FUNCTION = "lab::poke(lab::Widget*, int)"
# Behind all that the program has itself.
_FIRST_ADDRESS = 0x100000
_FUNCTION_BYTES, _LINE_BYTES = 0x80, 0x10
# Of a source file: compiled in some seconds.
_CLASSES = 300
_SPACE = "part_0000"
_SOURCE_HEAD = "#include <string>\n#include <vector>\n"
# One function is inlined into the other.
_CLASS = """
struct Part{n} {{ int weight; std::string name; std::vector<int> sizes; }};
static inline int clamp{n}(int value, int most) {{
    if (value > most) return most;
    return value < 0 ? 0 : value;
}}
int measure{n}(const Part{n}& part, int depth) {{
    int sum = 0;
    for (int size : part.sizes)
        sum += clamp{n}(size + {n}, depth * part.weight);
    if (depth > 0 && sum % 3 == 0)
        return measure{n}(part, depth - 1) + clamp{n}(sum, {n} + 7);
    return sum + static_cast<int>(part.name.size());
}}
"""


@dataclass(frozen=True)
class LargeDebugFile:
    """A debug file.

    Attributes:
        what: it is, with its size.
        top: no address of a function is above.
    """

    what: str
    debug_id: str
    content: bytes
    top: int

    def another(self) -> bytes:
        """Return another file that has the same debug id, and the same in it."""
        # Breakpad has it for a note; what follows an ELF file is of no interest to anybody.
        return self.content + f"INFO BENCH {uuid.uuid4().hex}\n".encode("ascii")


def large_debug_files(place: Place, benchmark: str) -> Iterator[LargeDebugFile | Gap]:
    """Make one of each kind, as far as the programs for it are there."""
    yield breakpad_file(place)
    try:
        yield _compiled_program(place)
    except Unmeasured as error:
        yield Gap(benchmark, "an ELF file with debug information, compiled from C++", str(error))


@cache
def breakpad_file(place: Place) -> LargeDebugFile:
    """Return the symbols of the program that crashed, and of many more functions."""
    functions = 20_000 if place.quick else 100_000
    own = (CRASH_LAB / f"{CRASH_LAB_NAME}.sym").read_text(encoding="utf-8").splitlines()
    lines, frames = [], []
    for number in range(functions):
        start = _FIRST_ADDRESS + number * _FUNCTION_BYTES
        name = f"lab::filler::Widget{number}::measure(std::vector<int> const&, char const*)"
        lines.append(f"FUNC {start:x} {_FUNCTION_BYTES:x} 0 {name}")
        lines += [
            f"{start + at:x} {_LINE_BYTES:x} {number % 9000 + at // _LINE_BYTES + 1} 0"
            for at in range(0, _FUNCTION_BYTES, _LINE_BYTES)
        ]
        frames.append(
            f"STACK CFI INIT {start:x} {_FUNCTION_BYTES:x} .cfa: $rsp 8 + .ra: .cfa -8 + ^"
        )
    # Those of the program come first, as Breakpad's own converter would have them.
    position = next(n for n, line in enumerate(own) if line.startswith("PUBLIC "))
    content = "\n".join([*own[:position], *lines, *own[position:], *frames, ""]).encode("ascii")
    what = f"Breakpad symbols of {len(content) / 1e6:.0f} MB, {functions:,} functions"
    debug_id = str(uuid.UUID(CRASH_LAB_IDENTIFIER[:32]))
    return LargeDebugFile(what, debug_id, content, start + _FUNCTION_BYTES)


@cache
def _compiled_program(place: Place) -> LargeDebugFile:
    """Return a library with debug information, compiled here, once for all benchmarks.

    Raises:
        Unmeasured: there is no compiler.
    """
    need("g++")
    compiler = str(program_path("g++"))
    with place.room("compiled") as room:
        source, assembly = room / "part.cpp", room / "part.s"
        classes = "".join(_CLASS.format(n=number) for number in range(_CLASSES))
        source.write_text(f"{_SOURCE_HEAD}namespace {_SPACE} {{{classes}}}\n", encoding="ascii")
        _run(compiler, "-S", "-g", "-O1", "-fPIC", "-o", str(assembly), str(source))
        compiled = assembly.read_text(encoding="utf-8")
        # All parts are alike but for their names: compiling is what takes long, and is done once.
        objects = []
        for number in range(4 if place.quick else 40):
            assembly.write_text(compiled.replace(_SPACE, f"part_{number:04d}"), encoding="utf-8")
            objects.append(room / f"{number}.o")
            _run(compiler, "-c", "-o", str(objects[-1]), str(assembly))
        library = room / "parts.so"
        _run(compiler, "-shared", "-Wl,--build-id", "-o", str(library), *map(str, objects))
        content = library.read_bytes()
        [found] = Archive.open(str(library)).iter_objects()
        debug_id = found.debug_id
    what = f"an ELF file of {len(content) / 1e6:.0f} MB, C++ by {versioned('g++')}"
    return LargeDebugFile(what, debug_id, content, len(content))


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, timeout=CALL_SECONDS)
    if result.returncode:
        raise RuntimeError(f"{command[0]} failed: {result.stderr[-500:]}")
