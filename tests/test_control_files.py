"""Control files of a build: which there are, which suite they are of, and what they say."""

from __future__ import annotations

import json
import pprint
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from artifacts.archive_url import ArchiveUrl
from artifacts.build import Build
from artifacts.control_files import (
    list_control_files,
    read_control_file,
    read_suite_controls,
)
from artifacts.errors import ArchiveError, BadRequest, NotFound
from artifacts.manifest import Item, ItemState, StagedFile
from artifacts.staging import Staging

ARCHIVE_URL = ArchiveUrl.parse("gs://images/x86-generic/R17-1208.0.0")
AUTOTEST = Item.artifact("autotest")
SUITE_MAP = "autotest/test_suites/suite_to_control_file_map"
SLEEP, REBOOT = "client/tests/sleep/control", "server/tests/reboot/control.stress"

MakeBuild = Callable[..., Build]


@pytest.fixture
def make_build(tmp_path: Path) -> Iterator[MakeBuild]:
    staging = Staging(tmp_path / "static")

    def make(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> Build:
        build = staging.build(ARCHIVE_URL.name)
        build.begin(ARCHIVE_URL, {AUTOTEST: ItemState.ASKED})
        for path, data in files.items():
            source = tmp_path / "fetched"
            source.write_bytes(data)
            build.publish_file(source, path, StagedFile(len(data)))
            source.unlink()
        for path, target in (links or {}).items():
            build.publish_link(path, target)
        build.record_staged(AUTOTEST, [*files, *(links or {})], [])
        return build

    yield make
    staging.close()


def with_map(suite_map: bytes | dict[str, list[str]]) -> dict[str, bytes]:
    """Two control files that are in no suite by themselves, and a map."""
    if isinstance(suite_map, dict):
        suite_map = pprint.pformat(suite_map).encode("utf-8")
    return {f"autotest/{SLEEP}": b"", f"autotest/{REBOOT}": b"", SUITE_MAP: suite_map}


def test_control_files_are_listed_sorted_and_relative_to_autotest(make_build: MakeBuild) -> None:
    build = make_build(
        {
            f"autotest/{REBOOT}": b"",
            f"autotest/{SLEEP}": b"",
            "autotest/client/tests/sleep/sleep.py": b"",
            "autotest/client/tests/sleep/control_file": b"",
            "autotest/client/tests/sleep/my.control": b"",
            "autotest/control/readme": b"",
            "autotest_too/control": b"",
            "control": b"",
        }
    )
    assert list_control_files(build) == [SLEEP, REBOOT]


def test_a_build_without_autotest_has_no_control_files(make_build: MakeBuild) -> None:
    build = make_build({"update.gz": b"payload"})
    assert list_control_files(build) == []
    assert list_control_files(build, "bvt") == []


def test_a_file_below_autotest_is_read_as_it_is(make_build: MakeBuild) -> None:
    data = b"AUTHOR = 'caf\xe9'\r\n\0"
    build = make_build({f"autotest/{SLEEP}": data, "autotest/client/sleep.py": b"import time"})
    assert read_control_file(build, SLEEP) == data
    assert read_control_file(build, f"/{SLEEP}") == data
    assert read_control_file(build, "client/sleep.py") == b"import time"


def test_a_link_within_the_build_is_followed(make_build: MakeBuild) -> None:
    build = make_build(
        {f"autotest/{SLEEP}": b"NAME = 'x'"}, {"autotest/control": f"autotest/{SLEEP}"}
    )
    assert read_control_file(build, "control") == b"NAME = 'x'"
    assert list_control_files(build) == [SLEEP, "control"]


def test_a_link_out_of_the_build_leads_nowhere(make_build: MakeBuild, tmp_path: Path) -> None:
    (tmp_path / "static" / "secret").write_bytes(b"secret")
    build = make_build({}, {"autotest/control": "../../secret"})
    with pytest.raises(NotFound):
        read_control_file(build, "control")


@pytest.mark.parametrize(
    "path", ["..", "../update.gz", "client/../../x", "a//b", "a/", "", "/", "a\0"]
)
def test_a_path_that_leaves_the_directory_is_refused(make_build: MakeBuild, path: str) -> None:
    build = make_build({"update.gz": b"payload", f"autotest/{SLEEP}": b""})
    with pytest.raises(BadRequest, match="control_path"):
        read_control_file(build, path)


@pytest.mark.parametrize("path", ["control", "client", "client/tests/sleep/control/deeper"])
def test_a_file_that_is_not_staged_is_not_found(make_build: MakeBuild, path: str) -> None:
    build = make_build({f"autotest/{SLEEP}": b""})
    with pytest.raises(
        NotFound, match=r"x86-generic/R17-1208\.0\.0 has no control file"
    ) as refusal:
        read_control_file(build, path)
    assert repr(path) in refusal.value.message


def test_a_file_too_large_for_a_control_file_is_refused_not_cut(make_build: MakeBuild) -> None:
    build = make_build(
        {"autotest/packages.tar": bytes((4 << 20) + 1), "autotest/c": bytes(4 << 20)}
    )
    with pytest.raises(BadRequest, match=r"/static/x86-generic/.*/autotest/packages.tar"):
        read_control_file(build, "packages.tar")
    assert len(read_control_file(build, "c")) == 4 << 20


def test_a_suites_files_are_those_that_the_map_lists_and_that_are_staged(
    make_build: MakeBuild,
) -> None:
    suites = {"bvt": [REBOOT, SLEEP, SLEEP, "client/tests/gone/control"], "smoke": [f"/{SLEEP}"]}
    build = make_build(with_map(suites))
    assert list_control_files(build, "bvt") == [SLEEP, REBOOT]
    assert list_control_files(build, "smoke") == [SLEEP]
    assert list_control_files(build, "regression") == []
    assert list_control_files(build, "") == list_control_files(build, None) == [SLEEP, REBOOT]


def test_a_map_may_begin_its_paths_above_autotest(make_build: MakeBuild) -> None:
    build = make_build(with_map({"bvt": [f"autotest/{SLEEP}", f"/autotest/{REBOOT}", SLEEP]}))
    assert list_control_files(build, "bvt") == [SLEEP, REBOOT]


def test_a_path_that_can_be_either_is_relative_to_autotest(make_build: MakeBuild) -> None:
    nested = f"autotest/{SLEEP}"
    build = make_build(with_map({"bvt": [nested]}) | {f"autotest/{nested}": b""})
    assert list_control_files(build, "bvt") == [nested]


def test_a_map_as_json_is_a_literal_dict_as_well(make_build: MakeBuild) -> None:
    build = make_build(with_map(json.dumps({"bvt": [SLEEP], "smoke": []}).encode()))
    assert list_control_files(build, "bvt") == [SLEEP]


def test_the_map_counts_more_than_what_control_files_say(make_build: MakeBuild) -> None:
    files = with_map({"bvt": [REBOOT]}) | {f"autotest/{SLEEP}": b"SUITE = 'bvt'\n"}
    assert list_control_files(make_build(files), "bvt") == [REBOOT]


def test_a_map_may_have_comments_and_tuples(make_build: MakeBuild) -> None:
    build = make_build(
        with_map(f"# made by a tool\n{{\n'bvt': ('{SLEEP}',),  # one\n}}\n".encode())
    )
    assert list_control_files(build, "bvt") == [SLEEP]


def test_a_map_that_names_what_is_elsewhere_lists_nothing_of_it(make_build: MakeBuild) -> None:
    hostile = ["../update.gz", "client/../../update.gz", "autotest/../update.gz", f"./{SLEEP}"]
    hostile += ["../../../../etc/passwd", "/etc/passwd", "", ".", "a\0b", "é" * 999]
    build = make_build(with_map({"bvt": hostile}) | {"update.gz": b"payload"})
    assert list_control_files(build, "bvt") == []


@pytest.mark.parametrize(
    "expression",
    [
        "open({marker!r}, 'w')",
        "__import__('pathlib').Path({marker!r}).touch()",
        "{{'bvt': open({marker!r}, 'w')}}",
        "{{'bvt': [p for p in [open({marker!r}, 'w')]]}}",
        "{{**{{'bvt': open({marker!r}, 'w')}}}}",
        "{{f'{{open({marker!r}, chr(119))}}': []}}",
        "(lambda: open({marker!r}, 'w'))()",
        "open({marker!r}, 'w') or {{'bvt': []}}",
        "import os\nos.mkdir({marker!r})",
    ],
)
def test_a_map_is_parsed_and_never_run(
    make_build: MakeBuild, tmp_path: Path, expression: str
) -> None:
    marker = tmp_path / "it was run"
    build = make_build(with_map(expression.format(marker=str(marker)).encode("utf-8")))
    with pytest.raises(ArchiveError, match=r"suite_to_control_file_map .* is not a literal dict"):
        list_control_files(build, "bvt")
    assert not marker.exists()


@pytest.mark.parametrize(
    "suite_map",
    [
        b"",
        b"{",
        b"['bvt']",
        b"'bvt'",
        b"None",
        b"{'bvt'}",
        b"{'bvt': 7}",
        b"{'bvt': None}",
        b"{'bvt': 'client/control'}",
        b"{[]: []}",
        b"{'bvt': []}\xff",
        b"{'bvt': []}\0",
        b"{'bvt': [" + b"9" * 5000 + b"]}",
        b"[" * 100_000,
        b"-" * 100_000 + b"1",
        b"1+" * 100_000 + b"1",
        b"{'bvt': [" + b"'',\n" * 2**20 + b"]}",
    ],
    ids=lambda suite_map: repr(suite_map[:20]),
)
def test_a_map_that_is_none_is_refused_in_words_and_soon(
    make_build: MakeBuild, suite_map: bytes
) -> None:
    build = make_build(with_map(suite_map))
    begun_at = time.process_time()
    with pytest.raises(ArchiveError, match=f"{SUITE_MAP} of x86-generic/R17-1208.0.0"):
        list_control_files(build, "bvt")
    assert time.process_time() - begun_at < 2


@pytest.mark.parametrize(
    "text",
    [
        b"ATTRIBUTES = 'suite:bvt'",
        b'ATTRIBUTES="suite:smoke, suite:bvt"',
        b"NAME = 'x'\nATTRIBUTES\t=\t'suite:bvt,suite:smoke'\nTIME = 'SHORT'\n",
        b"    ATTRIBUTES = 'subsystem:x, suite:bvt '",
        b"SUITE = 'bvt'",
        b'SUITE = "smoke, bvt"\r\n',
        b"# caf\xe9\nSUITE = 'bvt'  # always",
        b"ATTRIBUTES = 'suite:smoke'\nSUITE = 'bvt'",
        b'ATTRIBUTES = "it\'s, suite:bvt"',
    ],
)
def test_without_a_map_control_files_say_their_suites_themselves(
    make_build: MakeBuild, text: bytes
) -> None:
    build = make_build({f"autotest/{SLEEP}": text, f"autotest/{REBOOT}": b"SUITE = 'other'"})
    assert list_control_files(build, "bvt") == [SLEEP]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"NAME = 'bvt'",
        b"ATTRIBUTES = 'bvt'",
        b"ATTRIBUTES = 'suite:bvt-inline'",
        b"ATTRIBUTES = 'suite:bvt",
        b"ATTRIBUTES = 'suite:bvt\"",
        b"# ATTRIBUTES = 'suite:bvt'",
        b"NO_ATTRIBUTES = 'suite:bvt'",
        b"ATTRIBUTES == 'suite:bvt'",
        b"SUITE = 'bvt-inline'",
        b"SUITE = bvt",
        b"SUITES = 'bvt'",
        b"# SUITE = 'bvt'",
        b"SUITE = '\nbvt'",
    ],
)
def test_a_control_file_is_of_no_suite_that_it_does_not_name(
    make_build: MakeBuild, text: bytes
) -> None:
    assert list_control_files(make_build({f"autotest/{SLEEP}": text}), "bvt") == []


def test_a_suites_control_files_come_with_their_texts(make_build: MakeBuild) -> None:
    files = with_map({"bvt": [SLEEP, "client/tests/gone/control"], "smoke": [REBOOT]})
    build = make_build(files | {f"autotest/{SLEEP}": "NAME = 'café'\n".encode()})
    assert read_suite_controls(build, "bvt") == {SLEEP: "NAME = 'café'\n"}
    assert read_suite_controls(build, "smoke") == {REBOOT: ""}
    assert read_suite_controls(build, "nothing") == {}


def test_without_a_map_the_texts_are_those_that_name_the_suite(make_build: MakeBuild) -> None:
    build = make_build({f"autotest/{SLEEP}": b"SUITE = 'bvt'", f"autotest/{REBOOT}": b""})
    assert read_suite_controls(build, "bvt") == {SLEEP: "SUITE = 'bvt'"}


def test_a_text_that_is_not_utf8_has_other_characters_instead(make_build: MakeBuild) -> None:
    files = with_map({"bvt": [SLEEP]}) | {f"autotest/{SLEEP}": b"AUTHOR = 'caf\xe9'\0"}
    assert read_suite_controls(make_build(files), "bvt") == {SLEEP: "AUTHOR = 'caf\ufffd'\0"}


def test_a_link_that_leads_nowhere_is_in_no_suite(make_build: MakeBuild) -> None:
    build = make_build(with_map({"bvt": [SLEEP, "control"]}), {"autotest/control": "gone"})
    assert read_suite_controls(build, "bvt") == {SLEEP: ""}


def test_texts_that_are_too_large_for_one_answer_are_refused(make_build: MakeBuild) -> None:
    large = {f"client/tests/t{number}/control": bytes(4 << 20) for number in range(5)}
    suite_map = {"large": list(large), "most": list(large)[:4], "one": ["packages.tar"]}
    build = make_build(
        {f"autotest/{path}": data for path, data in large.items()}
        | with_map(suite_map)
        | {"autotest/packages.tar": bytes((4 << 20) + 1)}
    )
    with pytest.raises(BadRequest, match=r"5 control files of suite 'large' have 20,971,520"):
        read_suite_controls(build, "large")
    with pytest.raises(BadRequest, match=r"'packages\.tar' has 4,194,305 bytes"):
        read_suite_controls(build, "one")
    assert sum(map(len, read_suite_controls(build, "most").values())) == 16 << 20


def test_control_files_that_were_removed_by_hand_are_not_found(
    make_build: MakeBuild, tmp_path: Path
) -> None:
    build = make_build({f"autotest/{SLEEP}": b"SUITE = 'bvt'"})
    (build.directory / "autotest" / SLEEP).unlink()
    for read in (
        lambda: read_control_file(build, SLEEP),
        lambda: list_control_files(build, "bvt"),
        lambda: read_suite_controls(build, "bvt"),
    ):
        with pytest.raises(NotFound, match=SLEEP):
            read()


def test_a_file_that_is_no_control_file_is_in_no_suite(make_build: MakeBuild) -> None:
    assert list_control_files(make_build({"autotest/client/x.py": b"SUITE = 'bvt'"}), "bvt") == []


@pytest.mark.parametrize(
    "text",
    [
        b"\n" * 200_000,
        b" " * 200_000,
        b" \n" * 100_000,
        b"ATTRIBUTES" + b" " * 200_000,
        b"ATTRIBUTES='" * 20_000,
        b"SUITE = '\n" * 20_000,
        b"SUITE='a'\n" * 20_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_hostile_control_files_take_no_time(make_build: MakeBuild, text: bytes) -> None:
    build = make_build({f"autotest/{SLEEP}": text})
    begun_at = time.process_time()
    assert list_control_files(build, "bvt") == []
    assert time.process_time() - begun_at < 2
