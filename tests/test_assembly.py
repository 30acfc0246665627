"""Assembling: what is told of files that clients offer, and what is done about them."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import pytest
from assembling import Assembling, NotedPurpose, assembling, offer_of
from conftest import missing_tool
from faulty_storage import Trouble
from polling import wait_until
from stored_uploads import ORGANIZATION, sha1

from artifacts.blobs.assembly import Assembly
from artifacts.blobs.begun_work import BegunOffer, BegunWork
from artifacts.blobs.offers import Offer
from artifacts.blobs.storage import StorageError
from artifacts.database.database import Database
from artifacts.database.tables import assemblies, build_files, builds, files

ASSEMBLING, OK = Assembly("assembling"), Assembly("ok")
A, B, C = b"a" * 3_000_000, os.urandom(2_000_000), b"c"


@pytest.fixture
def uploads(database: Database, tmp_path: Path) -> Iterator[Assembling]:
    with assembling(database, tmp_path) as made:
        yield made
    assert list(made.directory.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, where files are assembled."""
    directory = tmp_path / "small"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        missing_tool("the right to mount a small file system")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def test_chunks_make_a_file_in_the_order_that_was_given(uploads: Assembling) -> None:
    chunks = [B, A, C, A, b"", C]
    uploads.send(*chunks)
    purpose = NotedPurpose()
    assert uploads.ask(purpose, offer_of(chunks)) == [ASSEMBLING]
    assert uploads.settle(purpose, offer_of(chunks)) == OK
    content = b"".join(chunks)
    assert purpose.seen == [content]
    file = uploads.stored.files.find(ORGANIZATION, sha1(content))
    assert file is not None
    assert (file.size, file.crc32c) == (len(content), google_crc32c.value(content))
    assert [(part.offset, part.checksum) for part in file.parts] == [
        (len(b"".join(chunks[:number])), sha1(chunk)) for number, chunk in enumerate(chunks)
    ]


def test_a_file_of_one_chunk_and_an_empty_one_are_assembled(uploads: Assembling) -> None:
    uploads.send(A, b"")
    build = uploads.build()
    for chunk in (A, b""):
        assert uploads.settle(build, offer_of([chunk], name=f"of-{len(chunk)}")) == OK
        file = uploads.stored.files.find(ORGANIZATION, sha1(chunk))
        assert file is not None
        assert (file.size, file.crc32c) == (len(chunk), google_crc32c.value(chunk))


def test_chunks_that_are_missing_are_named_once_and_in_order(uploads: Assembling) -> None:
    uploads.send(A)
    offer = offer_of([C, A, B, C, B])
    missing = Assembly("not_found", (sha1(C), sha1(B)))
    assert uploads.ask(uploads.build(), offer) == [missing]
    uploads.send(C)
    assert uploads.ask(uploads.build(), offer) == [Assembly("not_found", (sha1(B),))]
    uploads.send(B)
    assert uploads.settle(uploads.build(), offer) == OK


def test_chunks_of_others_are_missing_until_they_are_sent(uploads: Assembling) -> None:
    uploads.send(A, organization="others")
    offer = offer_of([A])
    assert uploads.ask(uploads.build(), offer) == [Assembly("not_found", (sha1(A),))]
    uploads.send(A)
    assert uploads.settle(uploads.build(), offer) == OK


def test_a_file_of_others_has_to_be_sent_though_it_is_there(uploads: Assembling) -> None:
    uploads.send(A, organization="others")
    theirs = uploads.build("board/R1", "others")
    assert uploads.settle(theirs, offer_of([A])) == OK
    ours = uploads.build("board/R2")
    assert uploads.ask(ours, offer_of([A])) == [Assembly("not_found", (sha1(A),))]


def test_chunks_that_clients_were_told_of_outlive_the_garbage_collection(
    uploads: Assembling,
) -> None:
    uploads.send(A)
    uploads.stored.later = 23.9 * 3600
    uploads.ask(uploads.build(), offer_of([A, B]))
    uploads.stored.collect()
    uploads.send(B)
    assert uploads.settle(uploads.build(), offer_of([A, B])) == OK
    uploads.stored.later = 100 * 3600
    uploads.stored.collect()
    assert uploads.ask(uploads.build(), offer_of([A, B])) == [OK]


def test_chunks_that_make_another_file_are_an_error_and_nothing_is_recorded(
    uploads: Assembling,
) -> None:
    uploads.send(A, B)
    wrong = offer_of([A, B], checksum=sha1(b"another"))
    purpose = NotedPurpose()
    answer = uploads.settle(purpose, wrong)
    assert answer == Assembly.error(f"checksum mismatch: the chunks make {sha1(A + B)}")
    assert uploads.stored.count(files) == 0 and purpose.seen == []
    # Others who ask at the same time are told, too, and nothing is read again for them.
    opened = uploads.opened
    assert uploads.ask(purpose, wrong) == [answer]
    assert uploads.opened == opened


def test_other_chunks_for_the_same_checksum_are_tried_at_once(uploads: Assembling) -> None:
    uploads.send(A, B)
    wrong = offer_of([B, A], checksum=sha1(A + B))
    assert uploads.settle(uploads.build(), wrong).state == "error"
    assert uploads.ask(uploads.build(), offer_of([A, B])) == [ASSEMBLING]
    assert uploads.settle(uploads.build(), offer_of([A, B])) == OK
    # What is there is there, whatever is said of its chunks.
    assert uploads.ask(uploads.build(), wrong) == [OK]


def test_an_error_is_tried_again_when_it_has_been_told_for_a_while(uploads: Assembling) -> None:
    uploads.send(A, B)
    wrong = offer_of([A, B], checksum=sha1(b"another"))
    assert uploads.settle(uploads.build(), wrong).state == "error"
    database = uploads.stored.database
    with database.reading() as connection:
        told_until = connection.execute(assemblies.select()).one().expires_at
    assert told_until - uploads.stored.now() <= 60
    with database.writing() as connection:
        connection.execute(assemblies.update().values(expires_at=uploads.stored.now()))
    assert uploads.ask(uploads.build(), wrong) == [ASSEMBLING]
    assert uploads.settle(uploads.build(), wrong).state == "error"


def test_a_storage_that_fails_is_told_once_and_then_tried_again(uploads: Assembling) -> None:
    uploads.send(A, B)
    uploads.storage.misbehave("open", Trouble(error=StorageError("the storage is on fire")))
    offer = offer_of([A, B])
    answer = uploads.settle(uploads.build(), offer)
    assert answer == Assembly.error("the storage is on fire")
    uploads.storage.behave()
    assert uploads.ask(uploads.build(), offer) == [ASSEMBLING]
    assert uploads.settle(uploads.build(), offer) == OK


def test_a_blob_that_is_cut_half_way_is_an_error_that_passes(uploads: Assembling) -> None:
    uploads.send(A, B)
    uploads.storage.misbehave("open", Trouble(cut_at=1_000_000), checksum=sha1(B), times=1)
    purpose = NotedPurpose()
    answer = uploads.settle(purpose, offer_of([A, B]))
    assert answer == Assembly.error("the storage cut the connection")
    assert uploads.settle(purpose, offer_of([A, B])) == OK
    assert purpose.seen == [A + B]


@pytest.mark.parametrize("damaged", [b"b" * len(B), B[:-1], B + b"b", b""])
def test_a_blob_that_is_damaged_is_missing_until_it_is_sent_again(
    uploads: Assembling, tmp_path: Path, damaged: bytes
) -> None:
    uploads.send(A, B)
    stored = tmp_path / "blobs" / sha1(B)[:2] / sha1(B)[2:]
    stored.write_bytes(damaged)
    purpose = NotedPurpose()
    assert uploads.settle(purpose, offer_of([A, B, C]))  # C is not there: nothing is read
    uploads.send(C)
    answer = uploads.settle(purpose, offer_of([A, B, C]))
    assert answer == Assembly("not_found", (sha1(B),))
    assert not stored.exists() and purpose.seen == []
    uploads.send(B)
    assert uploads.settle(purpose, offer_of([A, B, C])) == OK
    assert purpose.seen == [A + B + C]


def test_blobs_that_are_no_chunks_do_not_make_the_file_either(
    uploads: Assembling, tmp_path: Path
) -> None:
    uploads.send(A, B)
    for name, content in ((sha1(A), A + B[:1]), (sha1(B), B[1:])):
        (tmp_path / "blobs" / name[:2] / name[2:]).write_bytes(content)
    answer = uploads.settle(uploads.build(), offer_of([A, B]))
    assert answer.state == "not_found" and sha1(A) in answer.missing_chunks


def test_a_blob_that_has_vanished_is_missing(uploads: Assembling, tmp_path: Path) -> None:
    uploads.send(A, B)
    (tmp_path / "blobs" / sha1(A)[:2] / sha1(A)[2:]).unlink()
    answer = uploads.settle(uploads.build(), offer_of([A, B]))
    assert answer == Assembly("not_found", (sha1(A),))


def test_a_blob_that_only_came_damaged_stays(uploads: Assembling) -> None:
    uploads.send(A, B)
    uploads.storage.misbehave("open", Trouble(flip_at=12345), checksum=sha1(A), times=1)
    answer = uploads.settle(uploads.build(), offer_of([A, B]))
    assert answer.state == "error" and "whole by now" in (answer.detail or "")
    assert uploads.settle(uploads.build(), offer_of([A, B])) == OK


def test_a_file_that_has_lost_a_blob_is_whole_again_once_that_is_sent(uploads: Assembling) -> None:
    uploads.send(A, B)
    assert uploads.settle(uploads.build(), offer_of([A, B])) == OK
    uploads.storage.misbehave("open", Trouble(flip_at=1), checksum=sha1(B), times=1)
    assert uploads.stored.blobs.drop(sha1(B)) is not None
    assert uploads.ask(uploads.build(), offer_of([A, B])) == [Assembly("not_found", (sha1(B),))]
    uploads.send(B)
    assert uploads.ask(uploads.build(), offer_of([A, B])) == [OK]


def test_a_file_that_has_lost_a_blob_is_whole_again_from_other_chunks(uploads: Assembling) -> None:
    uploads.send(A, B)
    assert uploads.settle(uploads.build(), offer_of([A, B])) == OK
    uploads.storage.misbehave("open", Trouble(flip_at=1), checksum=sha1(B), times=1)
    assert uploads.stored.blobs.drop(sha1(B)) is not None
    halves = [(A + B)[:1_000_000], (A + B)[1_000_000:]]
    uploads.send(*halves)
    assert uploads.settle(uploads.build(), offer_of(halves)) == OK
    file = uploads.stored.files.find(ORGANIZATION, sha1(A + B))
    assert file is not None
    assert [part.checksum for part in file.parts] == [sha1(half) for half in halves]


def test_a_file_is_read_once_however_many_ask_for_it_at_once(uploads: Assembling) -> None:
    uploads.send(A, B)
    purpose = NotedPurpose()
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: uploads.ask(purpose, offer_of([A, B]))[0], range(50)))
    assert {answer.state for answer in answers} <= {"assembling", "ok"}
    assert uploads.settle(purpose, offer_of([A, B])) == OK
    assert purpose.seen == [A + B]
    assert sorted(uploads.opened) == sorted([sha1(A), sha1(B)])


def test_two_servers_assemble_a_file_once(uploads: Assembling, tmp_path: Path) -> None:
    uploads.send(A, B)
    purpose = NotedPurpose()
    purpose.may_go_on.clear()
    uploads.ask(purpose, offer_of([A, B]))
    other = uploads.make_assembler(tmp_path / "other")
    try:
        answers = other.answer(purpose, [offer_of([A, B])])
        assert list(answers.values()) == [ASSEMBLING]
        purpose.may_go_on.set()
        assert uploads.settle(purpose, offer_of([A, B])) == OK
    finally:
        other.close(timeout_seconds=30)
    assert purpose.seen == [A + B]


def test_many_who_want_one_file_do_not_keep_others_from_theirs(uploads: Assembling) -> None:
    uploads.send(A, B)
    slow = NotedPurpose()
    slow.may_go_on.clear()
    uploads.ask(slow, offer_of([A, B]))
    for number in range(8):
        uploads.ask(uploads.build(f"board/R{number}"), offer_of([A, B]))
    other = uploads.build("board/other")
    assert uploads.settle(other, offer_of([B])) == OK
    assert slow.seen == []
    slow.may_go_on.set()
    assert uploads.settle(slow, offer_of([A, B])) == OK
    # Without anybody asking again.
    wait_until(lambda: uploads.stored.count(build_files) == 1 + 8)


def test_files_of_one_request_are_told_apart(uploads: Assembling) -> None:
    uploads.send(A, B)
    ready, missing = offer_of([A], "a"), offer_of([C], "c")
    wrong = offer_of([A, B], "ab", checksum=sha1(b"another"))
    build = uploads.build()
    first = uploads.ask(build, ready, missing, wrong)
    assert first == [ASSEMBLING, Assembly("not_found", (sha1(C),)), ASSEMBLING]
    assert uploads.settle(build, wrong).state == "error"
    assert uploads.settle(build, ready) == OK
    states = [answer.state for answer in uploads.ask(build, ready, missing, wrong)]
    assert states == ["ok", "not_found", "error"]


def test_a_file_over_the_limit_is_an_error_without_any_work(uploads: Assembling) -> None:
    uploads.send(A, B)
    purpose = NotedPurpose(max_file_bytes=len(A + B))
    over = [A, B, C]
    # Even if it is not known how much larger it is.
    assert uploads.ask(purpose, offer_of([*over, A])) == [
        Assembly.error("the file is larger than 5,000,000 bytes")
    ]
    uploads.send(C)
    assert uploads.ask(purpose, offer_of(over))[0].state == "error"
    assert uploads.opened == []
    assert uploads.settle(purpose, offer_of([A, B])) == OK


def test_a_chunk_that_is_named_so_often_that_no_build_has_such_a_file_is_an_error(
    uploads: Assembling,
) -> None:
    uploads.send(bytes(8 << 20))
    over = Offer("0" * 40, "zeros.img", (sha1(bytes(8 << 20)),) * (8192 + 1))
    assert uploads.ask(uploads.build(), over) == [
        Assembly.error("the file is larger than 68,719,476,736 bytes")
    ]
    assert uploads.opened == []


def test_a_hundred_thousand_chunks_are_answered_and_assembled(uploads: Assembling) -> None:
    uploads.send(C)
    many = offer_of([C] * 65_536)
    missing = offer_of([C, b"d"] * 50_000, "missing")
    assert uploads.ask(uploads.build(), missing) == [Assembly("not_found", (sha1(b"d"),))]
    assert uploads.settle(uploads.build(), many) == OK


def test_a_full_disk_is_told_once_and_leaves_nothing(
    database: Database, tmp_path: Path, small_disk: Path
) -> None:
    with assembling(database, tmp_path, small_disk / "assembling") as uploads:
        uploads.send(A, C)
        purpose = NotedPurpose()
        offer = offer_of([C, A])
        answer = uploads.settle(purpose, offer)
        assert answer.state == "error" and "the disk is full" in (answer.detail or "")
        assert list(uploads.directory.iterdir()) == [] and uploads.stored.count(files) == 0
        # It may have room by now.
        assert uploads.ask(purpose, offer) == [ASSEMBLING]
        assert uploads.settle(purpose, offer).state == "error"
        assert uploads.settle(purpose, offer_of([C])) == OK


def test_an_end_of_the_server_leaves_nothing_and_tells_no_error(
    database: Database, tmp_path: Path
) -> None:
    with assembling(database, tmp_path) as uploads:
        uploads.send(A, B)
        hold = threading.Event()
        uploads.storage.misbehave("open", Trouble(hold=hold))
        uploads.ask(uploads.build(), offer_of([A, B]))
        wait_until(lambda: bool(uploads.opened))
        ending = threading.Thread(target=uploads.assembler.close, args=(30,))
        ending.start()
        hold.set()
        ending.join(30)
        assert not ending.is_alive()
        # It is to be taken up: nothing is decided.
        assert [begun.offer for begun in begun_work(database)] == [offer_of([A, B])]
        assert uploads.stored.count(assemblies) == 1 and uploads.stored.count(files) == 0
    # The next server begins again, without what the last one may have left.
    (tmp_path / "assembling" / "file-left").write_bytes(b"half")
    with assembling(database, tmp_path) as uploads:
        assert list(uploads.directory.iterdir()) == []
        assert uploads.settle(uploads.build(), offer_of([A, B])) == OK


def test_a_file_that_is_there_is_named_in_another_build_without_being_read(
    uploads: Assembling,
) -> None:
    uploads.send(A, B)
    assert uploads.settle(uploads.build("board/R1"), offer_of([A, B])) == OK
    opened = uploads.opened
    assert uploads.settle(uploads.build("board/R2"), offer_of([A, B], "again.bin")) == OK
    assert uploads.opened == opened
    assert uploads.stored.count(files) == 1 and uploads.stored.count(build_files) == 2


def test_a_name_in_a_build_is_set_once(uploads: Assembling) -> None:
    uploads.send(A, B)
    build = uploads.build()
    assert uploads.settle(build, offer_of([A], "image.bin")) == OK
    other = offer_of([B], "image.bin")
    answer = uploads.ask(build, other)[0]
    assert answer.state == "error" and sha1(A) in (answer.detail or "")
    assert uploads.settle(build, offer_of([B], "other.bin")) == OK
    assert uploads.ask(build, offer_of([A], "image.bin")) == [OK]


def test_of_two_files_for_one_name_at_once_one_is_an_error(uploads: Assembling) -> None:
    uploads.send(A, B)
    build = uploads.build()
    offers = [offer_of([A], "image.bin"), offer_of([B], "image.bin")]
    uploads.ask(build, *offers)
    states = sorted(uploads.settle(build, offer).state for offer in offers)
    assert states == ["error", "ok"]


def test_a_build_belongs_to_the_organization_that_published_it_first(uploads: Assembling) -> None:
    uploads.send(A, B)
    uploads.send(A, B, organization="others")
    assert uploads.settle(uploads.build("board/R1"), offer_of([A])) == OK
    theirs = uploads.build("board/R1", "others")
    answer = uploads.ask(theirs, offer_of([B], "more.bin"))[0]
    assert answer.state == "error" and "another organization" in (answer.detail or "")
    assert uploads.stored.count(builds) == 1


def test_of_two_organizations_that_publish_a_build_at_once_one_gets_it(
    uploads: Assembling,
) -> None:
    uploads.send(A, B)
    uploads.send(A, B, organization="others")
    tried = [uploads.build("board/R1", organization) for organization in (ORGANIZATION, "others")]
    for purpose in tried:
        uploads.ask(purpose, offer_of([A], "a"), offer_of([B], "b"))
    states = {
        tuple(uploads.settle(purpose, offer_of([chunk], name)).state for chunk, name in files)
        for purpose in tried
        for files in [[(A, "a"), (B, "b")]]
    }
    assert states == {("ok", "ok"), ("error", "error")}


@pytest.mark.parametrize(("first", "second"), [("a/b", "a"), ("a", "a/b/c"), ("a/b/c", "a/b")])
def test_one_name_cannot_be_a_file_and_a_directory(
    uploads: Assembling, first: str, second: str
) -> None:
    uploads.send(A, B)
    assert uploads.settle(uploads.build(), offer_of([A], first)) == OK
    answer = uploads.settle(uploads.build(), offer_of([B], second))
    assert answer.state == "error" and "directory" in (answer.detail or "")
    assert uploads.settle(uploads.build(), offer_of([B], "a_/b%")) == OK


def test_names_that_differ_in_case_are_names_of_their_own(uploads: Assembling) -> None:
    uploads.send(A, B)
    for name in ("Ä/b%_", "Images/disk.bin"):
        assert uploads.settle(uploads.build(), offer_of([A], name)) == OK
    for name in ("images", "ä", "I", "Images/d"):
        assert uploads.settle(uploads.build(), offer_of([B], name)) == OK
    for name in ("Images", "Ä"):
        answer = uploads.settle(uploads.build(), offer_of([B], name))
        assert answer.state == "error" and "directory" in (answer.detail or "")


def test_a_name_that_is_too_long_is_an_error_in_words_and_the_longest_is_taken(
    uploads: Assembling,
) -> None:
    uploads.send(A)
    # Of three bytes each, and by chance, so that no index packs them.
    letters = "".join(chr(0x4E00 + number) for number in os.urandom(2000))
    segments = [letters[start : start + 80] for start in range(0, len(letters), 80)]
    longest = "/".join([*segments[:4], "x" * 60])
    for name in ("/".join(segments), f"{longest}x"):
        answer = uploads.ask(uploads.build(), offer_of([A], name))[0]
        assert answer.state == "error" and "1,024 bytes" in (answer.detail or "")
    assert uploads.settle(uploads.build(), offer_of([A], longest)) == OK


@pytest.mark.parametrize("name", [".hidden", "a/.hidden/b"])
def test_dot_names_are_reserved(uploads: Assembling, name: str) -> None:
    uploads.send(A)
    answer = uploads.ask(uploads.build(), offer_of([A], name))[0]
    assert answer.state == "error" and "reserved" in (answer.detail or "")


def test_what_had_begun_when_a_server_ended_is_taken_up_by_the_next(
    database: Database, tmp_path: Path
) -> None:
    purpose = NotedPurpose()
    offer = offer_of([A, B, C])
    with assembling(database, tmp_path) as ended:
        ended.send(A, B, C)
        ended.storage.misbehave("open", Trouble(hold=(hold := threading.Event())))
        assert ended.ask(purpose, offer)[0].state == "assembling"
        wait_until(lambda: ended.opened != [])
        closing_down = threading.Thread(target=ended.assembler.close, args=(0.2,))
        closing_down.start()
        closing_down.join()
        hold.set()
    assert purpose.seen == []

    with assembling(database, tmp_path) as started:
        started.assembler.knows(purpose.kind, lambda organization, place: purpose)
        started.assembler.take_up()
        # Without anybody asking.
        wait_until(lambda: purpose.seen == [A + B + C])
        wait_until(lambda: begun_work(database) == [])


def test_what_had_begun_and_cannot_go_on_is_forgotten(database: Database, tmp_path: Path) -> None:
    purpose = NotedPurpose()
    offer = offer_of([A, B])
    with assembling(database, tmp_path) as made:
        made.assembler.knows(purpose.kind, lambda organization, place: purpose)
        BegunWork(database).note({"0" * 64: BegunOffer(ORGANIZATION, purpose.kind, {}, offer)})
        made.assembler.take_up()
        wait_until(lambda: begun_work(database) == [])
    assert purpose.seen == []


def begun_work(database: Database) -> list[BegunOffer]:
    return [begun for _, begun in BegunWork(database).all()]
