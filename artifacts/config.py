"""Configuration: flags over environment over a TOML file over defaults."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from artifacts.archive_url import AllowList, ArchiveUrl
from artifacts.errors import DevserverError

ENVIRONMENT_PREFIX = "DEVSERVER_"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGTP]?)(i?)B?")
_WEB_URL = re.compile(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?")
_LOCATION = re.compile(r"/(?!.*\.\.)[A-Za-z0-9._~/-]*")


class ConfigError(DevserverError):
    """A mistake in the configuration; the message names the key and where it was set."""


def parse_size(text: object) -> object:
    """Turn ``500GB``, ``10GiB`` or a plain number into bytes; leave what is not text alone."""
    if not isinstance(text, str):
        return text
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"not a size like 500GB or 10GiB: {text!r}")
    exponent = " KMGTP".index(match[2].upper() or " ")
    return int(Fraction(match[1]) * (1024 if match[3] else 1000) ** exponent)


def _split(value: object) -> object:
    return (
        [part for part in re.split(r"[,\s]+", value) if part] if isinstance(value, str) else value
    )


def _default_data_directory() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "devserver"
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "devserver"


Size = Annotated[int, BeforeValidator(parse_size)]
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Seconds = Annotated[float, Field(gt=0)]


class Config(BaseSettings):
    """What ``devserver serve`` can be told. The descriptions are the command line's help."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="forbid", frozen=True)

    host: str = Field("", description="address to listen on; all of them by default")
    port: int = Field(8080, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    tls_certificate: Path | None = Field(
        None, description="file with the certificate chain; given, requests come by HTTPS alone"
    )
    tls_key: Path | None = Field(
        None, description="file with the certificate's key, unless it is in the same file"
    )
    portfile: Path | None = Field(
        None, description="file to write the port to, once requests are answered"
    )
    pidfile: Path | None = Field(None, description="file to write the process id to, likewise")
    data_dir: Path = Field(
        default_factory=_default_data_directory, description="everything the server keeps"
    )
    static_dir: Path | None = Field(
        None, description="what /static serves; static/ in the data directory by default"
    )
    catalog: str = Field(
        "chromeos",
        description="what builds consist of: chromeos, android, everything or a TOML file",
    )
    allow_archive: Words = Field(
        ("gs://", "s3://"), description="archive URLs that may be staged, as a prefix; repeatable"
    )
    archive_root: str | None = Field(
        None, description="archive in which a build named only TARGET/BUILD is looked for"
    )
    connections: int = Field(
        8, ge=1, le=256, description="parallel connections to an archive for one file"
    )
    max_connections: int = Field(
        64, ge=1, le=4096, description="parallel connections to archives in all"
    )
    threads: int = Field(50, ge=1, le=10_000, description="threads that answer requests")
    max_unpacked: Size = Field(
        100 * 2**30, gt=0, description="limit of what one archive file may unpack to, as 100GiB"
    )
    max_members: int = Field(
        1_000_000, gt=0, description="limit of how many members one archive file may have"
    )
    connect_timeout: Seconds = Field(
        10, description="seconds in which an archive has to accept a connection"
    )
    stall_timeout: Seconds = Field(
        30, description="seconds without a byte from an archive after which a read is tried again"
    )
    tries: int = Field(5, ge=1, le=100, description="how often a read may fail in a row")
    database_url: str | None = Field(
        None,
        description="where uploads are recorded: sqlite:////PATH or postgresql://USER@HOST/NAME; "
        "a file in the data directory by default",
    )
    blob_storage: str | None = Field(
        None,
        description="where uploads are kept: a directory, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX;"
        " blobs/ in the data directory by default",
    )
    upload_url_prefix: str | None = Field(
        None, description="URL at which uploaders reach this server, if it is behind a proxy"
    )
    minidump_stackwalk: Path | None = Field(
        None, description="Breakpad's stack walker; the one on PATH by default"
    )
    dump_syms: Path | None = Field(
        None,
        description="Breakpad's converter of debug files; by default the one beside the stack "
        "walker, or on PATH",
    )
    walk_timeout: Annotated[float, Field(gt=0, le=86_400)] = Field(
        60, description="seconds that the stack walker gets for a minidump"
    )
    accel_redirect: str | None = Field(
        None,
        description="nginx's internal location of the static directory, if nginx sends the bodies",
    )
    nginx_log: Path | None = Field(
        None, description="Unix socket to make, on which nginx says which builds it has served"
    )
    wait_timeout: Seconds = Field(3600, description="seconds after which a waiting call gives up")
    client_timeout: Seconds = Field(
        300, description="seconds after which a client that takes nothing of its answer is cut"
    )
    shutdown_timeout: Annotated[float, Field(ge=0)] = Field(
        30, description="seconds that what is under way gets when the server ends"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="how much to log: debug, info, warning or error"
    )

    @field_validator("allow_archive")
    @classmethod
    def _prefixes_are_urls(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        try:
            AllowList(prefixes)
        except DevserverError as error:
            raise ValueError(error.message) from error
        return prefixes

    @field_validator("archive_root")
    @classmethod
    def _root_is_url(cls, root: str | None) -> str | None:
        try:
            return root and str(ArchiveUrl.parse_prefix(root))
        except DevserverError as error:
            raise ValueError(error.message) from error

    @field_validator("accel_redirect")
    @classmethod
    def _prefix_is_path(cls, prefix: str | None) -> str | None:
        # Nothing that is to be encoded: it would have to be the same here and in nginx.conf.
        if prefix is not None and not _LOCATION.fullmatch(prefix):
            raise ValueError(f"not a location of nginx, like /.published/: {prefix!r}")
        return prefix

    @field_validator("upload_url_prefix")
    @classmethod
    def _upload_url_is_http(cls, url: str | None) -> str | None:
        if url is not None and not _WEB_URL.fullmatch(url):
            raise ValueError(f"not a URL like https://devserver.example.com: {url!r}")
        return url and url.rstrip("/")

    @property
    def static_directory(self) -> Path:
        return self.static_dir or self.data_dir / "static"

    @property
    def certificate(self) -> tuple[Path, Path] | None:
        """The files of the certificate's chain and of its key, to serve HTTPS; None for HTTP.

        Raises:
            ConfigError: there is a key alone, and so HTTPS is expected.
        """
        if self.tls_certificate is None:
            if self.tls_key is not None:
                raise ConfigError("--tls-key is of no use without --tls-certificate; give both")
            return None
        return self.tls_certificate, self.tls_key or self.tls_certificate

    @property
    def allow_list(self) -> AllowList:
        """The archives that may be read; the archive root is allowed by being named."""
        return AllowList((*self.allow_archive, *filter(None, [self.archive_root])))


def load_config(flags: Mapping[str, Any], file: Path | None = None) -> Config:
    """Make the configuration of what was given; ``flags`` are those that were, by key.

    Raises:
        ConfigError: a value is wrong, or a key of the file unknown.
    """
    from_file = _read_file(file) if file is not None else {}

    class Loaded(Config):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, from_file)

    try:
        return Loaded(**flags)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "there is no such option"
        raise ConfigError(f"{_place(key, flags, file)}: {message}") from error


def _place(key: str, flags: Mapping[str, Any], file: Path | None) -> str:
    """Say where a key was set, as it was spelled there."""
    if key in flags:
        return f"--{key.replace('_', '-')}"
    variable = ENVIRONMENT_PREFIX + key.upper()
    is_in_environment = variable in map(str.upper, os.environ)
    return variable if is_in_environment else f"{key} in {file}"


def _read_file(file: Path) -> dict[str, Any]:
    try:
        parsed = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file}: not TOML: {error}") from error
    settings: dict[str, Any] = {}
    for spelled, value in parsed.items():
        key = spelled.replace("-", "_")
        if key in settings:
            raise ConfigError(f"{key} in {file}: it is there twice, with - and with _")
        settings[key] = value
    return settings
