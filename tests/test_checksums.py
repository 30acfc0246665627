"""Checksums: what an archive says, how it is written, and whether bytes amount to it."""

from __future__ import annotations

import base64
import hashlib

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.checksums import Checksums, Verifier, parse_sha256_lines
from artifacts.errors import ArchiveError

DATA = b"the quick brown fox"
CRC32C = google_crc32c.value(DATA)
MD5 = hashlib.md5(DATA).digest()
SHA256 = hashlib.sha256(DATA).digest()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def verified(expected: Checksums, data: bytes = DATA) -> str | None:
    verifier = Verifier()
    verifier.expect(expected)
    verifier.update(data)
    return verifier.mismatch(expected)


def test_google_writes_checksums_big_endian_in_base64() -> None:
    crc32c = base64_of(CRC32C.to_bytes(4, "big"))
    said = Checksums.from_base64(crc32c=crc32c, md5=base64_of(MD5))
    assert said == Checksums(crc32c=CRC32C, md5=MD5)
    assert Checksums.from_base64(crc32c="AAAAAA==").crc32c == 0
    assert Checksums.from_base64() == Checksums()
    assert Checksums.from_base64(crc32c="", md5="") == Checksums()


@given(crc32c=st.integers(0, 2**32 - 1), md5=st.binary(min_size=16, max_size=16))
def test_the_goog_hash_header_is_read_in_any_order(crc32c: int, md5: bytes) -> None:
    parts = [f"crc32c={base64_of(crc32c.to_bytes(4, 'big'))}", f"md5={base64_of(md5)}"]
    assert Checksums.from_goog_hash(",".join(parts)) == Checksums(crc32c, md5)
    assert Checksums.from_goog_hash(", ".join(reversed(parts))) == Checksums(crc32c, md5)


@pytest.mark.parametrize("header", ["", "sha1=abc", "nonsense", ",,=", "crc32c"])
def test_a_goog_hash_header_that_says_nothing_known_says_nothing(header: str) -> None:
    assert not Checksums.from_goog_hash(header)


@pytest.mark.parametrize("text", ["?", "AAAAA", "é", "AAA=", "AAAAAAAAAAA=", "AAAA AA=="])
def test_a_malformed_checksum_is_the_archives_mistake(text: str) -> None:
    for said in ({"crc32c": text}, {"md5": text}):
        with pytest.raises(ArchiveError, match="malformed checksum"):
            Checksums.from_base64(**said)
    with pytest.raises(ArchiveError, match="malformed checksum"):
        Checksums.from_goog_hash(f"crc32c={text}")


def test_no_checksums_are_false_and_a_crc32c_of_zero_is_one() -> None:
    assert not Checksums()
    assert Checksums(crc32c=0)
    assert Checksums(md5=MD5)
    assert Checksums(sha256=SHA256)


def test_checksums_are_joined_the_first_said_counting() -> None:
    first = Checksums(crc32c=0, md5=MD5)
    other = Checksums(crc32c=7, md5=b"x" * 16, sha256=SHA256)
    assert first.joined(other) == Checksums(0, MD5, SHA256)
    assert Checksums().joined(other) == other
    assert other.joined(Checksums()) == other


@pytest.mark.parametrize(
    "expected",
    [
        Checksums(),
        Checksums(crc32c=CRC32C),
        Checksums(md5=MD5),
        Checksums(sha256=SHA256),
        Checksums(CRC32C, MD5, SHA256),
    ],
)
def test_bytes_that_amount_to_what_was_said_are_right(expected: Checksums) -> None:
    assert verified(expected) is None


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        (Checksums(crc32c=CRC32C ^ 1), f"CRC32C is {CRC32C:08x} instead of {CRC32C ^ 1:08x}"),
        (Checksums(md5=b"x" * 16), f"MD5 is {MD5.hex()} instead of {'78' * 16}"),
        (Checksums(sha256=b"x" * 32), f"SHA256 is {SHA256.hex()} instead of {'78' * 32}"),
        (Checksums(CRC32C, MD5, b"x" * 32), "SHA256 is"),
        (Checksums(CRC32C ^ 1, MD5, SHA256), "CRC32C is"),
    ],
)
def test_bytes_that_do_not_are_told_in_words(expected: Checksums, words: str) -> None:
    mismatch = verified(expected)
    assert mismatch is not None and words in mismatch


def test_md5_is_left_out_where_there_is_something_faster() -> None:
    assert verified(Checksums(crc32c=CRC32C, md5=b"x" * 16)) is None


def test_nothing_amounts_to_a_crc32c_of_zero() -> None:
    assert verified(Checksums(crc32c=0), b"") is None
    assert verified(Checksums(crc32c=0)) is not None


@given(blocks=st.lists(st.binary(max_size=40)))
def test_it_does_not_matter_in_which_blocks_the_bytes_come(blocks: list[bytes]) -> None:
    whole = b"".join(blocks)
    verifier = Verifier()
    verifier.expect(Checksums(sha256=bytes(32)))
    for block in blocks:
        verifier.update(block)
    assert verifier.position == len(whole)
    assert verifier.crc32c == google_crc32c.value(whole)
    assert verifier.sha256 == hashlib.sha256(whole).digest()


def test_a_sha256_is_there_only_where_one_was_expected() -> None:
    verifier = Verifier()
    verifier.expect(Checksums(crc32c=CRC32C))
    verifier.update(DATA)
    assert verifier.sha256 is None


@given(
    digests=st.dictionaries(
        st.text(alphabet="ab./- é", min_size=1).filter(
            lambda name: name == name.strip() and not name.startswith("./")
        ),
        st.binary(min_size=32, max_size=32),
    )
)
def test_what_sha256sum_writes_is_read(digests: dict[str, bytes]) -> None:
    text = "".join(f"{digest.hex()}  {name}\n" for name, digest in digests.items())
    binary = "".join(f"{digest.hex().upper()} *./{name}\r\n" for name, digest in digests.items())
    assert parse_sha256_lines(text) == parse_sha256_lines(binary) == digests


def test_a_digest_alone_on_its_line_has_no_name() -> None:
    assert parse_sha256_lines(f"{SHA256.hex()}\n") == {"": SHA256}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>not found</html>",
        SHA256.hex()[:-1],
        f"{SHA256.hex()}name",
        f"{'g' * 64}  name",
        f"SHA256 (name) = {SHA256.hex()}",
    ],
)
def test_a_line_that_is_no_checksum_is_a_checksum_not_given(text: str) -> None:
    assert parse_sha256_lines(text) == {}
