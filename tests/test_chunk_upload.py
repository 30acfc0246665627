"""Chunk upload over HTTP: what is kept, and that nothing is left of what is not."""

from __future__ import annotations

import gzip
import os
import random
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psutil
import pytest
import requests
from polling import wait_until
from raw_client import RawClient
from running_server import RunningServer
from upload_client import (
    CHUNK_UPLOAD,
    ORGANIZATION,
    Part,
    UploadClient,
    blobs_on_record,
    chunk,
    content_type,
    database_of,
    make_token,
    multipart,
    packed,
    rows_of,
    sha1_of,
    spooled_files,
    stored_blobs,
)

from artifacts.blobs.limits import CHUNK_BYTES, CHUNKS_PER_REQUEST
from artifacts.database.tables import leases, owners
from artifacts.tokens import ADMIN, PUBLISH, READ, Tokens

LIMITS = {
    "url": CHUNK_UPLOAD,
    "chunkSize": 8388608,
    "chunksPerRequest": 64,
    "maxRequestSize": 33554432,
    "maxFileSize": 2147483648,
    "concurrency": 8,
    "hashAlgorithm": "sha1",
    "compression": ["gzip"],
    "accept": ["debug_files", "sources"],
}
_seeds = count()


def new_data(size: int = 1000) -> bytes:
    """Return bytes that no other test uses."""
    return random.Random(next(_seeds)).randbytes(size)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("uploads"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(server: RunningServer) -> UploadClient:
    return UploadClient(server)


@contextmanager
def nothing_kept(server: RunningServer) -> Iterator[None]:
    """What happens within keeps no chunk, and leaves nothing."""
    before = blobs_on_record(server)
    yield
    wait_until(lambda: spooled_files(server) == [])
    assert blobs_on_record(server) == before
    assert stored_blobs(server).keys() == before


def owners_of(server: RunningServer, data: bytes) -> set[str]:
    rows = rows_of(server, owners)
    return {row.organization for row in rows if row.checksum == sha1_of(data)}


def is_confirmed(response: requests.Response) -> bool:
    """Whether this is the one answer that clients take for a success."""
    is_json = response.headers["Content-Type"] == "application/json"
    assert is_json and "Content-Encoding" not in response.headers
    return response.status_code == 200 and response.content == b""


def refusal(response: requests.Response) -> str:
    """Return what a 400 says, in the form that clients read."""
    assert response.status_code == 400, response.text
    assert response.headers["Content-Type"] == "application/json"
    [(key, text)] = response.json().items()
    assert key == "detail"
    return str(text)


# --- what clients ask first


@pytest.mark.parametrize("path", [CHUNK_UPLOAD, "/api/0/chunk-upload/"])
def test_the_limits_are_told_as_the_protocol_has_them(client: UploadClient, path: str) -> None:
    answer = client.get(path)
    assert answer.json() == LIMITS
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    "path", [CHUNK_UPLOAD, f"/api/0{CHUNK_UPLOAD}", "/api/0/chunk-upload/", CHUNK_UPLOAD[:-1]]
)
def test_chunks_go_wherever_clients_send_them(client: UploadClient, path: str) -> None:
    # sentry-cli 2.1 and 2.14 put /api/0/ before the path that they are told.
    data = new_data()
    headers = {**client.authorization, "Content-Type": content_type()}
    body = multipart([chunk(data)])
    assert is_confirmed(requests.post(client.server.url + path, body, headers=headers, timeout=30))
    assert sha1_of(data) in blobs_on_record(client.server)


def test_a_prefix_goes_before_the_url_for_chunks(tmp_path: Path) -> None:
    server = RunningServer(tmp_path, "--upload-url-prefix", "https://builds.example.com/lab/")
    try:
        url = UploadClient(server).get("/api/0/chunk-upload/").json()["url"]
        assert url == f"https://builds.example.com/lab{CHUNK_UPLOAD}"
    finally:
        server.stop()


@pytest.mark.parametrize("scope", [PUBLISH, READ, ADMIN])
def test_any_token_may_ask_whose_it_is(server: RunningServer, scope: str) -> None:
    headers = {"Authorization": f"Bearer {make_token(server, 'other', [scope])}"}
    answer = requests.get(f"{server.url}/api/0/", headers=headers, timeout=30)
    assert answer.json() == {
        "version": "0",
        "auth": {"scopes": [scope]},
        "user": None,
        "organization": "other",
    }


def test_reprocessing_is_not_found(client: UploadClient) -> None:
    url = f"{client.server.url}/api/0/projects/{ORGANIZATION}/p/reprocessing/"
    assert requests.post(url, headers=client.authorization, timeout=30).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/0/"),
        ("GET", "/api/0/chunk-upload/"),
        ("POST", "/api/0/chunk-upload/"),
        ("GET", CHUNK_UPLOAD),
        ("POST", CHUNK_UPLOAD),
    ],
)
@pytest.mark.parametrize("authorization", [None, "Bearer unknown", "Bearer", "Basic !", "unknown"])
def test_without_a_known_token_nothing_is_told_and_nothing_kept(
    client: UploadClient, method: str, path: str, authorization: str | None
) -> None:
    headers = {"Content-Type": content_type()}
    if authorization is not None:
        headers["Authorization"] = authorization
    with nothing_kept(client.server):
        answer = requests.request(
            method,
            client.server.url + path,
            data=multipart([chunk(new_data())]) if method == "POST" else None,
            headers=headers,
            timeout=30,
        )
    assert answer.status_code == 401
    assert answer.json().keys() == {"detail"}


def test_uploading_takes_its_scope_and_its_organization(client: UploadClient) -> None:
    server = client.server
    tokens = [make_token(server, "other", [PUBLISH]), make_token(server, scopes=[READ])]
    for token in tokens:
        headers = {"Authorization": f"Bearer {token}"}
        body = {"headers": {**headers, "Content-Type": content_type()}, "timeout": 30}
        with nothing_kept(server):
            url = server.url + CHUNK_UPLOAD
            assert requests.get(url, headers=headers, timeout=30).status_code == 403
            assert requests.post(url, multipart([chunk(new_data())]), **body).status_code == 403


def test_a_revoked_token_is_known_no_more(client: UploadClient) -> None:
    with database_of(client.server) as database:
        tokens = Tokens(database)
        headers = {"Authorization": f"Bearer {tokens.create(ORGANIZATION, [PUBLISH], 'short')}"}
        url = client.server.url + CHUNK_UPLOAD
        assert requests.get(url, headers=headers, timeout=30).status_code == 200
        tokens.revoke("short")
        assert requests.get(url, headers=headers, timeout=30).status_code == 401


# --- chunks that are kept


@pytest.mark.parametrize("framed", [chunk, packed])
@pytest.mark.parametrize("size", [0, 1, 1000, 300_000, CHUNK_BYTES - 1, CHUNK_BYTES])
def test_a_chunk_is_kept_with_its_owner_and_its_lease(
    client: UploadClient, framed: type[Part], size: int
) -> None:
    data = new_data(size)
    assert is_confirmed(client.send(framed(data)))
    assert stored_blobs(client.server)[sha1_of(data)] == data
    assert owners_of(client.server, data) == {ORGANIZATION}
    assert sha1_of(data) in {row.checksum for row in rows_of(client.server, leases)}
    assert spooled_files(client.server) == []


@pytest.mark.parametrize("level", [0, 1, 9])
def test_what_gzip_makes_larger_is_no_larger_for_that(client: UploadClient, level: int) -> None:
    data = os.urandom(CHUNK_BYTES)
    compressed = gzip.compress(data, level)
    assert len(compressed) > CHUNK_BYTES
    assert is_confirmed(client.send(Part(compressed, sha1_of(data), "file_gzip")))
    assert stored_blobs(client.server)[sha1_of(data)] == data


def test_chunks_of_both_kinds_come_in_one_request_as_many_as_are_allowed(
    client: UploadClient,
) -> None:
    data = [new_data() for _ in range(CHUNKS_PER_REQUEST)]
    sent = [(packed if n % 2 else chunk)(each) for n, each in enumerate(data)]
    assert is_confirmed(client.send(*sent))
    stored = stored_blobs(client.server)
    assert [stored[sha1_of(each)] for each in data] == data


def test_a_chunk_of_boundaries_that_are_none_is_kept(client: UploadClient) -> None:
    _, _, boundary = content_type().partition("boundary=")
    for data in (
        b"\r\n" + boundary.encode(),
        b"\r\n--" + boundary[:-1].encode() + b"\r\n--",
        b"\r\n" * 99,
    ):
        assert is_confirmed(client.send(chunk(data), chunk(new_data())))
        assert stored_blobs(client.server)[sha1_of(data)] == data


def test_a_chunk_may_come_again_and_again(client: UploadClient) -> None:
    data = new_data(300_000)
    assert is_confirmed(client.send(chunk(data), packed(data), chunk(data)))
    assert is_confirmed(client.send(packed(data), chunk(new_data())))
    assert is_confirmed(client.send(chunk(data)))
    assert stored_blobs(client.server)[sha1_of(data)] == data
    assert owners_of(client.server, data) == {ORGANIZATION}
    assert spooled_files(client.server) == []


def test_no_chunks_at_all_are_fine(client: UploadClient) -> None:
    with nothing_kept(client.server):
        assert is_confirmed(client.send())
        assert is_confirmed(client.send_body(b""))
        assert is_confirmed(client.send_body(b"", content_type=None))
        assert is_confirmed(client.send_body(iter([])))


def test_fields_that_are_no_chunks_are_passed_over(client: UploadClient) -> None:
    data = new_data()
    assert is_confirmed(client.send(Part(b"1", None, "more"), chunk(data), Part(b"", None, "x")))
    assert sha1_of(data) in blobs_on_record(client.server)


def test_a_body_may_come_in_chunks_of_http(client: UploadClient) -> None:
    data = new_data(300_000)
    body = multipart([chunk(data)])
    assert is_confirmed(client.send_body(body[n : n + 999] for n in range(0, len(body), 999)))
    assert stored_blobs(client.server)[sha1_of(data)] == data


def test_a_connection_serves_for_many_requests(client: UploadClient) -> None:
    with RawClient(client.server.port) as raw:
        for size in (10, 100_000, 1_000_000, 0):
            body = multipart([chunk(new_data(size))])
            client.begin(raw, len(body)).send(body)
            assert raw.reply().status == 200


def test_clients_may_ask_before_they_send(client: UploadClient) -> None:
    body = multipart([chunk(new_data(200_000))])
    with RawClient(client.server.port) as raw:
        client.begin(raw, len(body), Expect="100-continue")
        assert raw.read(len("HTTP/1.1 100 Continue\r\n\r\n")).startswith(b"HTTP/1.1 100")
        assert raw.send(body).reply().status == 200


def test_another_organizations_chunk_has_to_be_sent_to_be_ones_own(client: UploadClient) -> None:
    server = client.server
    data = new_data(100_000)
    other = UploadClient(server, "other-lab")
    assert is_confirmed(client.send(chunk(data)))
    assert owners_of(server, data) == {ORGANIZATION}
    # Its name alone does not do, though the bytes are here.
    assert sha1_of(data) in refusal(other.send(Part(b"", sha1_of(data))))
    assert sha1_of(data) in refusal(other.send(Part(data[:-1], sha1_of(data))))
    assert owners_of(server, data) == {ORGANIZATION}
    assert is_confirmed(other.send(packed(data)))
    assert owners_of(server, data) == {ORGANIZATION, "other-lab"}


def test_a_chunk_from_many_at_once_is_one_blob_that_all_of_them_own(client: UploadClient) -> None:
    server = client.server
    everybody = [UploadClient(server, f"lab-{n}") for n in range(4)]
    rounds = [chunk(new_data(2000)) for _ in range(250)]

    def send_all(uploader: UploadClient) -> list[requests.Response]:
        return [uploader.send(*rounds[n : n + 10]) for n in range(0, len(rounds), 10)]

    with ThreadPoolExecutor(len(everybody)) as pool:
        for answers in pool.map(send_all, everybody):
            assert all(is_confirmed(answer) for answer in answers)
    owned = {(row.checksum, row.organization) for row in rows_of(server, owners)}
    wanted = {(each.filename, who.organization) for each in rounds for who in everybody}
    assert wanted <= owned
    assert spooled_files(server) == []


# --- what is refused


@pytest.mark.parametrize(
    "name",
    [
        None,
        "",
        "a" * 39,
        "a" * 41,
        "g" * 40,
        "A" * 40,
        sha1_of(b"").upper(),
        "../" + "a" * 37,
        "/" + "a" * 39,
        "a" * 39 + "\0",
        "a" * 40 + "\0",
        " " + "a" * 40,
        "a" * 40 + "/..",
        "a" * 3000,
        "\N{ARABIC-INDIC DIGIT ONE}" * 40,
    ],
)
@pytest.mark.parametrize("kind", ["file", "file_gzip"])
def test_names_that_are_no_checksums_are_refused(
    client: UploadClient, name: str | None, kind: str
) -> None:
    with nothing_kept(client.server):
        assert "SHA-1" in refusal(client.send(Part(gzip.compress(b"data"), name, kind)))


def test_bytes_that_are_not_what_their_name_says_are_refused(client: UploadClient) -> None:
    good, bad = chunk(new_data()), Part(new_data(), sha1_of(new_data()))
    with nothing_kept(client.server):
        assert str(bad.filename) in refusal(client.send(bad))
        assert sha1_of(bad.data) in refusal(client.send(bad))
    assert str(bad.filename) in refusal(client.send(good, bad))
    wait_until(lambda: spooled_files(client.server) == [])
    # What was good may stay; what was not must not.
    assert bad.filename not in blobs_on_record(client.server)
    # The checksum is as free as ever.
    assert is_confirmed(client.send(good))


def test_a_compressed_chunk_is_named_by_what_it_contains(client: UploadClient) -> None:
    data = new_data()
    compressed = gzip.compress(data)
    with nothing_kept(client.server):
        refusal(client.send(Part(compressed, sha1_of(compressed), "file_gzip")))
        refusal(client.send(Part(compressed, sha1_of(data), "file")))


def test_more_chunks_than_allowed_are_refused(client: UploadClient) -> None:
    same = chunk(new_data())
    assert is_confirmed(client.send(*[same] * CHUNKS_PER_REQUEST))
    assert "64" in refusal(client.send(*[same] * (CHUNKS_PER_REQUEST + 1)))
    few = Part(b"", None, "more")
    assert "too many parts" in refusal(client.send(*[few] * (CHUNKS_PER_REQUEST + 20)))


@pytest.mark.parametrize("framed", [chunk, packed])
def test_a_chunk_that_is_a_byte_too_large_is_refused(
    client: UploadClient, framed: type[Part]
) -> None:
    with nothing_kept(client.server):
        assert "8,388,608" in refusal(client.send(framed(new_data(CHUNK_BYTES + 1))))


def bomb(megabytes: int) -> Part:
    """Return a chunk that says little and comes to much."""
    compressor = zlib.compressobj(9, wbits=31)
    head = compressor.compress(b"") + compressor.flush(zlib.Z_FULL_FLUSH)
    # Does not refer to what is before it.
    megabyte = compressor.compress(bytes(1 << 20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return Part(head + megabyte * megabytes + compressor.flush(), sha1_of(b""), "file_gzip")


def test_gzip_of_little_that_is_larger_than_a_chunk_is_refused(client: UploadClient) -> None:
    compressor = zlib.compressobj(9, wbits=31)
    head = compressor.compress(b"data") + compressor.flush(zlib.Z_FULL_FLUSH)
    # A block of nothing, which unpacking takes as it is.
    empty = b"\0\0\0\xff\xff"
    packed_data = head + empty * (CHUNK_BYTES // 4) + compressor.flush()
    assert gzip.decompress(packed_data) == b"data"
    with nothing_kept(client.server):
        sent = client.send(Part(packed_data, sha1_of(b"data"), "file_gzip"))
        assert "8,388,608" in refusal(sent)


def cpu_seconds(server: RunningServer) -> float:
    times = psutil.Process(server.process.pid).cpu_times()
    return float(times.user + times.system)


def memory_bytes(server: RunningServer) -> int:
    return int(psutil.Process(server.process.pid).memory_info().rss)


def test_a_gzip_bomb_costs_no_more_than_a_chunk(client: UploadClient) -> None:
    server = client.server
    large = bomb(4096)
    client.send(bomb(8))
    memory, cpu = memory_bytes(server), cpu_seconds(server)
    with nothing_kept(server):
        assert "8,388,608" in refusal(client.send(large))
    # To unpack all of it takes seconds.
    assert cpu_seconds(server) - cpu < 1
    assert memory_bytes(server) - memory < 24 << 20


def test_many_small_bombs_are_too_large_together(client: UploadClient) -> None:
    halves = [bytes([n]) * (CHUNK_BYTES // 2) for n in range(12)]
    answer = client.send(*map(packed, halves))
    assert answer.status_code == 413
    assert answer.json().keys() == {"detail"}
    # As many as fit may stay; no other is ever written.
    kept = {sha1_of(half) for half in halves[:10]}
    wait_until(lambda: kept <= blobs_on_record(client.server))
    assert not {sha1_of(half) for half in halves[10:]} & blobs_on_record(client.server)
    assert spooled_files(client.server) == []


# Without the time of day: the test is to be called the same in all processes.
GZIPPED = gzip.compress(b"data" * 1000, mtime=0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"data" * 1000,
        GZIPPED[:5],
        GZIPPED[:-1],
        GZIPPED[:-8],
        GZIPPED[:-9],
        GZIPPED + b"\0",
        GZIPPED + b"garbage",
        GZIPPED + GZIPPED,
        GZIPPED[:20] + b"\xff\xff\xff" + GZIPPED[23:],
        zlib.compress(b"data" * 1000),
    ],
)
def test_gzip_that_is_cut_short_damaged_or_followed_by_something_is_refused(
    client: UploadClient, data: bytes
) -> None:
    with nothing_kept(client.server):
        refusal(client.send(Part(data, sha1_of(b"data" * 1000), "file_gzip")))


def test_files_that_are_called_something_else_are_refused(client: UploadClient) -> None:
    with nothing_kept(client.server):
        data = new_data()
        assert "file_brotli" in refusal(client.send(Part(data, sha1_of(data), "file_brotli")))


@pytest.mark.parametrize(
    "header",
    [
        None,
        "application/octet-stream",
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/mixed; boundary=x",
        "multipart/form-data; boundary=" + "x" * 300,
        "multipart/form-data; boundary=other",
    ],
)
def test_what_is_not_multipart_is_refused(client: UploadClient, header: str | None) -> None:
    with nothing_kept(client.server):
        refusal(client.send_body(multipart([chunk(new_data())]), header))
        refusal(client.send_body(multipart([chunk(new_data(200_000))]), header))


@pytest.mark.parametrize("size", [10, 200_000])
def test_a_multipart_that_is_cut_short_is_refused(client: UploadClient, size: int) -> None:
    body = multipart([chunk(new_data(size))])
    with nothing_kept(client.server):
        for cut_off in (3, 20, len(body) // 2, len(body) - 1):
            refusal(client.send_body(body[:-cut_off]))


def test_without_a_length_a_request_is_411(client: UploadClient) -> None:
    with nothing_kept(client.server), RawClient(client.server.port) as raw:
        authorization = client.authorization["Authorization"]
        raw.get(CHUNK_UPLOAD, "POST", Authorization=authorization, Content_Type=content_type())
        reply = raw.reply()
        assert reply.status == 411
        assert reply.headers["content-type"] == "application/json"
        assert b'"detail"' in reply.body


def test_a_request_that_is_too_large_as_a_whole_is_413(client: UploadClient) -> None:
    with nothing_kept(client.server):
        with RawClient(client.server.port) as raw:
            reply = client.begin(raw, 1 << 40).reply()
            assert reply.status == 413
            assert b'"detail"' in reply.body
        block = bytes(1 << 20)
        begun = b"--" + content_type().partition("=")[2].encode() + b"\r\n"
        assert client.send_body(block for _ in range(64)).status_code in {400, 413}
        assert client.send_body(iter([begun, b"X: ", *[block] * 64])).status_code in {400, 413}


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("framed", [chunk, packed])
def test_a_client_that_hangs_up_within_a_chunk_leaves_nothing(
    client: UploadClient, how: str, framed: type[Part]
) -> None:
    server = client.server
    body = multipart([framed(new_data(1 << 20))])
    with nothing_kept(server), RawClient(server.port) as raw:
        client.begin(raw, len(body)).send(body[: len(body) // 2])
        wait_until(lambda: spooled_files(server) != [])
        getattr(raw, how)()


@pytest.mark.parametrize("size", [100, 4 << 20])
def test_whoever_is_refused_gets_to_read_it_and_may_go_on(client: UploadClient, size: int) -> None:
    bad = multipart([Part(b"", "no checksum"), chunk(new_data(size))])
    good = multipart([chunk(new_data())])
    with RawClient(client.server.port) as raw:
        reply = client.begin(raw, len(bad)).send(bad).reply()
        assert reply.status == 400
        if reply.headers.get("connection") == "close":
            assert raw.is_hung_up_on
        else:
            assert client.begin(raw, len(good)).send(good).reply().status == 200


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_a_body_of_newlines_costs_no_more_than_any_other(
    client: UploadClient, newline: bytes
) -> None:
    """CherryPy's own parser, which reads lines, takes 20 seconds for one such chunk."""

    def cost_of(data: bytes) -> float:
        before = cpu_seconds(client.server)
        assert is_confirmed(client.send(chunk(data)))
        return cpu_seconds(client.server) - before

    other = cost_of(new_data(CHUNK_BYTES))
    assert cost_of(newline * (CHUNK_BYTES // len(newline))) < 0.5 + 3 * other


def test_memory_does_not_grow_with_the_chunks(tmp_path: Path) -> None:
    server = RunningServer(tmp_path)
    try:
        client = UploadClient(server)
        assert is_confirmed(client.send(chunk(new_data())))
        before = memory_bytes(server)
        bodies = [multipart([chunk(new_data(CHUNK_BYTES)) for _ in range(2)]) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            assert all(is_confirmed(answer) for answer in pool.map(client.send_body, bodies))
        # Eight chunks of eight clients would be 64 MiB; two of each are 128.
        assert memory_bytes(server) - before < 48 << 20
    finally:
        server.stop()


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://elsewhere"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_a_page_of_another_site_uploads_nothing(
    client: UploadClient, headers: dict[str, str]
) -> None:
    one = chunk(b"from elsewhere")
    sent = requests.post(
        client.server.url + CHUNK_UPLOAD,
        data=multipart([one]),
        headers={**client.authorization, "Content-Type": content_type(), **headers},
        timeout=60,
    )
    assert (sent.status_code, list(sent.json())) == (403, ["detail"])
    assert one.filename not in blobs_on_record(client.server)
