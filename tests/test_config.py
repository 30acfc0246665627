"""Configuration: flags over environment over a file over defaults, and mistakes told where made."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.archive_url import ArchiveUrl
from artifacts.config import Config, ConfigError, load_config, parse_size

WriteToml = Callable[[str], Path]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only what a test sets itself; a home of its own."""
    for name in os.environ:
        if name.upper().startswith("DEVSERVER_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def toml(tmp_path: Path) -> WriteToml:
    def write(text: str) -> Path:
        path = tmp_path / "devserver.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def mistake_in(flags: dict[str, Any], file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as refusal:
        load_config(flags, file)
    assert refusal.value.message.isprintable()
    assert "Value error" not in refusal.value.message
    return refusal.value.message


def test_without_anything_given_the_defaults_hold(tmp_path: Path) -> None:
    config = load_config({})
    assert (config.host, config.port, config.threads) == ("", 8080, 50)
    assert (config.connections, config.max_connections) == (8, 64)
    assert (config.max_unpacked, config.max_members) == (100 * 2**30, 1_000_000)
    assert config.catalog == "chromeos"
    assert config.allow_archive == ("gs://", "s3://")
    assert config.data_dir.is_relative_to(tmp_path / "home")
    assert config.static_directory == config.data_dir / "static"


def test_the_data_directory_is_where_the_desktop_keeps_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", "/srv/data")
    assert load_config({}).data_dir == Path("/srv/data/devserver")
    monkeypatch.setattr("sys.platform", "darwin")
    assert load_config({}).data_dir.parts[-2:] == ("Application Support", "devserver")


def test_flags_go_over_the_environment_over_the_file_over_the_defaults(
    monkeypatch: pytest.MonkeyPatch, toml: WriteToml
) -> None:
    file = toml("port = 1\nthreads = 2\nconnections = 3\ntries = 4\n")
    monkeypatch.setenv("DEVSERVER_PORT", "11")
    monkeypatch.setenv("DEVSERVER_THREADS", "12")
    config = load_config({"port": "21"}, file)
    assert (config.port, config.threads, config.connections) == (21, 12, 3)
    assert (config.tries, config.max_connections) == (4, 64)


def test_lists_are_replaced_not_added_to(monkeypatch: pytest.MonkeyPatch, toml: WriteToml) -> None:
    file = toml('allow_archive = ["gs://from-file"]\n')
    assert load_config({}, file).allow_archive == ("gs://from-file",)
    monkeypatch.setenv("DEVSERVER_ALLOW_ARCHIVE", "gs://from-environment")
    assert load_config({}, file).allow_archive == ("gs://from-environment",)
    flags = {"allow_archive": ("gs://from-flag", "file:///b")}
    assert load_config(flags, file).allow_archive == ("gs://from-flag", "file:///b")


@pytest.mark.parametrize("text", ["gs://a,file:///b", "gs://a, file:///b", " gs://a file:///b "])
def test_a_variable_may_hold_several_archives(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("DEVSERVER_ALLOW_ARCHIVE", text)
    config = load_config({})
    assert config.allow_archive == ("gs://a", "file:///b")
    assert config.allow_list.allows(ArchiveUrl.parse("file:///b/target/build"))
    assert not config.allow_list.allows(ArchiveUrl.parse("s3://images/target/build"))


def test_the_archive_root_is_allowed_by_being_named_and_made_canonical() -> None:
    config = load_config({"archive_root": "HTTP://Archive.Example:80/builds/"})
    assert config.archive_root == "http://archive.example/builds"
    assert config.allow_list.allows(ArchiveUrl.parse("http://archive.example/builds/t/b"))
    assert not config.allow_list.allows(ArchiveUrl.parse("http://archive.example/other/t/b"))
    assert config.allow_list.allows(ArchiveUrl.parse("gs://images/t/b"))


def test_keys_of_the_file_may_be_spelled_with_hyphens(toml: WriteToml) -> None:
    file = toml('static-dir = "/srv/static"\nmax-unpacked = "1GB"\nlog_level = "debug"\n')
    config = load_config({}, file)
    assert config.static_directory == Path("/srv/static")
    assert config.max_unpacked == 10**9
    assert config.log_level == "debug"


def test_a_key_spelled_both_ways_is_a_mistake(toml: WriteToml) -> None:
    file = toml('static-dir = "/a"\nstatic_dir = "/b"\n')
    assert mistake_in({}, file).startswith(f"static_dir in {file}: it is there twice")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("500", 500),
        ("500B", 500),
        ("1k", 1000),
        ("1K", 1000),
        ("500GB", 500 * 10**9),
        ("10GiB", 10 * 2**30),
        ("10Gi", 10 * 2**30),
        (" 1.5 TiB ", 3 * 2**39),
        ("2P", 2 * 10**15),
        ("0.1kB", 100),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_a_size_is_a_number_and_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@given(count=st.integers(0, 2**70) | st.just(10**400))
def test_a_size_in_bytes_is_exact(count: int) -> None:
    assert parse_size(str(count)) == count
    assert parse_size(f"{count}KiB") == count * 1024


@pytest.mark.parametrize(
    "text", ["", "much", "-1", "+1", "1XB", "1 G B", "GB", "1e9", "1,000", "1.", ".5", "5%", "1gb"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size like 500GB or 10GiB"):
        parse_size(text)


def test_a_size_of_the_file_may_be_a_plain_number(toml: WriteToml) -> None:
    assert load_config({}, toml("max_unpacked = 4096\n")).max_unpacked == 4096


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("port", "http", "valid integer"),
        ("port", "65536", "less than or equal to 65535"),
        ("port", "-1", "greater than or equal to 0"),
        ("connections", "0", "greater than or equal to 1"),
        ("threads", "", "valid integer"),
        ("connect_timeout", "0", "greater than 0"),
        ("stall_timeout", "soon", "valid number"),
        ("max_unpacked", "much", "not a size like 500GB or 10GiB: 'much'"),
        ("max_unpacked", "0", "greater than 0"),
        ("max_members", "1.5", "valid integer"),
        ("log_level", "loud", "'debug'"),
        ("archive_root", "builds", "not an archive URL: 'builds'"),
        ("upload_url_prefix", "builds.example.com", "not a URL like https://"),
        ("upload_url_prefix", "ftp://builds.example.com", "not a URL like https://"),
        ("upload_url_prefix", "https:///lab", "not a URL like https://"),
        ("upload_url_prefix", "https://builds.example.com/?a", "not a URL like https://"),
        ("upload_url_prefix", "https://builds.example.com/a b", "not a URL like https://"),
        ("accel_redirect", "published", "not a location of nginx, like /.published/: 'published'"),
        ("accel_redirect", "/a b/", "not a location of nginx"),
        ("accel_redirect", "/a/../b/", "not a location of nginx"),
    ],
)
def test_a_mistake_is_told_with_the_key_and_where_it_was_set(
    key: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch, toml: WriteToml
) -> None:
    message = mistake_in({key: value})
    assert message.startswith(f"--{key.replace('_', '-')}: ")
    assert reason in message

    file = toml(f"{key.replace('_', '-')} = '{value}'\n")
    message = mistake_in({}, file)
    assert message.startswith(f"{key} in {file}: ")
    assert reason in message

    monkeypatch.setenv(f"DEVSERVER_{key.upper()}", value)
    message = mistake_in({}, file)
    assert message.startswith(f"DEVSERVER_{key.upper()}: ")
    assert reason in message


def test_an_archive_that_is_no_url_is_told_wherever_it_was_set(
    monkeypatch: pytest.MonkeyPatch, toml: WriteToml
) -> None:
    assert mistake_in({"allow_archive": ("gs://", "images")}).startswith("--allow-archive: not an")
    file = toml('allow_archive = ["images"]\n')
    assert mistake_in({}, file).startswith(f"allow_archive in {file}: not an archive URL")
    monkeypatch.setenv("DEVSERVER_ALLOW_ARCHIVE", "gs://,ftp://x")
    assert mistake_in({}).startswith("DEVSERVER_ALLOW_ARCHIVE: not an archive URL: 'ftp://x'")


def test_a_variable_is_told_whatever_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("devserver_port", "http")
    assert mistake_in({}).startswith("DEVSERVER_PORT: ")


@pytest.mark.parametrize("text", ["colour = 'red'\n", "[server]\nport = 1\n"])
def test_an_unknown_key_of_the_file_is_a_mistake(toml: WriteToml, text: str) -> None:
    file = toml(text)
    key = "colour" if "colour" in text else "server"
    assert mistake_in({}, file) == f"{key} in {file}: there is no such option"


def test_variables_that_are_none_of_the_options_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEVSERVER_TOKEN", "secret")
    monkeypatch.setenv("DEVSERVER_SERVER", "http://localhost")
    assert load_config({}).model_dump() == Config().model_dump()


def test_a_file_that_cannot_be_read_is_told_by_name(tmp_path: Path, toml: WriteToml) -> None:
    missing = tmp_path / "none.toml"
    assert mistake_in({}, missing) == f"--config {missing}: No such file or directory"
    assert mistake_in({}, tmp_path) == f"--config {tmp_path}: Is a directory"
    file = toml("port 8080\n")
    assert mistake_in({}, file).startswith(f"--config {file}: not TOML: ")
    file.write_bytes(b"\xff")
    assert mistake_in({}, file).startswith(f"--config {file}: not TOML: ")
