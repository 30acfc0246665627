"""The source ``s3``: what it makes of answers that err, and of what only S3 tells."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import google_crc32c
import pytest
import source_calls
from archive_proxy import ArchiveProxy
from archive_server import ArchiveServer, Fault
from conftest import Serve
from real_servers import S3, S3_PAGE_FILES, Bucket, emulated_s3, make_certificate, nginx
from source_calls import Ask, every_call, read

from artifacts.archive_url import AllowList, ArchiveUrl
from artifacts.checksums import Checksums
from artifacts.commands.sample_build import BUILD, FULL_PAYLOAD, TARGET
from artifacts.errors import (
    ArchiveError,
    ArchiveFileChanged,
    ArchiveFileMissing,
    BuildNotFound,
    TransientArchiveError,
)
from artifacts.sources import s3 as s3_source
from artifacts.sources.registry import Sources
from artifacts.sources.s3 import told_checksums
from artifacts.sources.source import ArchiveFile, Source
from artifacts.sources.transport import Timeouts

CONTENT = bytes(range(256)) * 4000
SIZE = len(CONTENT)
KEY = "target/build/file"
STALL_SECONDS = 0.3
NO_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with emulated_s3(tmp_path_factory.mktemp("s3")) as s3:
        yield s3


_numbers = count(1)


@pytest.fixture
def bucket(s3: S3) -> Bucket:
    bucket = s3.create_bucket(f"bucket-{next(_numbers)}")
    bucket.put(KEY, CONTENT)
    return bucket


@pytest.fixture
def proxy(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveProxy]:
    with ArchiveProxy(s3.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def url(bucket: Bucket) -> ArchiveUrl:
    return ArchiveUrl.parse(f"s3://{bucket.name}/target/build")


@contextmanager
def opened_source(url: ArchiveUrl) -> Iterator[Source]:
    sources = Sources(AllowList(["s3://"]), Timeouts(5, STALL_SECONDS), max_connections=8)
    try:
        yield sources.source_of(url)
    finally:
        sources.close()


@pytest.fixture
def source(url: ArchiveUrl, proxy: ArchiveProxy) -> Iterator[Source]:
    with opened_source(url) as source:
        yield source


@pytest.fixture
def file(source: Source, url: ArchiveUrl) -> ArchiveFile:
    return source.stat(url, "file")


assert_is_for_people = partial(source_calls.assert_is_for_people, also_strange=("()",))


# --- end to end


def test_a_build_is_staged_from_s3(
    serve: Serve, s3: S3, proxy: ArchiveProxy, sample_archive: Path
) -> None:
    bucket, name = s3.create_bucket("images"), f"{TARGET}/{BUILD}"
    for path in (sample_archive / name).iterdir():
        bucket.put(f"builds/{name}/{path.name}", path.read_bytes())
    payload = f"/images/builds/{name}/{FULL_PAYLOAD}"
    proxy.misbehave(payload, Fault(status=503), times=1)
    proxy.misbehave(payload, Fault(cut_after=100_000), times=1)
    server = serve("--tries", "3")
    archive_url = f"s3://images/builds/{name}"

    assert server.call("/download", archive_url=archive_url) == "Success"
    assert server.call("/wait_for_status", archive_url=archive_url) == "Success"

    expected = (sample_archive / name / FULL_PAYLOAD).read_bytes()
    assert server.file(f"{name}/update.gz") == expected
    assert server.call("/latestbuild", target=TARGET) == BUILD
    missing = server.get("/download", archive_url="s3://images/builds/board/R1-1.0.0")
    assert (missing.status_code, "no such build" in missing.text) == (404, True)


def test_checksums_beside_the_files_are_read_though_they_are_stored_compressed(
    serve: Serve, s3: S3, proxy: ArchiveProxy
) -> None:
    bucket = s3.create_bucket("summed")
    digest = hashlib.sha256(CONTENT).hexdigest()
    sums = f"{digest}  right\n{digest}  wrong\n".encode()
    bucket.put("board/R1-1.0.0/SHA256SUMS", gzip.compress(sums), Content_Encoding="gzip")
    bucket.put("board/R1-1.0.0/right", CONTENT)
    bucket.put("board/R1-1.0.0/wrong", CONTENT[::-1])
    server = serve("--tries", "1")
    url = "s3://summed/board/R1-1.0.0"
    assert server.call("/stage", archive_url=url, files="right") == "Success"
    failure = server.get("/stage", archive_url=url, files="wrong")
    assert (failure.status_code, "SHA256" in failure.text) == (502, True), failure.text


# --- configuration


def test_without_credentials_it_asks_anonymously(
    bucket: Bucket, proxy: ArchiveProxy, url: ArchiveUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(KEY, CONTENT, x_amz_acl="public-read")
    for name in NO_CREDENTIALS:
        monkeypatch.delenv(name)
    with opened_source(url) as source:
        assert read(source, url, source.stat(url, "file")) == CONTENT
        assert read(source, url, source.list(url)[0], 5, 10) == CONTENT[5:10]
    assert not any("Authorization" in request.headers for request in proxy.requests)


def test_with_credentials_it_signs(
    source: Source, url: ArchiveUrl, proxy: ArchiveProxy, file: ArchiveFile
) -> None:
    source.list(url)
    read(source, url, file, 5, 10)
    assert len(proxy.requests) == 3
    assert all("Credential=key/" in request.headers["Authorization"] for request in proxy.requests)


def test_a_configuration_that_is_none_is_an_error_in_words(
    url: ArchiveUrl, proxy: ArchiveProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with opened_source(url) as source, pytest.raises(ArchiveError, match="nobody") as caught:
        source.list(url)
    assert_is_for_people(caught.value, str(url), "profile")


def test_an_endpoint_that_is_not_trusted_is_an_error_in_words(
    url: ArchiveUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path / "certificate")
    with nginx(tmp_path, tmp_path / "nginx", certificate=certificate) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        with opened_source(url) as source, pytest.raises(ArchiveError, match="not trusted"):
            source.list(url)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        with opened_source(url) as source, pytest.raises(BuildNotFound):
            source.list(url)


# --- listing


def test_a_listing_of_many_pages_is_read_to_its_end(
    bucket: Bucket, source: Source, url: ArchiveUrl
) -> None:
    names = {f"many/{number}" for number in range(3 * S3_PAGE_FILES)}
    for name in names:
        bucket.put(f"target/build/{name}", b"")
    assert sorted(file.name for file in source.list(url)) == sorted({"file", *names})


def test_a_listing_that_is_too_long_is_refused(
    bucket: Bucket, source: Source, url: ArchiveUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_source, "_MAX_FILES", 2)
    bucket.put("target/build/2", b"")
    assert len(source.list(url)) == 2
    bucket.put("target/build/3", b"")
    with pytest.raises(ArchiveError, match="over 2 files"):
        source.list(url)


def test_what_stands_for_directories_is_passed_over(
    bucket: Bucket, source: Source, url: ArchiveUrl
) -> None:
    for key in ("target/build/", "target/build/directory/"):
        bucket.put(key, b"")
    assert [file.name for file in source.list(url)] == ["file"]


def test_a_bucket_that_is_not_there_has_no_builds(source: Source) -> None:
    with pytest.raises(BuildNotFound):
        source.list(ArchiveUrl.parse("s3://nothing/target/build"))
    with pytest.raises(ArchiveFileMissing):
        source.stat(ArchiveUrl.parse("s3://nothing/target/build"), "file")
    with pytest.raises(ArchiveFileMissing):
        source.open(ArchiveUrl.parse("s3://nothing/target/build"), ArchiveFile("file"))


@pytest.mark.parametrize("sent", [0, 1, 100, 300])
def test_a_listing_that_is_cut_is_worth_another_try(
    source: Source, url: ArchiveUrl, proxy: ArchiveProxy, sent: int
) -> None:
    proxy.misbehave(f"/{url.authority}", Fault(cut_after=sent), times=1)
    with pytest.raises(TransientArchiveError):
        source.list(url)
    assert source.list(url)


@pytest.mark.parametrize("answer", [b"", b"<html>", b"<html></html>", b"{}", b"\xff\0"])
def test_what_is_no_listing_is_not_taken_for_an_empty_one(
    source: Source, url: ArchiveUrl, proxy: ArchiveProxy, answer: bytes
) -> None:
    proxy.misbehave(f"/{url.authority}", Fault(swap=answer))
    with pytest.raises(TransientArchiveError) as caught:
        source.list(url)
    assert_is_for_people(caught.value, str(url))


# --- checksums


def test_a_file_comes_with_what_its_bytes_amount_to(
    bucket: Bucket, source: Source, url: ArchiveUrl
) -> None:
    md5 = hashlib.md5(CONTENT).digest()
    crc32c = google_crc32c.value(CONTENT)
    encoded = base64.b64encode(crc32c.to_bytes(4, "big")).decode()
    bucket.put(KEY, CONTENT, x_amz_checksum_crc32c=encoded, x_amz_sdk_checksum_algorithm="CRC32C")

    told = source.stat(url, "file")
    assert told.checksums == Checksums(crc32c, md5)
    listed = source.list(url)[0]
    assert (listed.checksums, listed.stat_tells_more) == (Checksums(), True)
    with source.open(url, listed) as opened:
        assert opened.file.checksums == Checksums(crc32c, md5)
    with source.open(url, listed, 10, 20) as opened:
        assert opened.file.checksums == Checksums(md5=md5)


ENCRYPTED = {
    "KMS": {"x_amz_server_side_encryption": "aws:kms"},
    "directory bucket": {"x_amz_storage_class": "EXPRESS_ONEZONE"},
}


@pytest.mark.parametrize("case", ENCRYPTED)
def test_an_etag_that_is_no_md5_is_not_taken_for_one(
    bucket: Bucket, source: Source, url: ArchiveUrl, case: str
) -> None:
    bucket.put(KEY, CONTENT, **ENCRYPTED[case])
    file = source.stat(url, "file")
    assert file.checksums == Checksums()
    with source.open(url, file) as opened:
        assert opened.file.checksums == Checksums()


MD5 = "0123456789abcdef0123456789abcdef"
TOLD: dict[str, tuple[dict[str, str], Checksums]] = {
    "nothing": ({}, Checksums()),
    "an MD5": ({"ETag": f'"{MD5}"'}, Checksums(md5=bytes.fromhex(MD5))),
    "an MD5, encrypted by S3": (
        {"ETag": f'"{MD5}"', "x-amz-server-side-encryption": "AES256"},
        Checksums(md5=bytes.fromhex(MD5)),
    ),
    "encrypted with the customer's key": (
        {"ETag": f'"{MD5}"', "x-amz-server-side-encryption-customer-algorithm": "AES256"},
        Checksums(),
    ),
    "a weak ETag": ({"ETag": f'W/"{MD5}"'}, Checksums()),
    "something else": ({"ETag": f'"{MD5}0"'}, Checksums()),
    "of an object": (
        {"x-amz-checksum-crc32c": "AAAAAQ==", "x-amz-checksum-type": "FULL_OBJECT"},
        Checksums(crc32c=1),
    ),
    "of an object, and no type": ({"x-amz-checksum-crc32c": "AAAAAQ=="}, Checksums(crc32c=1)),
    "of parts": (
        {"x-amz-checksum-crc32c": "AAAAAQ==", "x-amz-checksum-type": "COMPOSITE"},
        Checksums(),
    ),
    "of parts, by its form": ({"x-amz-checksum-crc32c": "AAAAAQ==-2"}, Checksums()),
}


@pytest.mark.parametrize("case", TOLD)
def test_only_what_is_a_checksum_of_all_bytes_counts(case: str) -> None:
    headers, checksums = TOLD[case]
    assert told_checksums(headers, is_whole=True) == checksums
    assert told_checksums(headers, is_whole=False) == Checksums(md5=checksums.md5)


def test_what_was_uploaded_in_parts_is_known_by_its_etag_all_the_same(
    bucket: Bucket, source: Source, url: ArchiveUrl
) -> None:
    parts = [bytes(5 << 20), b"the end"]
    bucket.put_in_parts(KEY, parts)
    file = source.stat(url, "file")
    assert file.generation is not None and file.generation.endswith("-2")
    assert file.checksums == Checksums()
    assert read(source, url, file, (5 << 20) - 2) == b"\0\0the end"


# --- faults


@every_call
@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520])
def test_a_status_that_may_pass_is_worth_another_try(
    source: Source, url: ArchiveUrl, proxy: ArchiveProxy, ask: Ask, status: int
) -> None:
    proxy.misbehave("*", Fault(status=status, head_too=True))
    with pytest.raises(TransientArchiveError) as caught:
        ask(source, url)
    assert_is_for_people(caught.value, str(url), f"answered {status}")
    assert len(proxy.requests) == 1  # who asks tries again, and not the library
    proxy.behave()
    ask(source, url)


@every_call
@pytest.mark.parametrize("status", [400, 401, 403, 405, 501])
def test_a_status_that_will_not_pass_is_not(
    source: Source, url: ArchiveUrl, proxy: ArchiveProxy, ask: Ask, status: int
) -> None:
    proxy.misbehave("*", Fault(status=status, head_too=True))
    with pytest.raises(ArchiveError) as caught:
        ask(source, url)
    assert type(caught.value) is ArchiveError
    assert_is_for_people(caught.value, str(url), f"answered {status}")


def test_what_s3_says_is_passed_on(bucket: Bucket, source: Source, url: ArchiveUrl) -> None:
    bucket.put(KEY, CONTENT, x_amz_storage_class="GLACIER")
    with pytest.raises(ArchiveError) as caught:
        source.open(url, ArchiveFile("file"))
    assert_is_for_people(caught.value, str(url), "answered 403: InvalidObjectState: ", "storage")


def test_the_store_says_when_to_ask_again(
    source: Source, url: ArchiveUrl, proxy: ArchiveProxy
) -> None:
    proxy.misbehave("*", Fault(status=503, retry_after=7))
    with pytest.raises(TransientArchiveError) as caught:
        source.list(url)
    assert caught.value.retry_after_seconds == 7


@every_call
@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_redirect_leads_nowhere(
    source: Source,
    url: ArchiveUrl,
    proxy: ArchiveProxy,
    tmp_path: Path,
    ask: Ask,
    status: int,
) -> None:
    with ArchiveServer(tmp_path) as elsewhere:
        target = f"{elsewhere.url}/{url.authority}/{KEY}"
        proxy.misbehave("*", Fault(redirect=target, status=status, head_too=True))
        with pytest.raises(ArchiveError, match="answered 30"):
            ask(source, url)
        assert elsewhere.requests == []
    assert len(proxy.requests) <= 3  # with the question of where the bucket is


@every_call
def test_a_connection_that_breaks_is_worth_another_try(
    source: Source, url: ArchiveUrl, proxy: ArchiveProxy, ask: Ask
) -> None:
    proxy.misbehave("*", Fault(reset=True, head_too=True))
    with pytest.raises(TransientArchiveError) as caught:
        ask(source, url)
    assert_is_for_people(caught.value, str(url), "reset the connection")
    assert len(proxy.requests) == 1


@every_call
def test_a_store_that_is_down_is_worth_another_try(
    source: Source, url: ArchiveUrl, proxy: ArchiveProxy, ask: Ask
) -> None:
    proxy.down()
    with pytest.raises(TransientArchiveError) as caught:
        ask(source, url)
    assert_is_for_people(caught.value, str(url), "refused the connection")
    proxy.up()
    ask(source, url)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(cut_after=SIZE // 2), "cut the connection"),
        (Fault(cut_after=0), "cut the connection"),
        (Fault(stall_after=SIZE // 2), f"sent nothing for {STALL_SECONDS} seconds"),
    ],
)
@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, SIZE - 1), (10, None)])
def test_a_body_that_does_not_come_is_noticed(
    source: Source,
    url: ArchiveUrl,
    proxy: ArchiveProxy,
    file: ArchiveFile,
    fault: Fault,
    words: str,
    start: int,
    stop: int | None,
) -> None:
    proxy.misbehave("*", fault)
    with pytest.raises(TransientArchiveError) as caught:
        read(source, url, file, start, stop)
    assert_is_for_people(caught.value, str(url), words)
    proxy.behave()
    assert read(source, url, file, start, stop) == CONTENT[start:stop]


LIES = ["bytes 5-9/10", "bytes 0-9/*", f"bytes 11-20/{SIZE}", f"bytes 10-500/{SIZE}", "nonsense"]


@pytest.mark.parametrize("content_range", LIES)
def test_a_range_is_not_trusted_to_be_the_one_that_was_asked_for(
    source: Source, url: ArchiveUrl, proxy: ArchiveProxy, file: ArchiveFile, content_range: str
) -> None:
    proxy.misbehave("*", Fault(content_range=content_range))
    with pytest.raises((TransientArchiveError, ArchiveFileChanged)):
        source.open(url, file, 10, 20)


def test_a_store_that_ignores_ranges_gives_the_whole(
    source: Source, url: ArchiveUrl, proxy: ArchiveProxy, file: ArchiveFile
) -> None:
    proxy.misbehave("*", Fault(ignore_range=True))
    with source.open(url, file, 1000, 2000) as opened:
        assert (opened.start, opened.stop) == (0, SIZE)


def test_a_store_that_ignores_conditions_is_found_out(
    source: Source, url: ArchiveUrl, proxy: ArchiveProxy, file: ArchiveFile
) -> None:
    proxy.misbehave("*", Fault(lie_etag='"another"'))
    for stop in (None, 20):
        with pytest.raises(ArchiveFileChanged):
            source.open(url, file, 10, stop)


@pytest.mark.parametrize("etag", ['W/"weak"', ""])
def test_a_file_without_a_strong_etag_has_no_generation(
    source: Source, url: ArchiveUrl, proxy: ArchiveProxy, etag: str
) -> None:
    proxy.misbehave("*", Fault(lie_etag=etag, head_too=True))
    file = source.stat(url, "file")
    assert file.generation is None
    assert read(source, url, file) == CONTENT


def test_a_connection_is_used_again(
    source: Source, url: ArchiveUrl, proxy: ArchiveProxy, file: ArchiveFile
) -> None:
    for start in range(10):
        read(source, url, file, start, start + 100_000)
        read(source, url, file)
        source.list(url)
        with pytest.raises(ArchiveFileMissing):
            source.stat(url, "nothing")
    assert proxy.connection_count == 1
