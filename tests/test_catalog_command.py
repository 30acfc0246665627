"""devserver catalog: what it says of a catalog, of a build seen through one, and to an editor."""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from archive_server import ArchiveServer, Fault
from test_command_line import devserver

from artifacts.commands.sample_build import BUILD, FULL_PAYLOAD, TARGET

LAMPS = """
[artifacts.image]
files = ["{target}_image.zst", "image.zst"]
when = "foreground"
required = true
publish_as = "image.zst"

[artifacts.tests]
files = ["tests.tar.gz"]
unpack = true
directory = "tests"
brings = ["symbols"]

[artifacts.symbols]
files = ["symbols-[ab].dbg"]
directory = "debug/{build}"
links = { latest = "debug/{build}" }

[artifacts.manual]
files = ["manual.pdf"]
"""


@pytest.fixture
def lamps(tmp_path: Path) -> str:
    """The file of a catalog."""
    file = tmp_path / "lamps.toml"
    file.write_text(LAMPS)
    return str(file)


@pytest.fixture
def lamp(tmp_path: Path) -> Path:
    """The directory of a build with files of 1,500 bytes each."""
    build = tmp_path / "lamps" / "lamp-release" / "R2"
    build.mkdir(parents=True)
    for name in ("image.zst", "tests.tar.gz", "symbols-a.dbg", "symbols-b.dbg", "UPLOADED"):
        (build / name).write_bytes(bytes(1500))
    return build


def rows(text: str) -> list[list[str]]:
    """The cells of a printed table, empty ones left out."""
    return [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.split("\n")
    ]


def test_a_valid_catalog_is_told_with_its_artifacts(lamps: str) -> None:
    ended = devserver("catalog", "check", lamps)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert rows(ended.stdout) == [
        [f"{lamps} is valid: 4 artifacts"],
        ["artifact", "when", "files", "goes to"],
        ["image", "foreground, required", "{target}_image.zst or image.zst", "image.zst"],
        ["tests", "request", "tests.tar.gz", "tests/, unpacked"],
        ["symbols", "request", "symbols-[ab].dbg", "debug/{build}/its name"],
        ["manual", "request", "manual.pdf", "its name"],
        [],
    ]
    as_json = json.loads(devserver("catalog", "check", "--json", lamps).stdout)
    assert as_json["problems"] == []
    assert as_json["artifacts"][1] == {
        "name": "tests",
        "files": ["tests.tar.gz"],
        "unpack": True,
        "directory": "tests",
        "brings": ["symbols"],
    }


@pytest.mark.parametrize("name", ["chromeos", "android", "everything"])
def test_shipped_catalogs_are_checked_by_name(name: str) -> None:
    ended = devserver("catalog", "check", name)
    assert ended.returncode == 0
    assert ended.stdout.startswith(f"{name} is valid: ")


def test_a_wrong_catalog_has_failed_its_check(tmp_path: Path) -> None:
    file = tmp_path / "lamps.toml"
    file.write_text("[artifacts.image]\nfiles = []\n")
    told = f"catalog {file}: artifacts.image.files: is empty"
    ended = devserver("catalog", "check", str(file))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"devserver: {told}\n"
    as_json = devserver("catalog", "check", str(file), "--json")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout) == {"catalog": str(file), "problems": [told]}


def test_wrong_use_is_told_as_such(lamps: str) -> None:
    assert devserver("catalog", "check").returncode == 2
    assert devserver("catalog", "nonsense").returncode == 2
    ended = devserver("catalog", "check", lamps, "nonsense")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "not an archive URL: 'nonsense'" in ended.stderr


def test_a_build_is_shown_as_the_catalog_would_stage_it(lamps: str, lamp: Path) -> None:
    ended = devserver("catalog", "check", lamps, f"file://{lamp}")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert rows(ended.stdout) == [
        [f"{lamps} would stage of file://{lamp}:"],
        ["artifact", "when", "file", "size", "goes to"],
        ["image", "foreground, required", "image.zst", "1.5 kB", "image.zst"],
        ["tests", "request", "tests.tar.gz", "1.5 kB", "tests/, unpacked"],
        ["symbols", "request", "symbols-a.dbg", "1.5 kB", "debug/R2/symbols-a.dbg"],
        ["symbols-b.dbg", "1.5 kB", "debug/R2/symbols-b.dbg"],
        ["link to debug/R2", "latest"],
        ["manual", "request", "not in this build"],
        ["UPLOADED", "1.5 kB", "in no artifact"],
        [],
    ]
    as_json = json.loads(devserver("catalog", "check", "--json", lamps, f"file://{lamp}").stdout)
    assert as_json["archive_url"] == f"file://{lamp}"
    assert as_json["problems"] == []
    assert as_json["other_files"] == [{"name": "UPLOADED", "size": 1500}]
    assert as_json["artifacts"][1:3] == [
        {
            "name": "tests",
            "when": "request",
            "required": False,
            "brings": ["symbols"],
            "unpack": True,
            "files": [{"name": "tests.tar.gz", "size": 1500, "path": "tests"}],
            "links": {},
        },
        {
            "name": "symbols",
            "when": "request",
            "required": False,
            "brings": [],
            "unpack": False,
            "files": [
                {"name": f"symbols-{x}.dbg", "size": 1500, "path": f"debug/R2/symbols-{x}.dbg"}
                for x in "ab"
            ],
            "links": {"latest": "debug/R2"},
        },
    ]


def test_what_a_build_has_to_have_and_lacks_fails_the_check(lamps: str, lamp: Path) -> None:
    (lamp / "image.zst").unlink()
    ended = devserver("catalog", "check", lamps, f"file://{lamp}")
    assert ended.returncode == 1
    assert ["image", "foreground, required", "not in this build"] in rows(ended.stdout)
    assert ended.stderr == (
        "devserver: image: lamp-release/R2 does not have it, and it is required\n"
    )


def test_files_that_clash_fail_the_check_with_their_names(tmp_path: Path, lamp: Path) -> None:
    file = tmp_path / "clash.toml"
    file.write_text(
        "[artifacts.one]\nfiles = ['symbols-*.dbg']\npublish_as = 'one.dbg'\n"
        "[artifacts.image]\nfiles = ['i*.zst']\npublish_as = 'UPLOADED'\n"
        "[artifacts.all]\nfiles = ['U*']\n"
    )
    ended = devserver("catalog", "check", str(file), f"file://{lamp}")
    assert ended.returncode == 1
    assert ["one", "request", "cannot be staged"] in rows(ended.stdout)
    several, clash = ended.stderr.removeprefix("devserver: ").split("; ", 1)
    assert several.startswith("one: lamp-release/R2 has several files for one: symbols-")
    assert clash.startswith("lamp-release/R2 has two files for UPLOADED: image.zst (image) and ")


def test_an_archive_over_http_is_listed_and_nothing_of_it_fetched(
    archive: ArchiveServer, build_url: str
) -> None:
    ended = devserver("catalog", "check", "chromeos", build_url)
    assert (ended.returncode, ended.stderr) == (0, "")
    nton = f"au/{BUILD}_nton/update.gz"
    assert sum(nton in row for row in rows(ended.stdout)) == 2  # nton_payload, delta_payloads
    name = f"/{TARGET}/{BUILD}/{FULL_PAYLOAD}"
    assert ["full_payload", "foreground, required", FULL_PAYLOAD, "5.0 MB", "update.gz"] in rows(
        ended.stdout
    )
    assert archive.bytes_sent(name) == 0


def test_an_archive_that_cannot_be_listed_is_told(archive: ArchiveServer, build_url: str) -> None:
    missing = devserver("catalog", "check", "chromeos", f"{build_url}x")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == f"devserver: no such build: {build_url}x\n"
    archive.misbehave(f"/{TARGET}/{BUILD}/*", Fault(status=403))
    denied = devserver("catalog", "check", "chromeos", build_url)
    assert (denied.returncode, denied.stdout) == (1, "")
    assert len(denied.stderr.splitlines()) == 1 and "403" in denied.stderr


def test_the_schema_accepts_the_shipped_catalogs_and_refuses_mistakes() -> None:
    ended = devserver("catalog", "schema")
    assert ended.returncode == 0
    schema = json.loads(ended.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    for name in ("chromeos", "android", "everything"):
        text = (resources.files("artifacts") / "catalogs" / f"{name}.toml").read_text()
        jsonschema.validate(tomllib.loads(text), schema)
    for mistake in (
        {},
        {"artifacts": {}},
        {"artifacts": {"Image": {"files": ["x"]}}},
        {"artifacts": {"image": {}}},
        {"artifacts": {"image": {"files": []}}},
        {"artifacts": {"image": {"files": ["x"], "parts": ["image"]}}},
        {"artifacts": {"image": {"files": ["x"], "file": "y"}}},
        {"artifacts": {"image": {"files": ["x"], "when": "now"}}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(mistake, schema)
    described = schema["$defs"]["Artifact"]["properties"]
    assert all(key["description"] for key in described.values())
