"""The other calls: health, documentation, control files, builds as JSON; and wrong arguments."""

from __future__ import annotations

import base64
import hashlib
import socket
import tarfile
from pathlib import Path

import cherrypy
import pytest
from archive_server import ArchiveServer
from conftest import Serve
from running_server import RunningServer

from artifacts.commands.sample_build import BUILD, FULL_PAYLOAD, TARGET
from artifacts.config import load_config
from artifacts.serving.documentation import exposed_handlers
from devserver import Parts

NAME = f"{TARGET}/{BUILD}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, sample_archive: Path) -> RunningServer:
    root = f"file://{sample_archive}"
    server = RunningServer(
        tmp_path_factory.mktemp("calls"), "--allow-archive", root, "--archive-root", root
    )
    try:
        server.call("/download", archive_url=f"{root}/{NAME}")
        server.call("/wait_for_status", archive_url=f"{root}/{NAME}")
        yield server
    finally:
        server.stop()


@pytest.fixture
def url(sample_archive: Path) -> str:
    return f"file://{sample_archive}/{NAME}"


@pytest.mark.parametrize(
    ("call", "word"),
    [
        ("/download", "archive_url"),
        ("/download?archive_url=", "archive_url"),
        ("/download?archive_url=%20", "archive_url"),
        ("/wait_for_status", "archive_url"),
        ("/list_image_dir", "archive_url"),
        ("/latestbuild", "target"),
        ("/controlfiles", "build"),
        ("/controlfiles?build=one", "one"),
        ("/locate_file?file_name=update.gz", "archive_url"),
        ("/locate_file?archive_url={url}", "file_name"),
        ("/locate_file?archive_url={url}&file_name=%20", "file_name"),
        ("/locate_file?archive_url={url}&file_name=../update.gz", "'..'"),
        ("/locate_file?archive_url={url}&file_name=autotest/../update.gz", "'..'"),
        ("/locate_file?archive_url={url}&file_name=/etc/passwd", "relative"),
        ("/locate_file?archive_url={url}&file_name=autotest/", "empty segment"),
        ("/locate_file?archive_url={url}&file_name=a%00b", "control characters"),
        ("/locate_file?archive_url={url}&file_name=update.gz&artifacts=bogus", "full_payload"),
        ("/list_suite_controls?suite_name=bvt", "build"),
        ("/list_suite_controls?build=one&suite_name=bvt", "one"),
        ("/list_suite_controls?build=" + NAME, "suite_name"),
        ("/list_suite_controls?suite_name=&build=" + NAME, "suite_name"),
        ("/download?archive_url=nonsense", "not an archive URL"),
        ("/download?archive_url=ftp://a/b/c", "not an archive URL"),
        ("/download?archive_url=gs://bucket/only", "target"),
        ("/download?archive_url=gs://bucket/a/../b", "'..'"),
        ("/download?archive_url=gs://bucket/a/b%3Fx", "query"),
        ("/download?archive_url=gs://bucket/a/b%23x", "fragment"),
        ("/download?archive_url=gs://bucket/a/.b", "dot"),
        ("/download?archive_url=gs://bucket/archive/b", "reserved"),
        ("/download?archive_url=gs://bucket/a/b%0Ac", "control characters"),
        ("/download?archive_url=gs://a/b/c&archive_url=gs://a/b/d", "2 times"),
        ("/download?archive_url=%ff", "UTF-8"),
        ("/stage?archive_url={url}", "artifacts or files"),
        ("/stage?archive_url={url}&artifacts=,", "artifacts or files"),
        ("/stage?archive_url={url}&artifacts=bogus", "full_payload"),
        ("/stage?archive_url={url}&files=../x", "'..'"),
        ("/stage?archive_url={url}&files=/etc/passwd", "relative"),
        ("/stage?archive_url={url}&files=regex:(a%2B)%2B$", "globs"),
        ("/stage?archive_url={url}&artifacts=stateful&async=perhaps", "async"),
        ("/is_staged?archive_url={url}", "artifacts or files"),
        ("/is_staged?archive_url={url}&artifacts=bogus", "full_payload"),
        ("/controlfiles?build=" + NAME + "&control_path=../../x", "'..'"),
    ],
)
def test_wrong_arguments_are_400_with_a_sentence(
    call: str, word: str, server: RunningServer, url: str
) -> None:
    answer = server.get(call.replace("{url}", url))
    assert answer.status_code == 400, answer.text
    assert word in answer.text and "\n" not in answer.text
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    "archive_url",
    ["gs-x://a/b/c", "http://localhost:1/a/b", "https://a/b/c", "file:///etc/a/b"],
)
def test_an_archive_that_is_not_allowed_is_refused(archive_url: str, server: RunningServer) -> None:
    answer = server.get("/download", archive_url=archive_url)
    assert answer.status_code == (400 if archive_url.startswith("gs-x") else 403)


def test_a_build_named_only_by_target_and_build_is_in_the_archive_root(
    server: RunningServer,
) -> None:
    assert server.call("/download", archive_url=NAME) == "Success"
    assert server.call("/is_staged", archive_url=f"/{NAME}/", artifacts="stateful") == "True"


def test_unknown_calls_and_methods(server: RunningServer) -> None:
    assert server.get("/nope").status_code == 404
    assert server.get("/download/more").status_code == 404
    assert server.get("/api/v1/nope").json()["error"]["code"]
    put = server.session.put(f"{server.url}/download", data=b"x")
    assert put.status_code == 405


def test_no_argument_can_upset_a_call(server: RunningServer) -> None:
    for path in ("/download", "/doc", "/", "/static/", "/api/v1/builds", "/check_health"):
        answer = server.get(f"{path}?self=1&handler=2&segments=3")
        assert answer.status_code < 500, path
    odd = server.session.get(f"{server.url}/download", headers={"Origin": "http://["})
    assert odd.status_code == 403


def test_trying_a_link_out_stages_nothing(server: RunningServer, url: str) -> None:
    answer = server.session.head(f"{server.url}/download", params={"archive_url": url})
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, POST")


def test_health_has_the_fields_that_schedulers_read(server: RunningServer) -> None:
    health = server.get("/check_health").json()
    assert health["free_disk"] > 0
    assert health["apache_client_count"] >= 1
    assert set(health) >= {
        "staging_thread_count",
        "cpu_percent",
        "disk_total_bytes_per_second",
        "network_total_bytes_per_second",
    }
    assert server.get("/health").status_code == 200
    assert server.get("/ready").status_code == 200


def test_every_call_has_a_page_that_begins_with_its_form(server: RunningServer) -> None:
    for name in (
        *("download", "wait_for_status", "stage", "is_staged", "list_image_dir", "locate_file"),
        *("latestbuild", "controlfiles", "list_suite_controls", "check_health"),
        *("health", "ready", "doc", "static", "extract", "members"),
        *("api/v1/builds", "api/fileinfo"),
    ):
        page = server.call(f"/doc/{name}")
        assert page.startswith(f"/{name}"), name
        assert page.splitlines()[0] in server.call("/doc").split("\n")
    assert "/api/v1/builds/TARGET/BUILD: " in server.call("/doc/api/v1/builds")
    for unknown in ("nope", "api", "api/v1/nope", "stage/more", "_parts", "api/v1/builds/index"):
        answer = server.get(f"/doc/{unknown}")
        assert (answer.status_code, answer.text) == (404, f"no such call: {unknown}")


def test_nothing_is_exposed_without_documentation(tmp_path: Path) -> None:
    parts = Parts(load_config({"host": "127.0.0.1", "port": 0, "data_dir": tmp_path}))
    parts.start()
    try:
        root = cherrypy.tree.apps[""].root
        handlers = list(exposed_handlers(root))
        assert len(handlers) >= 18
        for path, handler in handlers:
            form, _, clause = (handler.__doc__ or "").splitlines()[0].partition(": ")
            place = "" if path == "index" else path
            assert form == f"/{place}" or form.startswith(tuple(f"/{place}{c}" for c in "?/,"))
            assert clause.endswith("."), path
    finally:
        parts.stop()


def test_the_page_is_there_and_strict(server: RunningServer) -> None:
    page = server.get("/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]


def test_staged_files_are_listed_sorted(server: RunningServer, url: str) -> None:
    listed = server.call("/list_image_dir", archive_url=url).split("\n")
    assert listed == sorted(listed)
    assert "update.gz" in listed and f"au/{BUILD}_nton/stateful.tgz" in listed
    unknown = url.replace(BUILD, "R1-0.0.0")
    assert server.get("/list_image_dir", archive_url=unknown).status_code == 404


def test_a_staged_file_is_found_by_its_name(server: RunningServer, url: str) -> None:
    def located(file_name: str, **more: str) -> str:
        return server.call("/locate_file", archive_url=url, file_name=file_name, **more)

    assert located("update.gz") == "update.gz"
    assert located("update.gz", artifacts="mton_payload") == f"au/{BUILD}_mton/update.gz"
    assert located("update.gz", artifacts="mton_payload,nton_payload") == (
        f"au/{BUILD}_mton/update.gz"
    )
    assert located(f"{BUILD}_nton/update.gz") == f"au/{BUILD}_nton/update.gz"
    assert located("stateful.tgz", artifacts="nton_payload") == f"au/{BUILD}_nton/stateful.tgz"
    assert located("autoserv") == "autotest/server/autoserv"
    assert located("autoserv", artifacts="stateful,autotest") == "autotest/server/autoserv"
    listed = server.call("/list_image_dir", archive_url=url).split("\n")
    named = [path for path in listed if path.endswith("/control")]
    assert located("control") == min(named, key=lambda path: (path.count("/"), path))
    assert located("control.bvt", artifacts="") == "autotest/test_suites/control.bvt"


def test_a_file_that_is_not_staged_is_not_found_and_not_staged(
    server: RunningServer, url: str
) -> None:
    for wanted, among in (
        ("debug.tgz", ""),
        ("pdate.gz", ""),
        ("server", ""),
        ("update.gz/x", ""),
        ("*.gz", ""),
        ("update.gz", "stateful"),
        ("autoserv", "full_payload,stateful"),
    ):
        answer = server.get("/locate_file", archive_url=url, file_name=wanted, artifacts=among)
        assert answer.status_code == 404
        assert repr(wanted) in answer.text and NAME in answer.text
        assert among.replace(",", ", ") in answer.text
    assert server.call("/is_staged", archive_url=url, files="debug.tgz") == "False"
    unknown = url.replace(BUILD, "R1-0.0.0")
    for other in (unknown, unknown.replace(TARGET, "lamp-release")):
        answer = server.get("/locate_file", archive_url=other, file_name="update.gz")
        assert (answer.status_code, "no such build" in answer.text) == (404, True)


def test_a_file_of_another_archives_build_is_409(
    serve: Serve, archive: ArchiveServer, build_url: str, url: str
) -> None:
    root = url.removesuffix(f"/{NAME}")
    server = serve("--allow-archive", archive.url, "--allow-archive", root)
    server.call("/stage", archive_url=build_url, artifacts="stateful")
    answer = server.get("/locate_file", archive_url=url, file_name="stateful.tgz")
    assert (answer.status_code, build_url in answer.text) == (409, True)


def test_what_static_does_not_serve_is_not_found(serve: Serve, tmp_path: Path) -> None:
    build = tmp_path / "archive" / NAME
    build.mkdir(parents=True)
    with tarfile.open(build / "autotest.tar.bz2", "w:bz2") as tar:
        for name in (".hidden/setup", "a/b/c/setup", ".profile"):
            tar.addfile(tarfile.TarInfo(f"autotest/{name}"))
        link = tarfile.TarInfo("autotest/setup.sh")
        link.type, link.linkname = tarfile.SYMTYPE, "gone"
        tar.addfile(link)
    url = f"file://{build}"
    server = serve("--allow-archive", f"file://{tmp_path}/archive")
    assert server.call("/stage", archive_url=url, artifacts="autotest") == "Success"
    found = server.call("/locate_file", archive_url=url, file_name="setup")
    assert found == "autotest/a/b/c/setup"
    assert server.file(f"{NAME}/{found}") == b""
    for name in (".profile", "setup.sh"):
        assert server.get("/locate_file", archive_url=url, file_name=name).status_code == 404


def test_control_files_are_listed_and_read(server: RunningServer, sample_archive: Path) -> None:
    with tarfile.open(sample_archive / NAME / "autotest.tar.bz2") as tar:
        expected = sorted(
            member.name.removeprefix("autotest/")
            for member in tar
            if member.name.rpartition("/")[2].startswith("control")
        )
        first = tar.extractfile(f"autotest/{expected[0]}").read()
    assert server.call("/controlfiles", build=NAME).split("\n") == expected
    for path in (expected[0], "/" + expected[0]):
        assert server.get("/controlfiles", build=NAME, control_path=path).content == first
    of_suite = server.call("/controlfiles", build=NAME, suite_name="bvt").split("\n")
    assert of_suite and set(of_suite) < set(expected)
    assert server.call("/controlfiles", build=NAME, suite_name="nothing") == ""
    assert server.get("/controlfiles", build=NAME, control_path="no").status_code == 404
    assert server.get("/controlfiles", build="no/build").status_code == 404


def test_a_suites_control_files_come_as_one_json_object(server: RunningServer) -> None:
    answer = server.get("/list_suite_controls", build=NAME, suite_name="bvt")
    assert answer.headers["Content-Type"] == "application/json"
    of_suite = server.call("/controlfiles", build=NAME, suite_name="bvt").split("\n")
    assert list(answer.json()) == of_suite
    for path, text in answer.json().items():
        assert text == server.call("/controlfiles", build=NAME, control_path=path)
        assert "suite:bvt" in text
    assert server.get("/list_suite_controls", build=NAME, suite_name="nothing").json() == {}
    for build in ("no/build", f"{TARGET}/R1-0.0.0"):
        unknown = server.get("/list_suite_controls", build=build, suite_name="bvt")
        assert unknown.status_code == 404


def test_builds_are_described_as_json(
    server: RunningServer, url: str, sample_archive: Path
) -> None:
    described = server.get(f"/api/v1/builds/{NAME}").json()
    assert (described["target"], described["build"]) == (TARGET, BUILD)
    assert (described["archive_url"], described["state"]) == (url, "staged")
    assert described["held"] is False and described["last_used"]
    artifacts = {artifact["name"]: artifact for artifact in described["artifacts"]}
    payload = artifacts["full_payload"]
    assert (payload["state"], payload["error"]) == ("staged", None)
    assert payload["bytes_done"] == payload["bytes_total"] == 5_000_000
    assert payload["files"][0]["path"] == "update.gz"
    assert len(artifacts["autotest"]["files"]) > 100
    listed = server.get("/api/v1/builds").json()["builds"]
    assert [(build["target"], build["build"], build["state"]) for build in listed] == [
        (TARGET, BUILD, "staged")
    ]
    assert listed[0]["bytes"] == described["bytes"] > 5_000_000


def test_builds_are_staged_by_json_without_waiting(serve: Serve, archive_directory: Path) -> None:
    server = serve("--allow-archive", f"file://{archive_directory}")
    url = f"file://{archive_directory}/{NAME}"
    path = f"{server.url}/api/v1/builds/{NAME}"
    posted = server.session.post(path, json={"archive_url": url, "artifacts": ["stateful"]})
    assert posted.status_code == 202
    assert posted.json()["archive_url"] == url
    assert server.call("/wait_for_status", archive_url=url) == "Success"
    assert server.call("/is_staged", archive_url=url, artifacts="stateful") == "True"

    everything = server.session.post(path, json={"archive_url": url})
    assert everything.status_code == 202
    assert server.call("/wait_for_status", archive_url=url) == "Success"
    assert server.call("/is_staged", archive_url=url, artifacts="autotest") == "True"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"archive_url": "gs://bucket/other/build"}, 400),
        ({"archive_url": "gs://bucket/t/b", "artifacts": ["bogus"]}, 400),
        ({"archive_url": "gs://bucket/t/b", "artifacts": "stateful"}, 400),
        ({"archive_url": 7}, 400),
        ({"archive_url": "https://elsewhere/t/b"}, 403),
        ([], 400),
    ],
)
def test_wrong_json_is_refused_as_json(
    body: object, status: int, serve: Serve, server: RunningServer
) -> None:
    # gs:// is not on this server's list: what is wrong is found before that, or is that.
    answer = server.session.post(f"{server.url}/api/v1/builds/t/b", json=body)
    assert answer.status_code in {status, 403}
    assert answer.json()["error"]["message"]
    assert answer.headers["Content-Type"] == "application/json"


def test_a_body_that_is_no_json_is_refused(server: RunningServer) -> None:
    for headers in ({"Content-Type": "application/json"}, {}):
        answer = server.session.post(
            f"{server.url}/api/v1/builds/t/b", data=b"{nonsense", headers=headers
        )
        assert answer.status_code == 400


def test_a_body_that_is_too_large_is_read_so_that_the_refusal_is(server: RunningServer) -> None:
    for size in (2_000_000, 20_000_000):
        answer = server.session.post(f"{server.url}/download", data=bytes(size))
        assert answer.status_code == 413


def test_pages_of_other_sites_change_nothing(server: RunningServer, url: str) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        for call in ("/download", "/stage?artifacts=stateful"):
            answer = server.session.get(
                server.url + call, params={"archive_url": url}, headers=headers
            )
            assert answer.status_code == 403
        dropped = server.session.delete(f"{server.url}/api/v1/builds/{NAME}", headers=headers)
        assert dropped.status_code == 403
    own = server.session.get(
        f"{server.url}/download", params={"archive_url": url}, headers={"Origin": server.url}
    )
    assert own.text == "Success"


def test_a_file_tells_its_size_and_sha256(server: RunningServer, sample_archive: Path) -> None:
    data = (sample_archive / NAME / FULL_PAYLOAD).read_bytes()
    expected = base64.b64encode(hashlib.sha256(data).digest()).decode()
    for _ in range(2):
        info = server.get(f"/api/fileinfo/{NAME}/update.gz").json()
        assert info == {"size": len(data), "sha256": expected}
    assert server.get(f"/api/fileinfo/{NAME}/nothing").status_code == 404
    assert server.get("/api/fileinfo/no/build/file").status_code == 404
    assert server.get(f"/api/fileinfo/{NAME}/%2e%2e/x").status_code in {400, 404}


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nCookie: (a)=b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: =?bogus?q?x?=\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: half =?utf-8?q?x?=\r\n\r\n",
    ],
)
def test_malformed_headers_are_refused_in_one_line(server: RunningServer, head: bytes) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        answer = b""
        while block := client.recv(1 << 16):
            answer += block
    status, body = answer.split(b"\r\n", 1)[0], answer.partition(b"\r\n\r\n")[2]
    assert b" 400 " in status, answer
    assert b"Traceback" not in answer and b"<" not in body and b"\n" not in body.strip()
