"""A sample build, shaped like a ChromeOS one, for the demo and the tests."""

from __future__ import annotations

import hashlib
import io
import os
import pprint
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

TARGET = "x86-generic-release"
BUILD = "R17-1208.0.0"
FULL_PAYLOAD = "chromeos_R17-1208.0.0_x86-generic_full_dev.bin"
N_TO_N_PAYLOAD = "chromeos_R17-1208.0.0_R17-1208.0.0_x86-generic_delta_dev.bin"
M_TO_N_PAYLOAD = "chromeos_R16-1193.0.0_R17-1208.0.0_x86-generic_delta_dev.bin"

_Mode = Literal["w", "w:gz", "w:bz2"]

_PAYLOAD_MAGIC = b"CrAU"
_DELTA_BYTES = 2_000_000
_BLOCK_BYTES = 1 << 20
_BUILT_AT = 1_319_155_200  # 2011-10-21, as seconds since 1970

_CLIENT_TESTS = {
    "platform": "AccurateTime BootDevice CheckErrorsInLog CryptohomeMount CryptohomeStress"
    " DMVerityBitCorruption EncryptedStateful FileNum FilePerms FileSize HighResTimers"
    " KernelVersion LibCBench MemCheck NetParms OSLimits PartitionCheck Pkcs11Events"
    " ProcessPrivileges Rootfs SessionManagerTerm Shutdown TempFS ToolchainOptions",
    "security": "AccountsBaseline Firewall HardlinkRestrictions OpenFDs ReservedPrivileges"
    " RestartJob RootfsOwners SandboxedServices SuidBinaries SymlinkRestrictions",
    "login": "CryptohomeMounted GuestMode LoginSuccess LogoutProcessCleanup OwnershipApi",
    "logging": "CrashSender CrashServices KernelCrash LogRotation UserCrash",
    "network": "DhcpClient DisableInterface Ping Portal UdevRename",
    "graphics": "GLBench GLMark WindowManager",
    "power": "Consumption Resume StatsCPUIdle",
}
_SERVER_TESTS = {
    "autoupdate": "EndToEnd Rollback",
    "hardware": "Reboot StorageFio",
    "power": "SuspendStress",
}
_SYMBOL_FILES = {
    "chrome": ("main", "ChromeMain", "BrowserMain", "MessageLoop::RunInternal"),
    "libc.so.6": ("__libc_start_main", "abort", "raise", "memcpy"),
    "session_manager": ("main", "login_manager::SessionManagerService::Run"),
    "update_engine": ("main", "chromeos_update_engine::DeltaPerformer::Write"),
}


def make_sample_build(archive: Path, *, payload_bytes: int = 100_000_000) -> Path:
    """Make a build below the directory ``archive``, or keep the one that is there already.

    ``payload_bytes`` is the size of the full payload, at least 4. Returns the build's directory,
    ``archive``/TARGET/BUILD. It is made aside and renamed, so that it is there whole or not at all.
    Raises OSError where the disk refuses.
    """
    if payload_bytes < len(_PAYLOAD_MAGIC):
        raise ValueError(f"a payload has at least {len(_PAYLOAD_MAGIC)} bytes: {payload_bytes}")
    build = archive / TARGET / BUILD
    if build.is_dir():
        return build
    build.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sample-build-", dir=archive) as aside:
        unfinished = Path(aside, BUILD)
        unfinished.mkdir()
        _fill(unfinished, payload_bytes)
        try:
            unfinished.rename(build)
        except OSError:
            if not build.is_dir():  # else somebody made it at the same time
                raise
    _sync(build.parent)
    return build


def _fill(build: Path, payload_bytes: int) -> None:
    _write_payload(build / FULL_PAYLOAD, payload_bytes)
    _write_payload(build / N_TO_N_PAYLOAD, _DELTA_BYTES)
    _write_payload(build / M_TO_N_PAYLOAD, _DELTA_BYTES)
    autotest, packages, test_suites = _autotest(), _autotest_packages(), _test_suites()
    controls = {name: text for name, text in autotest.items() if "/control" in name}
    _write_tar(build / "stateful.tgz", "w:gz", _stateful())
    _write_tar(build / "autotest.tar.bz2", "w:bz2", autotest | packages | test_suites)
    _write_tar(build / "test_suites.tar.bz2", "w:bz2", test_suites)
    _write_tar(build / "control_files.tar", "w", controls)
    _write_tar(build / "autotest_packages.tar", "w", packages)
    _write_tar(build / "debug.tgz", "w:gz", _debug_symbols())
    names = sorted(path.name for path in build.iterdir())
    sums = "".join(f"{_sha256(build / name)}  {name}\n" for name in names)
    (build / "SHA256SUMS").write_text(sums)
    for path in [*build.iterdir(), build]:
        _sync(path)


def _write_payload(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        file.write(_PAYLOAD_MAGIC)
        remaining = size_bytes - len(_PAYLOAD_MAGIC)
        while remaining:
            remaining -= file.write(os.urandom(min(_BLOCK_BYTES, remaining)))


def _write_tar(path: Path, mode: _Mode, files: Mapping[str, bytes]) -> None:
    path.write_bytes(_tar(mode, files))


def _tar(mode: _Mode, files: Mapping[str, bytes]) -> bytes:
    directories = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    directories.discard(".")
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode=mode) as tar:
        for name in sorted([*directories, *files]):
            member = tarfile.TarInfo(name)
            member.mtime = _BUILT_AT
            member.uname = member.gname = "root"
            if name in directories:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
            else:
                member.mode = 0o755 if PurePosixPath(name).parent.name == "bin" else 0o644
                member.size = len(files[name])
                tar.addfile(member, io.BytesIO(files[name]))
    return written.getvalue()


def _stateful() -> dict[str, bytes]:
    files = {
        f"dev_image_new/bin/{name}": b"\x7fELF" + os.urandom(400_000)
        for name in ("gdbserver", "perf", "strace", "tcpdump", "vim")
    }
    files["dev_image_new/etc/lsb-release"] = _lsb_release().encode()
    files["var_new/cache/ld.so.cache"] = os.urandom(1_500_000)
    files["var_new/db/pkg/world"] = b"app-editors/vim\ndev-util/perf\ndev-util/strace\n"
    files["var_new/lib/dbus/machine-id"] = _hex_id(BUILD).encode() + b"\n"
    return files


def _lsb_release() -> str:
    milestone, version = BUILD.split("-")
    return (
        "CHROMEOS_RELEASE_BOARD=x86-generic\n"
        f"CHROMEOS_RELEASE_CHROME_MILESTONE={milestone.removeprefix('R')}\n"
        "CHROMEOS_RELEASE_TRACK=dev-channel\n"
        f"CHROMEOS_RELEASE_VERSION={version}\n"
    )


@dataclass(frozen=True)
class _Test:
    name: str
    side: Literal["client", "server"]
    suites: tuple[str, ...]
    has_stress_variant: bool

    @property
    def directory(self) -> str:
        return f"{self.side}/site_tests/{self.name}"


def _tests() -> Iterator[_Test]:
    named: list[tuple[Literal["client", "server"], str]] = []
    named += [("client", f"{area}_{n}") for area, ns in _CLIENT_TESTS.items() for n in ns.split()]
    named += [("server", f"{area}_{n}") for area, ns in _SERVER_TESTS.items() for n in ns.split()]
    for number, (side, name) in enumerate(named):
        suites = [suite for suite, every in (("bvt", 2), ("smoke", 3)) if number % every == 0]
        yield _Test(name, side, tuple(suites or ["regression"]), number % 4 == 0)


def _autotest() -> dict[str, bytes]:
    """The files of the autotest tree but for its packages and suites."""
    texts = {
        "client/bin/autotest": "#!/usr/bin/python\nimport common\n",
        "client/common_lib/error.py": "class TestFail(Exception):\n    pass\n",
        "server/autoserv": "#!/usr/bin/python\nimport common\n",
        "server/site_autotest.py": "from autotest_lib.server import installable_object\n",
    }
    for test in _tests():
        texts[f"{test.directory}/{test.name}.py"] = _test_code(test)
        texts[f"{test.directory}/control"] = _control(test, test.suites)
        if test.has_stress_variant:
            stress = _control(test, ("stress",), variant="stress")
            texts[f"{test.directory}/control.stress"] = stress
    return {f"autotest/{name}": text.encode() for name, text in texts.items()}


def _autotest_packages() -> dict[str, bytes]:
    """Each client test packed by itself, as machines fetch it, and the list of checksums."""
    packages = {}
    for test in _tests():
        if test.side == "client":
            files = {f"{test.name}.py": _test_code(test).encode()}
            packages[f"test-{test.name}.tar.bz2"] = _tar("w:bz2", files)
    checksums = [f"{name}:{hashlib.md5(data).hexdigest()}\n" for name, data in packages.items()]
    packages["packages.checksum"] = "".join(sorted(checksums)).encode()
    return {f"autotest/packages/{name}": data for name, data in packages.items()}


def _test_suites() -> dict[str, bytes]:
    suites: dict[str, list[str]] = {"bvt": [], "smoke": []}
    for test in _tests():
        for suite in suites.keys() & test.suites:
            suites[suite].append(f"{test.directory}/control")
    controls = {suite: sorted(paths) for suite, paths in suites.items()}
    texts = {f"control.{suite}": _suite_control(suite) for suite in suites}
    texts["suite_to_control_file_map"] = pprint.pformat(controls) + "\n"
    return {f"autotest/test_suites/{name}": text.encode() for name, text in texts.items()}


def _control(test: _Test, suites: tuple[str, ...], *, variant: str = "") -> str:
    name = f"{test.name}.{variant}" if variant else test.name
    area, _, feature = test.name.partition("_")
    attributes = ", ".join(f"suite:{suite}" for suite in suites)
    options = ", iterations=100, tag='stress'" if variant else ""
    if test.side == "client":
        run = f"job.run_test('{test.name}'{options})\n"
    else:
        run = (
            "def run(machine):\n"
            "    host = hosts.create_host(machine)\n"
            f"    job.run_test('{test.name}', host=host{options})\n"
            "\n"
            "parallel_simple(run, machines)\n"
        )
    return f'''\
AUTHOR = "chromeos-test"
NAME = "{name}"
PURPOSE = "Verify {feature} of a device that runs this build."
CRITERIA = "Fails if {feature} does not behave as specified."
ATTRIBUTES = "{attributes}"
SUITE = "{suites[0]}"
TIME = "{"LONG" if variant else "SHORT"}"
TEST_CATEGORY = "Functional"
TEST_CLASS = "{area}"
TEST_TYPE = "{test.side}"

DOC = """
Exercises {feature} ({area}) and compares what the device reports with what
is expected of it.
"""

{run}'''


def _suite_control(suite: str) -> str:
    return f'''\
AUTHOR = "chromeos-test"
NAME = "{suite}"
PURPOSE = "Run all tests of the suite {suite}."
TIME = "SHORT"
TEST_CATEGORY = "General"
TEST_CLASS = "suite"
TEST_TYPE = "Server"

DOC = """
Images devices with a build and schedules the tests of the suite {suite} on them.

@param build: the build under test, TARGET/BUILD.
@param board: the board to test on.
"""

import common
from autotest_lib.server.cros.dynamic_suite import dynamic_suite

dynamic_suite.reimage_and_run(
    build=build, board=board, name='{suite}', job=job, pool=pool, add_experimental=True)
'''


def _test_code(test: _Test) -> str:
    library = "autotest_lib.client.bin" if test.side == "client" else "autotest_lib.server"
    return f'''\
import logging

from {library} import test


class {test.name}(test.test):
    """Checks {test.name.partition("_")[2]}."""

    version = 1

    def run_once(self, host=None):
        logging.info('running {test.name}')
'''


def _debug_symbols() -> dict[str, bytes]:
    files = {}
    for name, functions in _SYMBOL_FILES.items():
        debug_id = _hex_id(f"{BUILD} {name}").upper() + "0"
        symbols = _breakpad_symbols(name, debug_id, functions)
        files[f"debug/breakpad/{name}/{debug_id}/{name}.sym"] = symbols.encode()
    return files


def _breakpad_symbols(name: str, debug_id: str, functions: tuple[str, ...]) -> str:
    """Text of Breakpad's symbol file format: every function 64 bytes long, on four lines."""
    records = [f"MODULE Linux x86 {debug_id} {name}", f"FILE 0 /build/x86-generic/src/{name}.cc"]
    for number, function in enumerate(functions):
        address = 0x1000 + 64 * number
        records.append(f"FUNC {address:x} 40 0 {function}")
        records += [f"{address + 16 * i:x} 10 {20 * number + i + 10} 0" for i in range(4)]
    records.append("PUBLIC f00 0 _start")
    return "\n".join(records) + "\n"


def _hex_id(text: str) -> str:
    """32 hexadecimal digits that are always the same for ``text``."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
