"""The calls that have files assembled, as clients send them, and as nobody should."""

from __future__ import annotations

import json
import os
import string
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from assemble_client import AssembleClient, crash_lab
from conftest import Serve
from hypothesis import given, settings
from hypothesis import strategies as st
from running_server import RunningServer
from upload_client import chunk, database_of, make_token, rows_of, sha1_of

from artifacts.blobs.files import Files
from artifacts.blobs.offers import read_offers
from artifacts.database.tables import build_files, builds, files
from artifacts.errors import BadRequest
from artifacts.tokens import READ

STATES = {"not_found", "assembling", "ok", "error"}
UNKNOWN = sha1_of(b"nobody has this")
# Of several chunks.
CONTENT = os.urandom(20_000_000)


@pytest.fixture(scope="module")
def shared_client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A client of a server that is used by tests which leave nothing on record."""
    server = RunningServer(tmp_path_factory.mktemp("assemble"))
    yield AssembleClient(server)
    server.stop()


@pytest.fixture
def client(serve: Serve) -> AssembleClient:
    return AssembleClient(serve())


def test_a_published_file_is_on_record_with_what_reading_it_takes(client: AssembleClient) -> None:
    answer = client.settle(client.build("board/R1-1.0.0"), CONTENT, "images/disk.bin")
    assert answer == {"state": "ok", "missingChunks": []}
    (build,) = rows_of(client.server, builds)
    assert (build.target, build.build) == ("board", "R1-1.0.0")
    assert (build.organization, build.project) == ("lab", "builds")
    (named,) = rows_of(client.server, build_files)
    assert (named.build_id, named.name) == (build.id, "images/disk.bin")
    with database_of(client.server) as database:
        file = Files(database).find("lab", sha1_of(CONTENT))
    assert file is not None and file.id == named.file_id
    assert file.size == len(CONTENT) and len(file.parts) == 3


def test_a_debug_file_and_a_build_may_be_the_same_file(client: AssembleClient) -> None:
    content = crash_lab("crash_lab")
    client.upload(content, "crash_lab")
    assert client.settle(client.build("board/R1"), content, "bin/crash_lab")["state"] == "ok"
    (file,) = rows_of(client.server, files)
    assert file.checksum == sha1_of(content)
    other = crash_lab("crash_lab.sym")
    assert client.settle(client.build("board/R1"), other, "crash_lab.sym")["state"] == "ok"
    assert client.upload(other, "crash_lab.sym")["symbolType"] == "breakpad"


def test_fifty_clients_that_ask_at_once_have_a_file_assembled_once(client: AssembleClient) -> None:
    content = crash_lab("crash_lab")
    assert client.send(chunk(content)).status_code == 200
    offer = {sha1_of(content): {"name": "crash_lab", "chunks": [sha1_of(content)]}}
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: client.ask(client.difs, offer), range(50)))
    assert {answer[sha1_of(content)]["state"] for answer in answers} <= {"assembling", "ok"}
    assert client.upload(content, "crash_lab")["objectName"] == "crash_lab"
    assert client.server.log.count("assembled ") == 1
    assert len(client.list()) == 1


def test_nothing_temporary_is_left(client: AssembleClient) -> None:
    client.upload(crash_lab("crash_lab"))
    assert client.settle(client.difs, b"no debug file")["state"] == "error"
    assert list((client.server.directory / "data" / "assembling").iterdir()) == []
    assert client.server.stop() == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b'"text"',
        b"null",
        b"1" * 10_000,
        b"[" * 1_000_000,
        b'{"a":' * 500_000,
        b'{"' + b"a" * 40 + b'": {',
        b"\xff\xfe{",
        b"\xff" * 1000,
    ],
)
def test_a_body_that_is_no_json_object_is_400(shared_client: AssembleClient, body: bytes) -> None:
    for path in (shared_client.difs, shared_client.build("board/R1")):
        answer = shared_client.post(path, body)
        assert answer.status_code == 400
        assert list(answer.json()) == ["detail"] and len(answer.json()["detail"]) < 1100


def test_a_body_over_the_limit_is_413_and_one_below_it_is_answered(
    shared_client: AssembleClient,
) -> None:
    chunks = [sha1_of(b"%d" % (number % 1000)) for number in range(65_536)]
    body = json.dumps({UNKNOWN: {"name": "x", "chunks": chunks}}).encode("ascii")
    answer = shared_client.post(shared_client.difs, body.ljust(16 << 20))
    assert answer.json() == {
        UNKNOWN: {"state": "not_found", "missingChunks": list(dict.fromkeys(chunks))}
    }
    assert shared_client.post(shared_client.difs, body.ljust((16 << 20) + 1)).status_code == 413


@pytest.mark.parametrize(
    ("entry", "detail"),
    [
        (None, "object"),
        ([], "object"),
        ("text", "object"),
        ({}, "name"),
        ({"name": None, "chunks": [UNKNOWN]}, "name"),
        ({"name": ["x"], "chunks": [UNKNOWN]}, "name"),
        ({"name": "", "chunks": [UNKNOWN]}, "name"),
        ({"name": "/etc/passwd", "chunks": [UNKNOWN]}, "name"),
        ({"name": "../x", "chunks": [UNKNOWN]}, "name"),
        ({"name": "a/../x", "chunks": [UNKNOWN]}, "name"),
        ({"name": "a//x", "chunks": [UNKNOWN]}, "name"),
        ({"name": "a/", "chunks": [UNKNOWN]}, "name"),
        ({"name": "x\0y", "chunks": [UNKNOWN]}, "name"),
        ({"name": "x\ud800y", "chunks": [UNKNOWN]}, "name"),
        ({"name": "x" * 100_000, "chunks": [UNKNOWN]}, "name"),
        ({"name": "x"}, "chunks"),
        ({"name": "x", "chunks": None}, "chunks"),
        ({"name": "x", "chunks": UNKNOWN}, "chunks"),
        ({"name": "x", "chunks": {UNKNOWN: 1}}, "chunks"),
        ({"name": "x", "chunks": []}, "no chunks"),
        ({"name": "x", "chunks": [None]}, "chunk"),
        ({"name": "x", "chunks": [UNKNOWN, UNKNOWN.upper()]}, "lower-case"),
        ({"name": "x", "chunks": [UNKNOWN, "g" * 40]}, "hex"),
        ({"name": "x", "chunks": [UNKNOWN, "../../../etc/passwd"]}, "hex"),
        ({"name": "x", "chunks": [sha1_of(b"another")]}, "checksum mismatch"),
        ({"name": "x", "chunks": [UNKNOWN] * 100_000}, "65,536"),
    ],
)
def test_a_malformed_offer_is_an_error_and_the_others_are_answered(
    shared_client: AssembleClient, entry: object, detail: str
) -> None:
    good = {"name": "x", "chunks": [sha1_of(b"1"), sha1_of(b"2")]}
    asked = {UNKNOWN: entry, sha1_of(b"good"): good}
    answer = shared_client.ask(shared_client.difs, asked)
    assert list(answer) == list(asked)
    refused = answer[UNKNOWN]
    assert (refused["state"], refused["missingChunks"]) == ("error", [])
    assert detail in refused["detail"] and len(refused["detail"]) < 1100
    assert answer[sha1_of(b"good")]["state"] == "not_found"


@pytest.mark.parametrize("key", ["", "x", UNKNOWN.upper(), UNKNOWN[:-1], f"{UNKNOWN}\n", "\0"])
def test_a_key_that_is_no_checksum_is_answered_as_an_error(
    shared_client: AssembleClient, key: str
) -> None:
    answer = shared_client.ask(shared_client.difs, {key: {"name": "x", "chunks": [UNKNOWN]}})
    assert list(answer) == [key] and answer[key]["state"] == "error"


checksums = st.text(string.hexdigits, min_size=39, max_size=41) | st.just(UNKNOWN)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | checksums,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
entries = anything | st.fixed_dictionaries(
    {"name": anything, "chunks": anything | st.lists(checksums, max_size=5)},
    optional={"debug_id": anything},
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(checksums | st.text(), entries, max_size=5))
def test_every_key_of_any_object_is_answered(asked: dict[str, Any]) -> None:
    body = json.dumps(asked).encode("utf-8")
    offers = read_offers(body)
    assert list(offers.keys) == list(json.loads(body))
    assert set(offers.possible) | set(offers.impossible) == set(offers.keys)
    assert not set(offers.possible) & set(offers.impossible)
    for checksum, offer in offers.possible.items():
        assert offer.checksum == checksum and offer.name and offer.chunks


@settings(max_examples=200, deadline=None)
@given(st.binary() | anything.map(json.dumps).map(str.encode))
def test_any_other_body_is_refused(body: bytes) -> None:
    try:
        offers = read_offers(body)
    except BadRequest:
        return
    assert isinstance(json.loads(body), dict) and len(offers.keys) == len(json.loads(body))


def test_the_same_checksum_twice_in_a_body_is_answered_once(shared_client: AssembleClient) -> None:
    offer = json.dumps({"name": "x", "chunks": [UNKNOWN]})
    body = f'{{"{UNKNOWN}": {offer}, "{UNKNOWN}": {offer}}}'.encode("ascii")
    answer = shared_client.post(shared_client.difs, body).json()
    assert answer == {UNKNOWN: {"state": "not_found", "missingChunks": [UNKNOWN]}}


def test_a_thousand_files_are_answered_in_their_order(shared_client: AssembleClient) -> None:
    assert shared_client.send(chunk(b"shared")).status_code == 200
    asked = {
        sha1_of(b"file %d" % number): {
            "name": f"{number}",
            "chunks": [sha1_of(b"shared"), sha1_of(b"%d" % number)],
        }
        for number in range(1000)
    }
    answer = shared_client.ask(shared_client.build("board/many"), asked)
    assert list(answer) == list(asked)
    assert all(
        answer[checksum] == {"state": "not_found", "missingChunks": entry["chunks"][1:]}
        for checksum, entry in asked.items()
    )


@pytest.mark.parametrize(
    "build", ["archive/R1", ".x/R1", "board/.R1", "board/..", "board/%00", "board/%20R1"]
)
def test_a_build_that_cannot_be_named_so_is_400(shared_client: AssembleClient, build: str) -> None:
    path = shared_client.build(build)
    answer = shared_client.post(path, b"{}")
    assert answer.status_code in {400, 404} and list(answer.json()) == ["detail"]


@pytest.mark.parametrize("project", ["%00", "%2e%2e", "x" * 256])
def test_a_project_that_cannot_be_named_so_is_400(
    shared_client: AssembleClient, project: str
) -> None:
    answer = shared_client.post(f"/api/0/projects/lab/{project}/files/difs/assemble/", b"{}")
    assert answer.status_code in {400, 404} and list(answer.json()) == ["detail"]


def test_nothing_is_asked_without_the_right(shared_client: AssembleClient) -> None:
    server = shared_client.server
    others = AssembleClient(server, "others")
    for path in (shared_client.difs, shared_client.build("board/R1")):
        assert shared_client.ask(path, {}) == {}
        assert shared_client.get(path).status_code == 405
        assert others.post(path, b"{}").status_code == 403
    reader = AssembleClient(server)
    reader.token = make_token(server, scopes=[READ])
    assert reader.post(reader.difs, b"{}").status_code == 403
    reader.token = "unknown"
    assert reader.post(reader.build("board/R1"), b"{}").status_code == 401
