"""Archive URLs: every spelling of a build is one key, and what names no build is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.archive_url import (
    SCHEMES,
    AllowList,
    ArchiveUrl,
    BuildName,
    check_relative_path,
)
from artifacts.errors import BadRequest, NotAllowed

BUILD = "x86-generic/R17-1208.0.0"

# Characters that have a meaning somewhere on the way, and some that have none.
AWKWARD = "aZ09 .-_~%/\\?#@:+&=;[]*é漢\u00a0\u2028\t\n\0\x7f\x85\ud800"
AWKWARD_TEXT = st.text(alphabet=AWKWARD, max_size=12) | st.text(max_size=12)
PERCENT_ENCODED = st.binary(max_size=6).map(lambda data: "".join(f"%{byte:02x}" for byte in data))


@st.composite
def url_like(draw: st.DrawFn) -> str:
    scheme = draw(st.sampled_from([*SCHEMES, "GS", "Http", "ftp", ""]))
    slashes = draw(st.sampled_from(["://", ":///", ":/", ":", "//"]))
    host = draw(
        st.sampled_from(["images", "Host.example:80", "host:0443", "h:65536", "[::1]:8080"])
        | AWKWARD_TEXT
    )
    segments = draw(st.lists(AWKWARD_TEXT | PERCENT_ENCODED | st.just(BUILD), max_size=5))
    blanks = st.sampled_from(["", " ", "\t", "\n", "/", "/ "])
    return draw(blanks) + scheme + slashes + "/".join([host, *segments]) + draw(blanks)


def refusal_of(text: str) -> str:
    with pytest.raises(BadRequest) as refusal:
        ArchiveUrl.parse(text)
    assert refusal.value.message.isprintable()
    return refusal.value.message


@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [
        (f"gs://images/{BUILD}/", f"gs://images/{BUILD}"),
        (f"gs://images/{BUILD}///", f"gs://images/{BUILD}"),
        ("gs://images//x86-generic///R17-1208.0.0", f"gs://images/{BUILD}"),
        (f"gs:///images/{BUILD}", f"gs://images/{BUILD}"),
        (f"gs:/images/{BUILD}", f"gs://images/{BUILD}"),
        (f"  gs://images/{BUILD}\t\n", f"gs://images/{BUILD}"),
        (f"gs://images/{BUILD} / ", f"gs://images/{BUILD}"),
        (f"GS://Images/{BUILD}", f"gs://images/{BUILD}"),
        (f"gs://a/{BUILD}", f"gs://a/{BUILD}"),
        (f"gs://images/deep/down/{BUILD}", f"gs://images/deep/down/{BUILD}"),
        (f"S3://Images/{BUILD}", f"s3://images/{BUILD}"),
        (f"HTTP://Archive.Example/{BUILD}", f"http://archive.example/{BUILD}"),
        (f"http://archive.example:80/{BUILD}", f"http://archive.example/{BUILD}"),
        (f"http://archive.example:080/{BUILD}", f"http://archive.example/{BUILD}"),
        (f"https://archive.example:443/{BUILD}", f"https://archive.example/{BUILD}"),
        (f"https://archive.example:80/{BUILD}", f"https://archive.example:80/{BUILD}"),
        (f"http://archive.example:08080/{BUILD}", f"http://archive.example:8080/{BUILD}"),
        (f"http://[::1]:80/{BUILD}", f"http://[::1]/{BUILD}"),
        (
            "http://archive.example/x86%2Dgeneric/R17%2d1",
            "http://archive.example/x86-generic/R17-1",
        ),
        ("http://archive.example/s%C3%A9ance/b", "http://archive.example/s%C3%A9ance/b"),
        ("http://archive.example/séance/b", "http://archive.example/s%C3%A9ance/b"),
        ("http://archive.example/a b/c+d", "http://archive.example/a%20b/c+d"),
        ("http://archive.example/50%25/%zz", "http://archive.example/50%25/%25zz"),
        ("file:/srv/t/b", "file:///srv/t/b"),
        ("file:////srv//t/b/", "file:///srv/t/b"),
        ("FILE:///Srv/T/b", "file:///Srv/T/b"),
        ("store://x86-generic/R17", "store://x86-generic/R17"),
    ],
)
def test_every_spelling_of_a_build_is_one_key(spelling: str, canonical: str) -> None:
    url = ArchiveUrl.parse(spelling)
    assert str(url) == canonical
    assert url == ArchiveUrl.parse(canonical)
    assert hash(url) == hash(ArchiveUrl.parse(canonical))


@pytest.mark.parametrize("archive", ["gs://images", "s3://images", "file:///images", "store:/"])
def test_percent_signs_are_kept_where_they_mean_nothing(archive: str) -> None:
    url = ArchiveUrl.parse(f"{archive}/t%2E/b%20c")
    assert url.segments[-2:] == ("t%2E", "b%20c")
    assert str(url).endswith("t%2E/b%20c")


def test_upper_case_matters_in_a_path() -> None:
    assert ArchiveUrl.parse("gs://images/T/B") != ArchiveUrl.parse("gs://images/t/b")


def test_a_file_may_have_question_marks_and_hashes_in_its_path() -> None:
    assert str(ArchiveUrl.parse("file:///srv/why?/b#1")) == "file:///srv/why?/b#1"


@given(text=url_like())
def test_what_is_parsed_prints_to_something_that_parses_to_itself(text: str) -> None:
    try:
        url = ArchiveUrl.parse(text)
    except BadRequest as refusal:
        assert refusal.message.isprintable()
        return
    assert ArchiveUrl.parse(str(url)) == url
    assert str(url).isprintable() or url.scheme not in {"http", "https"}
    assert BuildName.parse(str(url.name)) == url.name


@given(text=url_like())
def test_prefixes_too_print_to_what_parses_to_themselves(text: str) -> None:
    try:
        prefix = ArchiveUrl.parse_prefix(text)
    except BadRequest:
        return
    assert ArchiveUrl.parse_prefix(str(prefix)) == prefix
    assert prefix.is_below(prefix)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not an archive URL"),
        (BUILD, "not an archive URL"),
        ("/srv/t/b", "not an archive URL"),
        ("//images/t/b", "not an archive URL"),
        ("ftp://images/t/b", "not an archive URL"),
        ("javascript:alert(1)/t/b", "not an archive URL"),
        ("gs:images/t/b", "not an archive URL"),
        ("gs", "not an archive URL"),
        ("gs://", "must end in a target and a build"),
        ("gs://images", "must end in a target and a build"),
        ("gs://images/target", "must end in a target and a build"),
        ("file:///build", "must end in a target and a build"),
        ("store://target/", "must end in a target and a build"),
        ("store://bucket/target/build", "is called store://target/build"),
        ("gs://images/t/..", "must not have a segment '..'"),
        ("gs://images/../t/b", "must not have a segment '..'"),
        ("gs://../t/b", "not a bucket name"),
        ("gs://images/./t/b", "must not have a segment '.'"),
        ("file:///srv/../t/b", "must not have a segment '..'"),
        ("http://h/%2e%2e/t/b", "must not have a segment '..'"),
        ("http://h/t/%2E", "must not have a segment '.'"),
        ("http://h/t%2Fu/b", "encoded slash"),
        ("http://h/t/b%2f..%2f..%2fetc", "must not have a segment '..'"),
        ("gs://images/t/b?generation=1", "must not have a query"),
        ("http://h/t/b?", "must not have a query"),
        ("gs://images/t/b#top", "must not have a fragment"),
        ("gs://images/t/b\0", "must not have control characters"),
        ("gs://images/t\n/b", "must not have control characters"),
        ("gs://images/t/b\x7f", "must not have control characters"),
        ("gs://images/t/b\x1f", "must not have control characters"),
        ("gs://images/t/\x85b", "must not have control characters"),
        ("http://h/t/b%00", "must not have control characters"),
        ("http://h/t/b%0d%0aHost:x", "must not have control characters"),
        ("gs://images/t/b\ud800", "must not have control characters"),
        ("http://h/t/\udcffb", "must not have control characters"),
        ("http://h/t/b%ff", "not UTF-8"),
        ("http://h/t/%ed%a0%80", "not UTF-8"),
        ("http://user@h/t/b", "user name"),
        ("http://user:password@h/t/b", "user name"),
        ("gs://user@images/t/b", "not a bucket name"),
        ("http://h:/t/b", "not a host name"),
        ("http://h:0/t/b", "not a host name"),
        ("http://h:65536/t/b", "not a host name"),
        ("http://h:999999/t/b", "not a host name"),
        ("http://h:http/t/b", "not a host name"),
        ("http://h:-1/t/b", "not a host name"),
        ("http://h:٨٠/t/b", "not a host name"),
        ("http://h h/t/b", "not a host name"),
        ("http://h%2Fx/t/b", "not a host name"),
        ("http://[::1/t/b", "not a host name"),
        ("gs://im\\ages/t/b", "not a bucket name"),
        ("gs://images:80/t/b", "not a bucket name"),
        ("gs://im..ages/t/b", "not a bucket name"),
        ("gs://images/t\\u/b", "backslash"),
        ("file:///srv/..\\d/t/b", "backslash"),
        ("http://h\\@evil.example/t/b", "user name"),
        ("http://h/t/b%5Cc", "backslash"),
        ("gs://images/.t/b", "begin with a dot"),
        ("gs://images/t/.devserver", "begin with a dot"),
        ("http://h/t/%2ehidden", "begin with a dot"),
        ("gs://images/archive/b", "reserved"),
        ("http://h/%61rchive/b", "reserved"),
        ("gs://images/ t/b", "blank"),
        ("gs://images/t /b", "blank"),
        ("http://h/t/b%20", "blank"),
        ("gs://images/t/b\u00a0/", "blank"),
        ("gs://images/t/" + "b" * 256, "over 255 bytes"),
        ("gs://images/t/" + "é" * 128, "over 255 bytes"),
        ("gs://images/" + "d/" * 1000 + "t/b", "longer than 2000 characters"),
        ("http://h/" + "漢" * 80 + "/漢" * 600 + "/t/b", "longer than 2000 characters"),
    ],
)
def test_what_names_no_build_is_refused_in_words(text: str, words: str) -> None:
    assert words in refusal_of(text)


def test_a_refusal_quotes_what_was_asked_for() -> None:
    assert "'ftp://images/t/b'" in refusal_of("ftp://images/t/b")


def test_a_segment_and_a_url_may_be_as_long_as_the_limits() -> None:
    assert ArchiveUrl.parse("gs://images/t/" + "b" * 255).name.build == "b" * 255
    longest = "gs://images/" + "d/" * 992 + "t/b"
    assert len(longest) <= 2000
    assert str(ArchiveUrl.parse(longest)) == longest


def test_an_archive_of_the_name_archive_is_fine_where_it_is_not_the_target() -> None:
    assert ArchiveUrl.parse("gs://archive/archive/t/archive").name == BuildName("t", "archive")


def test_a_build_is_named_by_the_last_two_segments() -> None:
    url = ArchiveUrl.parse(f"gs://images/releases/{BUILD}")
    assert url.name == BuildName("x86-generic", "R17-1208.0.0")
    assert str(url.name) == BUILD
    assert url.path == f"releases/{BUILD}"


@pytest.mark.parametrize("text", [BUILD, f"/{BUILD}/", f" {BUILD} ", "x86-generic//R17-1208.0.0"])
def test_a_build_is_called_target_and_build(text: str) -> None:
    assert BuildName.parse(text) == BuildName("x86-generic", "R17-1208.0.0")


@pytest.mark.parametrize(
    "text",
    ["", "t", "t/", "a/t/b", "t/..", "./b", ".t/b", "archive/b", "t\0/b", "t /b", "t/" + "b" * 256],
)
def test_what_is_no_build_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        BuildName.parse(text)


@pytest.mark.parametrize(
    ("prefix", "url"),
    [
        ("gs://", "gs://images/t/b"),
        ("GS:", "gs://images/t/b"),
        ("gs://images", "gs://images/t/b"),
        ("gs://Images/", "gs://images/t/b"),
        ("gs://images/releases", "gs://images/releases/t/b"),
        ("gs://images/t/b", "gs://images/t/b"),
        ("http://", "http://archive.example/t/b"),
        ("http://archive.example", "http://archive.example:80/t/b"),
        ("http://archive.example:8080", "http://archive.example:8080/t/b"),
        ("http://archive.example/my%20builds", "http://archive.example/my builds/t/b"),
        ("file:///", "file:///srv/t/b"),
        ("file:///srv/builds", "file:///srv/builds/t/b"),
    ],
)
def test_what_lies_below_an_allowed_prefix_is_allowed(prefix: str, url: str) -> None:
    AllowList([prefix]).check(ArchiveUrl.parse(url))


@pytest.mark.parametrize(
    ("prefix", "url"),
    [
        ("gs://images", "gs://images-x/t/b"),
        ("gs://images-x", "gs://images/t/b"),
        ("gs://images/rel", "gs://images/releases/t/b"),
        ("gs://images/releases", "gs://images/t/b"),
        ("gs://images/t/b/more", "gs://images/t/b"),
        ("gs://images", "s3://images/t/b"),
        ("gs://images", "gs://other/images/t/b"),
        ("http://", "https://archive.example/t/b"),
        ("http://archive.example", "http://archive.example:8080/t/b"),
        ("http://archive.example:8080", "http://archive.example/t/b"),
        ("http://archive.example", "http://archive.example.evil.example/t/b"),
        ("http://archive.example", "http://sub.archive.example/t/b"),
        ("file:///srv/builds", "file:///srv/builds2/t/b"),
        ("gs://", "file:///srv/t/b"),
    ],
)
def test_what_lies_elsewhere_is_refused_by_name(prefix: str, url: str) -> None:
    parsed = ArchiveUrl.parse(url)
    with pytest.raises(NotAllowed, match="--allow-archive") as refusal:
        AllowList([prefix]).check(parsed)
    assert refusal.value.code == "archive_not_allowed"
    assert str(parsed) in refusal.value.message


def test_an_encoded_slash_does_not_lead_around_a_prefix() -> None:
    redirected_to = ArchiveUrl.parse_prefix("http://archive.example/builds%2Fsecret/file")
    assert AllowList(["http://archive.example/builds"]).allows(redirected_to)
    assert not AllowList(["http://archive.example/builds%2Fother"]).allows(redirected_to)


def test_what_is_published_to_the_server_itself_is_always_allowed() -> None:
    AllowList([]).check(ArchiveUrl.parse("store://t/b"))
    assert not AllowList([]).allows(ArchiveUrl.parse("gs://images/t/b"))


def test_a_prefix_has_to_be_a_url() -> None:
    with pytest.raises(BadRequest, match="not an archive URL"):
        AllowList(["images"])


def test_the_prefixes_of_one_scheme_can_be_told() -> None:
    allowed = AllowList(["gs://", "file:///a", "file:///b"])
    assert list(map(str, allowed.prefixes_of("file"))) == ["file:///a", "file:///b"]


@pytest.mark.parametrize(
    "path", ["a", "a/b", ".hidden/x", "...", "a\\b", "a b", "é", "a/" + "b" * 255]
)
def test_a_path_below_a_directory_is_taken_as_it_is(path: str) -> None:
    assert check_relative_path(path, "path") == path


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "is empty"),
        ("/", "must be relative"),
        ("/etc/passwd", "must be relative"),
        ("..", "segment '..'"),
        ("a/../../b", "segment '..'"),
        ("./a", "segment '.'"),
        ("a//b", "empty segment"),
        ("a/", "empty segment"),
        ("a\0b", "control characters"),
        ("a\nb", "control characters"),
        ("a\udcff", "control characters"),
        ("b" * 256, "over 255 bytes"),
    ],
)
def test_a_path_that_could_leave_the_directory_is_refused(path: str, words: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        check_relative_path(path, "control_path")
    assert words in refusal.value.message
    assert "control_path" in refusal.value.message
    assert refusal.value.message.isprintable()


@given(path=AWKWARD_TEXT)
def test_a_path_that_passes_stays_below(path: str) -> None:
    try:
        segments = check_relative_path(path, "path").split("/")
    except BadRequest:
        return
    assert all(segments) and not {".", ".."} & set(segments)
