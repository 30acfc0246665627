"""``devserver token`` beside a running server, and what the server says to who sends a token."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import requests
from conftest import Serve, missing_tool
from running_server import REPOSITORY, RunningServer
from test_command_line import devserver

CALL = "/api/0/organizations/lab/chunk-upload/"
PUBLISH = "project:releases"


def token_command(data_dir: Path, *arguments: str) -> CompletedProcess[str]:
    return devserver("token", *arguments, "--data-dir", str(data_dir))


def create(server: RunningServer, *arguments: str) -> str:
    made = token_command(server.directory / "data", "create", "--org", "lab", *arguments)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def ask(server: RunningServer, authorization: str | bytes | None) -> requests.Response:
    headers = {} if authorization is None else {"Authorization": authorization}
    return requests.get(server.url + CALL, headers=headers, timeout=30)


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_a_token_is_printed_alone_and_known_at_once_until_it_is_revoked(serve: Serve) -> None:
    server = serve()
    made = token_command(
        server.directory / "data", "create", "--org", "lab", "--scope", PUBLISH, "--name", "ci"
    )
    assert made.returncode == 0
    assert re.fullmatch(r"[0-9a-f]{64}\n", made.stdout)
    assert made.stdout.strip() not in made.stderr
    authorization = f"Bearer {made.stdout.strip()}"
    assert ask(server, authorization).status_code == 200

    revoked = token_command(server.directory / "data", "revoke", "ci")
    assert (revoked.returncode, revoked.stdout) == (0, "")
    answer = ask(server, authorization)
    assert answer.status_code == 401
    assert "revoked" in answer.json()["detail"]


def test_who_sends_no_token_that_is_known_is_401_and_told_so(serve: Serve) -> None:
    server = serve()
    token = create(server, "--scope", PUBLISH)
    for authorization in (
        *(None, "", "Bearer", "Bearer ", token, f"Token {token}", f"Bearer{token}"),
        *("Bearer " + "0" * 64, f"Bearer {token}0", f"Bearer {token.upper()}X", "Bearer \xe4"),
        *("Bearer ä€".encode(), b"Bearer \xff\xfe"),
        *("Basic", "Basic !", "Basic AAA", basic(""), basic(":"), basic("ä:"), basic("x:y")),
        *("Basic " + base64.b64encode(b"\xff\xfe:").decode(), "Bearer " + "x" * 30_000),
    ):
        answer = ask(server, authorization)
        assert answer.status_code == 401, (authorization, answer.text)
        assert answer.json().keys() == {"detail"}
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert ask(server, f"Bearer {token}").status_code == 200


def test_a_header_that_is_too_long_is_refused_and_the_server_lives_on(serve: Serve) -> None:
    server = serve()
    token = create(server, "--scope", PUBLISH)
    assert 400 <= ask(server, "Bearer " + "x" * 200_000).status_code < 500
    assert ask(server, f"Bearer {token}").status_code == 200


def test_a_token_may_come_as_bearer_or_basic_in_any_case(serve: Serve) -> None:
    server = serve()
    token = create(server, "--scope", PUBLISH)
    for authorization in (
        f"bearer {token}",
        f"BEARER   {token} ",
        basic(f"{token}:"),
        basic(token),
        basic(f":{token}"),
        basic(f"{token}:password"),
    ):
        assert ask(server, authorization).status_code == 200, authorization


def test_without_the_scope_or_for_another_organization_it_is_403(serve: Serve) -> None:
    server = serve()
    reader = create(server, "--scope", "project:read")
    admin = create(server, "--scope", "admin")
    data = server.directory / "data"
    other = token_command(data, "create", "--org", "other", "--scope", PUBLISH).stdout.strip()
    for token, words in ((reader, PUBLISH), (other, "organization other")):
        answer = ask(server, f"Bearer {token}")
        assert answer.status_code == 403
        assert words in answer.json()["detail"]
    assert ask(server, f"Bearer {admin}").status_code == 200


def test_tokens_are_in_no_log_and_not_in_the_data_directory(serve: Serve) -> None:
    server = serve("--log-level", "debug")
    token = create(server, "--scope", PUBLISH, "--name", "ci")
    unknown = "5" * 64
    for authorization in (f"Bearer {token}", basic(f"{token}:"), f"Bearer {unknown}", token):
        ask(server, authorization)
    requests.post(server.url + CALL, b"x", headers={"Authorization": f"Bearer {token}"}, timeout=30)
    server.stop()
    assert "chunk-upload" in server.log
    for secret in (token, basic(f"{token}:").partition(" ")[2], unknown):
        assert secret not in server.log
    for file in (server.directory / "data").rglob("*"):
        assert not file.is_file() or token.encode() not in file.read_bytes(), file


def test_scopes_are_repeated_or_separated_by_commas_and_blanks(tmp_path: Path) -> None:
    for number, scopes in enumerate(
        (
            ["--scope", PUBLISH, "--scope", "project:read"],
            ["--scope", f"{PUBLISH},project:read"],
            ["--scope", f" {PUBLISH}  project:read, "],
        )
    ):
        name = f"ci-{number}"
        made = token_command(tmp_path, "create", "--org", "lab", "--name", name, *scopes)
        assert made.returncode == 0, made.stderr
    listed = json.loads(token_command(tmp_path, "list", "--json").stdout)["tokens"]
    assert [token["scopes"] for token in listed] == [[PUBLISH, "project:read"]] * 3
    assert {token["organization"] for token in listed} == {"lab"}


def test_tokens_are_listed_without_themselves(tmp_path: Path) -> None:
    made = token_command(tmp_path, "create", "--org", "lab", "--scope", "admin", "--name", "ci")
    listed = token_command(tmp_path, "list")
    assert listed.returncode == 0
    assert "ci" in listed.stdout and "lab" in listed.stdout and "admin" in listed.stdout
    assert made.stdout.strip() not in listed.stdout


def test_a_name_that_is_made_up_is_told_beside_the_token(tmp_path: Path) -> None:
    made = token_command(tmp_path, "create", "--org", "lab", "--scope", "admin")
    [token] = json.loads(token_command(tmp_path, "list", "--json").stdout)["tokens"]
    assert token["name"] in made.stderr


def test_tokens_are_where_the_options_the_environment_or_the_file_say(
    database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "devserver.toml"
    file.write_text(f"database-url = '{database_url}'\nport = 8081\n")
    creating = ("token", "create", "--org", "lab", "--scope", "admin", "--name")
    for name, options, environment in (
        ("by option", ["--database-url", database_url], {}),
        ("by file", ["--config", str(file)], {}),
        ("by environment", [], {"DEVSERVER_DATABASE_URL": database_url}),
    ):
        assert devserver(*creating, name, *options, environment=environment).returncode == 0
    listed = devserver("token", "list", "--json", "--database-url", database_url).stdout
    names = [token["name"] for token in json.loads(listed)["tokens"]]
    assert names == ["by environment", "by file", "by option"]


def test_a_server_knows_the_tokens_of_its_database(serve: Serve, database_url: str) -> None:
    server = serve("--database-url", database_url)
    made = devserver(
        *("token", "create", "--org", "lab", "--scope", PUBLISH, "--database-url", database_url)
    )
    assert ask(server, f"Bearer {made.stdout.strip()}").status_code == 200
    assert not (server.directory / "data" / "devserver.db").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["create", "--org", "lab"], 2, "--scope"),
        (["create", "--scope", "admin"], 2, "--org"),
        (["create", "--org", "lab", "--scope", ","], 2, "a token needs a scope"),
        (["create", "--org", "lab", "--scope", "nonsense"], 2, "no such scope: 'nonsense'"),
        (["create", "--org", "a/b", "--scope", "admin"], 2, "organization"),
        (["revoke", "nobody"], 1, "no token named 'nobody'"),
        (["revoke"], 2, "NAME"),
        (["nonsense"], 2, "nonsense"),
        (["list", "--database-url", "mysql://x/y"], 2, "database"),
        (["list", "--database-url", "sqlite:////nowhere/at/all.db"], 1, "/nowhere/at/all.db"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_by_the_status(
    arguments: list[str], status: int, words: str, tmp_path: Path
) -> None:
    ended = token_command(tmp_path, *arguments)
    assert ended.returncode == status
    assert ended.stdout == ""
    assert words in ended.stderr and "Traceback" not in ended.stderr


def test_a_name_is_given_once(tmp_path: Path) -> None:
    creating = ("create", "--org", "lab", "--scope", "admin", "--name", "ci")
    assert token_command(tmp_path, *creating).returncode == 0
    again = token_command(tmp_path, *creating)
    assert (again.returncode, again.stdout) == (1, "")
    assert "a token named 'ci' already" in again.stderr


def test_listing_where_there_is_no_data_directory_makes_none(tmp_path: Path) -> None:
    ended = token_command(tmp_path / "nowhere", "list")
    assert ended.returncode == 1
    assert "no data directory" in ended.stderr
    assert not (tmp_path / "nowhere").exists()


def test_another_user_than_the_servers_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        missing_tool("the right to give files away")
    os.chown(tmp_path, 65534, -1)
    for arguments in (["create", "--org", "lab", "--scope", PUBLISH], ["list"]):
        ended = token_command(tmp_path, *arguments)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert "another user (id 65534)" in ended.stderr
    assert list(tmp_path.iterdir()) == []
    # A volume may be somebody else's; whose the server is, its lock tells.
    (tmp_path / "lock").touch()
    made = token_command(tmp_path, "create", "--org", "lab", "--scope", PUBLISH)
    assert made.returncode == 0, made.stderr


def test_a_data_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    directory = tmp_path / "file" / "data"
    ended = token_command(directory, "create", "--org", "lab", "--scope", PUBLISH)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert (
        ended.stderr == f"devserver: cannot write the data directory {directory}: Not a directory\n"
    )


def test_a_token_that_cannot_be_printed_is_told_in_one_line(tmp_path: Path) -> None:
    program = [sys.executable, str(REPOSITORY / "devserver.py"), "token", "create"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [*program, "--org", "lab", "--scope", PUBLISH, "--data-dir", str(tmp_path)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "devserver: No space left on device"
    assert "Traceback" not in ended.stderr
