"""Mistakes in catalogs: told by file, key and reason, in words, before a server starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_command_line import devserver

from artifacts.catalog import Catalog
from artifacts.catalog_file import CatalogError, parse_catalog

IMAGE = "[artifacts.image]\nfiles = ['x']\n"
OTHER = "[artifacts.other]\nfiles = ['y']\n"


def refusal(text: str) -> str:
    with pytest.raises(CatalogError) as error:
        parse_catalog(text)
    return error.value.message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "artifacts: is missing"),
        ("[artifacts]", "artifacts: is empty"),
        ("artifacts = 3", "artifacts: has to be a table, and is 3"),
        ("[[artifacts]]\nfiles = ['x']", 'artifacts: has to be a table, and is [{"files": ["x"]}]'),
        ("[artifacts]\nimage = 'x'", 'artifacts.image: has to be a table, and is "x"'),
        (
            "[artifact.image]\nfiles = ['x']",
            "artifact: there is no such key (there are: artifacts)",
        ),
        ("[image]\nfiles = ['x']", "image: there is no such key (there are: artifacts)"),
        (f"title = 'x'\n{IMAGE}", "title: there is no such key (there are: artifacts)"),
        ("[artifacts.image]", "artifacts.image.files: is missing"),
        ("[artifacts.image]\nfiles = []", "artifacts.image.files: is empty"),
        ("[artifacts.image]\nfiles = 'x'", 'artifacts.image.files: has to be a list, and is "x"'),
        (
            "[artifacts.image]\nfiles = ['x', 1]",
            "artifacts.image.files: has to be a text in quotes, and is 1",
        ),
        ("[artifacts.image]\nfiles = ['']", "artifacts.image.files: a pattern is empty"),
        ("[artifacts.image]\nfiles = ['x', 'x']", "artifacts.image.files: 'x' is there twice"),
        (
            f"{IMAGE}when = 'now'",
            "artifacts.image.when: has to be 'foreground', 'background' or 'request', "
            'and is "now"',
        ),
        (f"{IMAGE}unpack = 1", "artifacts.image.unpack: has to be true or false, and is 1"),
        (
            f"{IMAGE}required = 'true'",
            'artifacts.image.required: has to be true or false, and is "true"',
        ),
        (
            f"{IMAGE}directory = 2026-11-20",
            'artifacts.image.directory: has to be a text in quotes, and is "2026-11-20"',
        ),
        (f"{IMAGE}links = ['a']", 'artifacts.image.links: has to be a table, and is ["a"]'),
        (
            f"{IMAGE}links = {{ 'a/b' = 1 }}",
            'artifacts.image.links."a/b": has to be a text in quotes, and is 1',
        ),
        (f"{IMAGE}links = {{}}", "artifacts.image.links: is empty"),
        (f"{IMAGE}brings = []", "artifacts.image.brings: is empty"),
        (
            "[artifacts.Image]\nfiles = ['x']",
            "artifacts.Image: a name has up to 100 lower-case letters, digits and _, "
            "a letter first",
        ),
        (
            "[artifacts.'a b']\nfiles = ['x']",
            'artifacts."a b": a name has up to 100 lower-case letters, digits and _, '
            "a letter first",
        ),
        (
            "[artifacts.image]\nfiles = ['regex:(']",
            "artifacts.image.files: not a regular expression: '(': "
            "missing ), unterminated subpattern at position 0",
        ),
        (
            f"{IMAGE}directory = '/etc'",
            "artifacts.image.directory: a path must be relative: '/etc'",
        ),
        (
            f"{IMAGE}directory = 'a//b'",
            "artifacts.image.directory: a path has an empty segment: 'a//b'",
        ),
        (
            f"{IMAGE}directory = '.devserver'",
            "artifacts.image.directory: names that begin with a dot are not served: '.devserver'",
        ),
        (
            f"{IMAGE}publish_as = 'a/../../x'",
            "artifacts.image.publish_as: a path must not have a segment '..'",
        ),
        (f"{IMAGE}publish_as = ''", "artifacts.image.publish_as: a path is empty"),
        (
            f"{IMAGE}links = {{ a = '../../etc/passwd' }}",
            "artifacts.image.links: a path must not have a segment '..'",
        ),
        (
            f"{IMAGE}links = {{ '/a' = 'b' }}",
            "artifacts.image.links: a path must be relative: '/a'",
        ),
        (f"{IMAGE}links = {{ a = 'a' }}", "artifacts.image.links: 'a' leads to itself"),
        (
            "[artifacts.image]\nfiles = ['../x']",
            "artifacts.image.files: a pattern must not have a segment '..'",
        ),
        (
            "[artifacts.image]\nfiles = ['/x/*.bin']",
            "artifacts.image.files: a pattern must be relative: '/x/*.bin'",
        ),
        (
            f"{IMAGE}unpack = true\ninclude = ['bin/']",
            "artifacts.image.include: a pattern has an empty segment: 'bin/'",
        ),
    ],
)
def test_a_wrong_key_is_told_with_the_reason(text: str, told: str) -> None:
    assert refusal(text) == told


def test_a_misspelled_key_is_told_with_those_that_there_are() -> None:
    told = refusal("[artifacts.image]\nfile = ['x']")
    assert told.startswith("artifacts.image.file: there is no such key (there are: files, parts, ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("files", "['{foo}.bin']"),
        ("files", "['regex:{foo}[.]bin']"),
        ("directory", "'{foo}'"),
        ("publish_as", "'{foo}'"),
        ("links", "{ a = '{foo}' }"),
        ("links", "{ '{foo}' = 'a' }"),
        ("include", "['{foo}']"),
        ("exclude", "['{foo}/**']"),
    ],
)
def test_a_placeholder_that_there_is_not_is_refused_wherever_one_may_stand(
    key: str, value: str
) -> None:
    files = "" if key == "files" else "files = ['x']\n"
    assert refusal(f"[artifacts.image]\n{files}{key} = {value}") == (
        f"artifacts.image.{key}: there is no placeholder {{foo}}; "
        "there are {target}, {build} and {board}"
    )


@pytest.mark.parametrize("braces", ["{Target}", "{ build }", "{a,b}"])
def test_what_is_nearly_a_placeholder_is_refused(braces: str) -> None:
    assert f"no placeholder {braces};" in refusal(f"[artifacts.image]\nfiles = ['x-{braces}']")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("unpack = true\npublish_as = 'x'", "publish_as: has no effect with unpack = true"),
        ("include = ['x']", "include: has no effect without unpack = true"),
        ("unpack = false\nexclude = ['x']", "exclude: has no effect without unpack = true"),
    ],
)
def test_a_key_without_effect_is_refused(keys: str, told: str) -> None:
    assert refusal(IMAGE + keys) == f"artifacts.image.{told}"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("parts = ['nothing']", "parts: there is no artifact 'nothing' in this catalog"),
        ("parts = ['both']", "parts: 'both' has parts itself"),
        ("parts = ['tree']", "parts: 'tree' is unpacked, and no part can be"),
        (
            "parts = ['image']\nfiles = ['x']",
            "files: has no effect on an artifact that is made of parts",
        ),
        (
            "parts = ['image']\ndirectory = 'x'",
            "directory: has no effect on an artifact that is made of parts",
        ),
    ],
)
def test_parts_that_cannot_be_are_refused(keys: str, told: str) -> None:
    tree = "[artifacts.tree]\nfiles = ['z']\nunpack = true\n"
    assert refusal(f"{IMAGE}{tree}[artifacts.both]\n{keys}") == f"artifacts.both.{told}"


@pytest.mark.parametrize(
    ("brings", "told"),
    [
        ({"a": "b"}, "a.brings: there is no artifact 'b' in this catalog"),
        ({"a": "a"}, "a.brings: goes in a circle: a brings a"),
        ({"a": "b", "b": "a"}, "a.brings: goes in a circle: a brings b brings a"),
        ({"c": "a", "a": "b", "b": "a"}, "a.brings: goes in a circle: a brings b brings a"),
    ],
)
def test_bringing_what_is_not_there_or_in_a_circle_is_refused(
    brings: dict[str, str], told: str
) -> None:
    tables = [f"[artifacts.{a}]\nfiles = ['{a}']\nbrings = ['{b}']\n" for a, b in brings.items()]
    assert refusal("".join(tables)) == f"artifacts.{told}"


@pytest.mark.parametrize(
    ("image", "other", "told"),
    [
        (
            "publish_as = 'a.bin'",
            "publish_as = 'a.bin'",
            "publish_as: 'a.bin' is taken; artifacts.image.publish_as puts something there",
        ),
        (
            "directory = 'd/{build}'\npublish_as = 'a.bin'",
            "publish_as = 'd/{build}/a.bin'",
            "publish_as: 'd/{build}/a.bin' is taken; "
            "artifacts.image.publish_as puts something there",
        ),
        (
            "",
            "publish_as = 'x'",
            "publish_as: 'x' is taken; artifacts.image.files puts something there",
        ),
        (
            "links = { 'a' = 'b' }",
            "publish_as = 'a'",
            "publish_as: 'a' is taken; artifacts.image.links puts something there",
        ),
        (
            "links = { 'a' = 'b' }",
            "links = { 'a' = 'c' }",
            "links: 'a' is taken; artifacts.image.links puts something there",
        ),
        (
            "publish_as = 'a'",
            "directory = 'a/b'",
            "directory: 'a' has to be a directory; artifacts.image.publish_as puts something there",
        ),
        (
            "links = { 'latest' = 'au' }",
            "unpack = true\ndirectory = 'latest'",
            "directory: 'latest' has to be a directory; artifacts.image.links puts something there",
        ),
    ],
)
def test_two_artifacts_with_one_place_are_refused(image: str, other: str, told: str) -> None:
    assert refusal(f"{IMAGE}{image}\n{OTHER}{other}") == f"artifacts.other.{told}"


@pytest.mark.parametrize(
    ("image", "other"),
    [
        ("publish_as = 'a'", "publish_as = 'b'"),
        ("publish_as = 'a-{target}'", "publish_as = 'a-{build}'"),
        ("directory = 'd'\npublish_as = 'a'", "directory = 'e'\npublish_as = 'a'"),
        ("directory = 'd'", "directory = 'd'"),
        ("unpack = true\ndirectory = 'd'", "unpack = true\ndirectory = 'd'"),
        ("links = { 'd/a' = 'b' }", "links = { 'd/a' = 'b' }"),
    ],
)
def test_artifacts_that_share_no_place_are_allowed(image: str, other: str) -> None:
    assert len(parse_catalog(f"{IMAGE}{image}\n{OTHER}{other}")) == 2


def test_the_same_file_at_the_same_place_is_no_mistake() -> None:
    same = "publish_as = 'update.gz'\ndirectory = 'au'\n"
    assert parse_catalog(f"{IMAGE}{same}{OTHER.replace('y', 'x')}{same}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (IMAGE + IMAGE, "line 3: a name is given twice: [artifacts.image]"),
        (f"{IMAGE}files = ['y']", "line 3: a name is given twice: files = ['y']"),
        ("files = [", "is not TOML: Invalid value (at end of document)"),
        ("<artifacts/>", "is not TOML: Invalid statement (at line 1, column 1)"),
        ("[artifacts.image]\nfiles = " + "[" * 100_000, "is nested too deeply"),
    ],
)
def test_what_is_not_toml_is_told_with_the_line(text: str, told: str) -> None:
    assert refusal(text) == told


@given(st.text(alphabet="[]{}='\"ab.\n\\#{1", max_size=80))
def test_no_text_is_worse_than_refused(text: str) -> None:
    try:
        parse_catalog(f"[artifacts.image]\nfiles = ['{text}']")
    except CatalogError as error:
        assert "\n" not in error.message


def test_a_file_that_is_none_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "huge.toml").write_bytes(b"#" * ((1 << 20) + 1))
    os.mkfifo(tmp_path / "pipe.toml")
    for name, told in {
        "androit": "No such file or directory "
        "(these come with devserver: android, chromeos, everything)",
        str(tmp_path): "is a directory",
        str(tmp_path / "pipe.toml"): "is not a file",
        str(tmp_path / "binary.toml"): "is not TOML: 'utf-8' codec can't decode byte 0xff "
        "in position 0: invalid start byte",
        str(tmp_path / "huge.toml"): "is larger than 1,048,576 bytes, as no catalog is",
    }.items():
        with pytest.raises(CatalogError) as error:
            Catalog.load(name)
        assert error.value.message == f"catalog {name}: {told}"


def test_a_name_that_is_no_shipped_one_is_a_file_and_never_leads_among_them() -> None:
    for name in ("../catalogs/chromeos", "Chromeos", "chromeos.toml", "a\0b"):
        with pytest.raises(CatalogError, match="these come with devserver"):
            Catalog.load(name)


def test_a_server_with_a_wrong_catalog_does_not_start(tmp_path: Path) -> None:
    catalog = tmp_path / "lamps.toml"
    catalog.write_text("[artifacts.image]\nfiles = ['{foo}']\n")
    ended = devserver(
        "--port", "0", "--data-dir", str(tmp_path / "data"), "--catalog", str(catalog)
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        f"devserver: catalog {catalog}: artifacts.image.files: there is no placeholder {{foo}}; "
        "there are {target}, {build} and {board}\n"
    )
    assert not (tmp_path / "data").exists()
