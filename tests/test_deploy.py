"""The files of deploy/ agree with each other, and with devserver."""

from __future__ import annotations

import json
import re
from configparser import ConfigParser
from pathlib import Path

import pytest
from running_server import REPOSITORY

from artifacts.config import Config, load_config

DEPLOY = REPOSITORY / "deploy"


@pytest.fixture
def nginx() -> str:
    return (DEPLOY / "nginx.conf").read_text()


@pytest.fixture
def unit() -> ConfigParser:
    return read_unit(DEPLOY / "devserver.service")


@pytest.fixture
def config() -> Config:
    return load_config({}, DEPLOY / "devserver.toml")


def read_unit(path: Path) -> ConfigParser:
    # A key may be there twice; none of those is looked at.
    parser = ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text())
    return parser


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, pattern
    return match[1]


def test_nginx_and_devserver_meet(nginx: str, config: Config) -> None:
    assert found(r"server (\S+);", nginx) == f"{config.host}:{config.port}"
    assert found(r"location \^~ (\S+) \{\s+internal;", nginx) == config.accel_redirect
    assert found(r"syslog:server=unix:(/[^,]+),", nginx) == str(config.nginx_log)


def test_the_services_directories_are_those_that_are_configured(
    nginx: str, unit: ConfigParser, config: Config
) -> None:
    state, static = unit["Service"]["StateDirectory"].split()
    assert config.data_dir == Path("/var/lib", state)
    assert config.static_directory == Path("/var/lib", static)
    assert config.nginx_log is not None
    assert config.nginx_log.parent == Path("/run", unit["Service"]["RuntimeDirectory"])
    assert unit["Service"]["ExecStart"].endswith(" serve --config /etc/devserver.toml")

    shown = read_unit(DEPLOY / "nginx.service.d" / "devserver.conf")["Service"]
    there, here = shown["BindReadOnlyPaths"].split(":")
    assert there == f"/var/lib/private/{static}"
    assert here == found(r"map \"\" \$static_files \{\s+default (\S+);", nginx)


def test_the_service_is_given_the_time_that_its_end_takes(
    unit: ConfigParser, config: Config
) -> None:
    assert int(unit["Service"]["TimeoutStopSec"]) > config.shutdown_timeout + 30


def test_the_container_has_all_that_the_package_is_made_of() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)
        for source in line.split()[:-1]
    }
    for source in copied:
        assert (REPOSITORY / source).exists(), source
    assert {"devserver.py", "downloader.py", "artifacts", "static", "setup.cfg"} <= copied
    assert Config().port == int(found(r"EXPOSE (\d+)", text))
    check = json.loads(found(r"HEALTHCHECK [^\[]*(\[[^\]]*\])", text).replace("\\\n", ""))
    assert f":{Config().port}/health" in check[-1]
