"""What archives and blob storages share of Google Storage: what is asked, and refusals in words."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest
from archive_proxy import ArchiveProxy
from archive_server import Fault
from real_servers import emulated_google_storage
from source_calls import assert_is_for_people

from artifacts.archive_url import ArchiveUrl
from artifacts.errors import ArchiveError, TransientArchiveError
from artifacts.sources.gs import GoogleStorageSource
from artifacts.sources.transport import Timeouts

URL = ArchiveUrl.parse("gs://images/target/build")


@pytest.fixture(scope="module")
def emulated() -> Iterator[str]:
    with emulated_google_storage() as client:
        client.create_bucket("images").blob("target/build/file").upload_from_string(b"content")
        yield os.environ["STORAGE_EMULATOR_HOST"]


@pytest.fixture
def proxy(emulated: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveProxy]:
    with ArchiveProxy(emulated) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        yield proxy


@pytest.fixture
def source(proxy: ArchiveProxy) -> Iterator[GoogleStorageSource]:
    source = GoogleStorageSource(Timeouts(5, 5), max_connections=4)
    yield source
    source.close()


CALLS: dict[str, Callable[[GoogleStorageSource], object]] = {
    "list": lambda source: source.list(URL),
    "stat": lambda source: source.stat(URL, "file"),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_call
def test_the_library_asks_nothing_of_its_own(
    source: GoogleStorageSource,
    proxy: ArchiveProxy,
    call: Callable[[GoogleStorageSource], object],
) -> None:
    threads_before = set(threading.enumerate())
    call(source)
    for thread in set(threading.enumerate()) - threads_before:
        if not thread.name.startswith("archive-"):
            thread.join(10)
    assert len(proxy.requests) == 1


@every_call
@pytest.mark.parametrize("status", [408, 429, 500, 503, 507])
def test_a_status_that_may_pass_is_worth_another_try(
    source: GoogleStorageSource,
    proxy: ArchiveProxy,
    call: Callable[[GoogleStorageSource], object],
    status: int,
) -> None:
    proxy.misbehave("*", Fault(status=status, retry_after=7))
    with pytest.raises(TransientArchiveError) as caught:
        call(source)
    assert_is_for_people(caught.value, str(URL), f"answered {status}")
    assert caught.value.retry_after_seconds == 7


@every_call
@pytest.mark.parametrize(("status", "words"), [(403, "answered 403"), (401, "wants credentials")])
def test_a_refusal_is_told_in_words(
    source: GoogleStorageSource,
    proxy: ArchiveProxy,
    call: Callable[[GoogleStorageSource], object],
    status: int,
    words: str,
) -> None:
    proxy.misbehave("*", Fault(status=status))
    with pytest.raises(ArchiveError) as caught:
        call(source)
    assert type(caught.value) is ArchiveError
    assert_is_for_people(caught.value, str(URL), words)


@every_call
def test_what_answers_in_something_else_than_json_is_no_google_storage(
    source: GoogleStorageSource,
    proxy: ArchiveProxy,
    call: Callable[[GoogleStorageSource], object],
) -> None:
    proxy.misbehave("*", Fault(swap=b"<html>Welcome</html>"))
    with pytest.raises(TransientArchiveError) as caught:
        call(source)
    assert_is_for_people(caught.value, str(URL), "did not answer as Google Storage does")
