"""``/symbolicate_dump``: from a minidump to a stack that can be read."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from assemble_client import AssembleClient, crash_lab
from breakpad_programs import dump_syms, stack_walker
from conftest import Serve
from crash_client import (
    FRAMES,
    IDENTIFIER,
    SOURCE,
    TARGET,
    crash_lab_symbols,
    dump,
    expected_text,
    frames,
    is_symbolicated,
    kept_dumps,
    make_build,
    send_dump,
    symbol_files,
    walked,
    with_architecture,
    with_module_name,
    with_stream_size,
)
from made_debug_files import breakpad
from polling import wait_until
from raw_client import RawClient
from running_server import RunningServer
from upload_client import Part, content_type, multipart

THREAD_LIST_STREAM = 3
GIGABYTE = 1 << 30


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server without any symbols; tests do not give it any."""
    server = RunningServer(tmp_path_factory.mktemp("bare"), "--minidump-stackwalk", stack_walker())
    yield server
    server.stop()


@pytest.fixture
def archive_of_builds(tmp_path: Path) -> Path:
    archive = tmp_path / "archive"
    archive.mkdir()
    return archive


@pytest.fixture
def server(serve: Serve, archive_of_builds: Path) -> RunningServer:
    return serve(
        *("--minidump-stackwalk", stack_walker()),
        *("--allow-archive", f"file://{archive_of_builds}"),
    )


def fake_walker(directory: Path, script: str) -> str:
    """A program that is called like the stack walker, and does something else."""
    path = directory / "minidump_stackwalk"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


# --- symbols


def test_a_walk_without_symbols_is_answered_and_names_what_is_missing(bare: RunningServer) -> None:
    response = send_dump(bare, dump())
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert "Crash reason:  SIGSEGV /SEGV_MAPERR\nCrash address: 0x0\n" in response.text
    assert (
        f"crash_lab  ???  (main)  (WARNING: No symbols, crash_lab, {IDENTIFIER})" in response.text
    )
    assert "crash_lab + 0x113f" in response.text
    found = walked(bare)
    assert found["crash_reason"] == "SIGSEGV /SEGV_MAPERR" and found["crash_address"] == "0x0"
    assert found["modules_without_symbols"][:2] == ["crash_lab", "libm.so.6"]
    assert {module["has_symbols"] for module in found["modules"]} == {False}


def test_uploaded_symbols_of_breakpad_make_the_stack_that_the_walker_makes(
    server: RunningServer,
) -> None:
    AssembleClient(server).upload(crash_lab("crash_lab.sym"), "any name")
    assert send_dump(server, dump()).text == expected_text()
    found = walked(server)
    assert frames(found) == FRAMES
    first = found["threads"][0]["frames"][0]
    assert (first["source"], first["module"], first["offset"]) == (SOURCE, "crash_lab", "0x0")
    (main,) = [module for module in found["modules"] if module["is_main"]]
    assert (main["debug_id"], main["has_symbols"]) == (IDENTIFIER, True)
    assert "crash_lab" not in found["modules_without_symbols"]


def test_an_uploaded_program_is_converted(server: RunningServer) -> None:
    dump_syms()
    AssembleClient(server).upload(crash_lab("crash_lab"), "crash_lab")
    assert send_dump(server, dump()).text == expected_text()


def test_a_stripped_program_and_its_debug_file_are_put_together(server: RunningServer) -> None:
    dump_syms()
    client = AssembleClient(server)
    client.upload(crash_lab("crash_lab.debug"), "crash_lab.debug")
    assert not is_symbolicated(walked(server))
    client.upload(crash_lab("crash_lab.stripped"), "crash_lab")
    assert frames(walked(server)) == FRAMES


def test_debug_files_of_another_organization_serve_as_well(server: RunningServer) -> None:
    AssembleClient(server, "others").upload(crash_lab("crash_lab.sym"))
    assert is_symbolicated(walked(server))


def test_an_elf_alone_without_its_converter_is_a_module_without_symbols(serve: Serve) -> None:
    server = serve("--minidump-stackwalk", stack_walker(), "--dump-syms", "/not/there")
    client = AssembleClient(server)
    client.upload(crash_lab("crash_lab"))
    assert "crash_lab" in walked(server)["modules_without_symbols"]
    client.upload(crash_lab("crash_lab.sym"))
    assert is_symbolicated(walked(server))


def test_corrupt_symbols_are_no_symbols(server: RunningServer) -> None:
    AssembleClient(server).upload(
        breakpad(IDENTIFIER, "crash_lab", "STACK CFI INIT zz\nSTACK WIN nonsense\n")
    )
    found = walked(server)
    assert found["crash_reason"] == "SIGSEGV /SEGV_MAPERR"
    assert not is_symbolicated(found)


def test_the_symbols_of_a_build_are_staged_first_and_found_by_debug_id_afterwards(
    server: RunningServer, archive_of_builds: Path
) -> None:
    name = make_build(archive_of_builds, "R1-1.0.0", crash_lab_symbols())
    url = f"file://{archive_of_builds}/{name}"
    assert not is_symbolicated(walked(server))

    assert send_dump(server, dump(), archive_url=url).text == expected_text()
    assert server.call("/is_staged", archive_url=url, artifacts="symbols") == "True"
    assert is_symbolicated(walked(server))
    assert is_symbolicated(walked(server, with_module_name(dump(), "another_name")))

    requests.delete(f"{server.url}/api/v1/builds/{name}", timeout=60).raise_for_status()
    assert not is_symbolicated(walked(server))
    assert symbol_files(server) == []


def test_the_archive_url_may_be_a_field_of_the_form(
    server: RunningServer, archive_of_builds: Path
) -> None:
    name = make_build(archive_of_builds, "R1-1.0.0", crash_lab_symbols())
    fields = {"archive_url": f"file://{archive_of_builds}/{name}", "format": "json"}
    assert is_symbolicated(send_dump(server, dump(), fields).json())


def test_a_build_that_is_staged_again_with_other_symbols_is_looked_at_again(
    server: RunningServer, archive_of_builds: Path
) -> None:
    name = make_build(archive_of_builds, "R1-1.0.0", {f"x/{'A' * 32}0/x.sym": b"MODULE x\n"})
    url = f"file://{archive_of_builds}/{name}"
    assert not is_symbolicated(walked(server, archive_url=url))
    requests.delete(f"{server.url}/api/v1/builds/{name}", timeout=60).raise_for_status()
    (archive_of_builds / name / "debug.tgz").unlink()
    (archive_of_builds / name).rename(archive_of_builds / "old")
    make_build(archive_of_builds, "R1-1.0.0", crash_lab_symbols())
    assert server.call("/stage_debug", archive_url=url) == "Success"
    assert is_symbolicated(walked(server))


def test_what_a_named_build_lacks_is_found_elsewhere(
    server: RunningServer, archive_of_builds: Path
) -> None:
    other = {f"x/{'A' * 32}0/x.sym": b"MODULE Linux x86_64 x\n"}
    name = make_build(archive_of_builds, "R1-1.0.0", other)
    AssembleClient(server).upload(crash_lab("crash_lab.sym"))
    assert is_symbolicated(walked(server, archive_url=f"file://{archive_of_builds}/{name}"))


def test_a_second_dump_unpacks_and_copies_nothing_again(server: RunningServer) -> None:
    AssembleClient(server).upload(crash_lab("crash_lab.sym"))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: walked(server), range(24)))
    assert all(map(is_symbolicated, found))
    (kept,) = symbol_files(server)
    assert server.log.count(f"made {kept.name}") == 1
    assert kept_dumps(server) == []


def test_symbols_that_were_made_are_there_after_a_restart(serve: Serve) -> None:
    options = ("--minidump-stackwalk", stack_walker())
    server = serve(*options)
    AssembleClient(server).upload(crash_lab("crash_lab.sym"))
    assert is_symbolicated(walked(server))
    made_at = symbol_files(server)[0].stat().st_ctime_ns, symbol_files(server)[0].stat().st_ino
    server.kill()
    again = serve(*options)
    assert is_symbolicated(walked(again))
    assert symbol_files(again)[0].stat().st_ino == made_at[1]


# --- input


def test_names_in_a_dump_lead_nowhere(server: RunningServer) -> None:
    AssembleClient(server).upload(crash_lab("crash_lab.sym"))
    for name in ("../../etc", "..", "/", "", "a\nb", "x" * 1000, "a|b", "module-0", "\x1b[31m"):
        found = walked(server, with_module_name(dump(), name))
        assert is_symbolicated(found), name
        shown = found["modules"][0]["name"]
        assert "/" not in shown and "\n" not in shown and "\x1b" not in shown
        assert send_dump(server, with_module_name(dump(), name)).status_code == 200
    assert kept_dumps(server) == []
    assert not (server.directory / "etc").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"this is text\n" * 1000,
        b"MDMP",
        dump()[:31],
        dump()[:100],
        crash_lab("crash_lab.truncated.dmp"),
        crash_lab("crash_lab"),
    ],
    ids=["empty", "text", "signature", "head", "cut", "truncated", "elf"],
)
def test_what_is_no_minidump_is_refused_in_one_line(bare: RunningServer, content: bytes) -> None:
    response = send_dump(bare, content)
    assert response.status_code == 400
    assert response.text.startswith("not a minidump") and "\n" not in response.text
    assert kept_dumps(bare) == []


@pytest.mark.parametrize("number", [0, 5, 12, 0x8003, 0xFFFF])
def test_a_dump_of_another_architecture_is_walked_or_refused(
    bare: RunningServer, number: int
) -> None:
    response = send_dump(bare, with_architecture(dump(), number))
    assert response.status_code in {200, 400}


@pytest.mark.parametrize("kind", [THREAD_LIST_STREAM, 4, 5, 6, 7])
def test_a_dump_that_announces_a_gigabyte_is_walked_or_refused(
    bare: RunningServer, kind: int
) -> None:
    response = send_dump(bare, with_stream_size(dump(), kind, GIGABYTE))
    assert response.status_code in {200, 400}


def test_a_gigabyte_is_refused_before_it_comes(bare: RunningServer) -> None:
    client = RawClient(bare.port)
    client.get(
        "/symbolicate_dump",
        "POST",
        Content_Type=content_type(),
        Content_Length=str(GIGABYTE),
    )
    reply = client.reply()
    assert reply.status == 413 and "larger than" in reply.text
    assert kept_dumps(bare) == []


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ({"files": {"other": b"x"}}, 400, "minidump"),
        ({"data": b"MDMP", "headers": {"Content-Type": "application/octet-stream"}}, 400, "form"),
        ({"data": b""}, 400, "multipart/form-data"),
        ({"files": [("minidump", dump()), ("minidump", dump())]}, 400, "several"),
        ({"files": {"minidump": dump()}, "params": {"format": "xml"}}, 400, "format"),
        ({"files": {"minidump": dump()}, "params": {"wait": "soon"}}, 400, "wait"),
        ({"files": {"minidump": dump()}, "params": {"archive_url": "x"}}, 400, "archive URL"),
        ({"files": {"minidump": dump()}, "data": {"format": "x" * 9000}}, 413, "format"),
        (
            {"files": {"minidump": dump()}, "params": {"archive_url": "http://other/t/b"}},
            403,
            "http://other",
        ),
        ({"files": {"minidump": dump()}, "headers": {"Origin": "http://evil"}}, 403, "sites"),
    ],
)
def test_what_is_wrong_with_a_request_is_told(
    bare: RunningServer, arguments: dict[str, object], status: int, said: str
) -> None:
    url = f"{bare.url}/symbolicate_dump"
    response = requests.post(url, timeout=60, **arguments)  # type: ignore[arg-type]
    assert (response.status_code, said in response.text) == (status, True), response.text
    assert "\n" not in response.text
    assert kept_dumps(bare) == []


def test_a_dump_is_posted(bare: RunningServer) -> None:
    assert bare.get("/symbolicate_dump").status_code == 405


def test_a_build_that_does_not_exist_is_told(
    server: RunningServer, archive_of_builds: Path
) -> None:
    url = f"file://{archive_of_builds}/{TARGET}/R9-9"
    response = send_dump(server, dump(), archive_url=url)
    assert (response.status_code, "R9-9" in response.text) == (404, True)
    assert kept_dumps(server) == []


def test_nothing_is_left_of_a_dump_whose_sender_hangs_up(bare: RunningServer) -> None:
    client = RawClient(bare.port)
    client.get("/symbolicate_dump", "POST", Content_Type=content_type(), Content_Length="1000000")
    boundary = content_type().partition("=")[2]
    head = 'Content-Disposition: form-data; name="minidump"; filename="x"'
    client.socket.sendall(f"--{boundary}\r\n{head}\r\n\r\n".encode() + dump())
    wait_until(lambda: kept_dumps(bare) != [])
    client.socket.close()
    wait_until(lambda: kept_dumps(bare) == [])


# --- the walker


def test_a_walker_that_is_not_installed_is_told_with_how_to_get_it(serve: Serve) -> None:
    server = serve("--minidump-stackwalk", "/not/there")
    response = send_dump(server, dump())
    assert response.status_code == 501
    assert "npm install --ignore-scripts minidump" in response.text
    assert "/not/there" in response.text


def test_a_walker_that_hangs_is_ended(serve: Serve, tmp_path: Path) -> None:
    walker = fake_walker(tmp_path, "sleep 600 & sleep 600")
    server = serve("--minidump-stackwalk", walker, "--walk-timeout", "0.5")
    response = send_dump(server, dump())
    assert (response.status_code, "took over 0.5 s" in response.text) == (504, True)
    assert kept_dumps(server) == []


@pytest.mark.parametrize(
    ("script", "status"), [("kill -SEGV $$", 502), ("kill -9 $$", 502), ("exit 1", 400)]
)
def test_a_walker_that_dies_is_told(serve: Serve, tmp_path: Path, script: str, status: int) -> None:
    server = serve("--minidump-stackwalk", fake_walker(tmp_path, script))
    response = send_dump(server, dump())
    assert response.status_code == status and "\n" not in response.text


def test_at_most_one_walker_a_processor_runs(serve: Serve, tmp_path: Path) -> None:
    running = tmp_path / "running"
    running.mkdir()
    counts = tmp_path / "counts"
    counts.mkdir()
    script = (
        f"mkdir {running}/$$; mkdir {counts}/$$-$(ls {running} | wc -l); "
        f"for i in 1 2 3 4 5 6 7 8 9; do ls {running} >/dev/null; done; "
        f"rmdir {running}/$$; echo done"
    )
    server = serve("--minidump-stackwalk", fake_walker(tmp_path, script))
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: send_dump(server, dump()).status_code, range(24)))
    assert set(answers) == {200}
    most = max(int(path.name.partition("-")[2]) for path in counts.iterdir())
    assert len(list(counts.iterdir())) == 24
    assert most <= (os.cpu_count() or 1)


def test_the_server_answers_others_while_dumps_are_walked(serve: Serve, tmp_path: Path) -> None:
    release = tmp_path / "release"
    script = f"while [ ! -e {release} ]; do :; done; echo done"
    server = serve("--minidump-stackwalk", fake_walker(tmp_path, script), "--threads", "2")
    with ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(send_dump, server, dump()) for _ in range(8)]
        wait_until(lambda: len(kept_dumps(server)) == 8)
        assert server.get("/health").status_code == 200
        release.touch()
        assert {future.result().status_code for future in sent} == {200}


def test_nothing_is_walked_for_those_who_have_hung_up(serve: Serve, tmp_path: Path) -> None:
    began = tmp_path / "began"
    began.mkdir()
    walker = fake_walker(tmp_path, f"mkdir {began}/$$; exec sleep 600")
    server = serve("--minidump-stackwalk", walker)
    body = multipart([Part(dump(), "crash.dmp", "minidump")])
    clients = [RawClient(server.port) for _ in range(12)]
    for client in clients:
        client.get(
            "/symbolicate_dump",
            "POST",
            Content_Type=content_type(),
            Content_Length=str(len(body)),
        )
        client.socket.sendall(body)
    walkers = min(os.cpu_count() or 1, len(clients))
    wait_until(lambda: len(kept_dumps(server)) == len(clients))
    wait_until(lambda: len(list(began.iterdir())) == walkers)
    for client in clients:
        client.socket.close()
    wait_until(lambda: kept_dumps(server) == [])
    process = psutil.Process(server.process.pid)
    wait_until(lambda: not any(child.name() == "sleep" for child in process.children()))
    # Those that were waiting for their turn did not get it.
    assert len(list(began.iterdir())) == walkers


def test_large_bodies_are_for_this_call_alone(bare: RunningServer) -> None:
    body = b"a=1&" * (1 << 19)
    for path in ("/symbolicate_dumpx", "/symbolicate_dump.x", "/symbolicate"):
        response = requests.post(f"{bare.url}{path}", data=body, timeout=60)
        assert response.status_code == 413, path


def test_a_server_that_is_killed_leaves_no_dumps_to_the_next(serve: Serve, tmp_path: Path) -> None:
    walker = fake_walker(tmp_path, "sleep 600")
    server = serve("--minidump-stackwalk", walker)
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send_dump, server, dump())
        wait_until(lambda: kept_dumps(server) != [])
        server.kill()
        assert isinstance(sent.exception(), requests.RequestException)
    again = serve("--minidump-stackwalk", walker)
    assert kept_dumps(again) == []


def test_the_end_of_a_server_does_not_wait_for_the_walker(serve: Serve, tmp_path: Path) -> None:
    began = tmp_path / "began"
    walker = fake_walker(tmp_path, f"touch {began}; sleep 600")
    server = serve("--minidump-stackwalk", walker, "--shutdown-timeout", "0")
    outcome: list[int] = []
    sender = threading.Thread(
        target=lambda: outcome.append(send_dump(server, dump()).status_code), daemon=True
    )
    sender.start()
    wait_until(began.exists)
    assert server.stop() == 0
    sender.join(60)
    assert outcome == [503]
