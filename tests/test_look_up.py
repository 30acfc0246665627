"""``/api/v1/symbols``: what is at an address, from the debug files that were uploaded."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from assemble_client import DEBUG_ID, AssembleClient, crash_lab
from conftest import Serve
from crash_client import IDENTIFIER, SOURCE, crash_lab_symbols, make_build
from made_debug_files import breakpad, pe
from polling import unread_bytes, wait_until
from running_server import RunningServer
from sqlalchemy import select, update
from upload_client import blob_directory, chunk, database_of, rows_of, sha1_of

from artifacts.database.database import Database
from artifacts.database.tables import symcaches
from artifacts.tokens import PUBLISH, Tokens

# Address, function and line.
KNOWN = [
    (0x113F, "lab::poke(lab::Widget*, int)", 16),
    (0x1158, "lab::descend(lab::Widget*, int)", 23),
    (0x116B, "lab::descend(lab::Widget*, int)", 25),
    (0x1198, "lab::run_job(char const*)", 31),
    (0x11D6, "main", 39),
]


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("look-up"))
    yield server
    server.stop()


def look_up(server: RunningServer, debug_id: str, *addresses: int | str) -> Any:
    """Return what is at addresses, which has to be 200."""
    response = ask(server, debug_id, addresses)
    assert response.status_code == 200, f"{response.status_code}: {response.text}"
    assert response.json()["debug_id"] == debug_id.lower()
    return response.json()["symbols"]


def ask(server: RunningServer, debug_id: str, addresses: Sequence[int | str]) -> requests.Response:
    texts = [hex(one) if isinstance(one, int) else one for one in addresses]
    return server.get(f"/api/v1/symbols/{debug_id}", addr=texts)


def knows_all(server: RunningServer) -> bool:
    found = look_up(server, DEBUG_ID, *(address for address, _, _ in KNOWN))
    return [(int(one["addr"], 16), one["function"], one["line"]) for one in found] == KNOWN


def symcache_files(server: RunningServer) -> list[Path]:
    return sorted((server.directory / "data" / "symcaches").glob("*/*"))


def new_program(lines: str = "") -> tuple[str, bytes]:
    """Return a debug id, and Breakpad's symbols of a program that has it."""
    identity = uuid.uuid4()
    return str(identity), breakpad(f"{identity.hex.upper()}0", lines=lines)


@pytest.mark.parametrize("name", ["crash_lab", "crash_lab.debug", "crash_lab.sym"])
def test_function_file_and_line_come_from_any_kind_of_debug_file(serve: Serve, name: str) -> None:
    server = serve()
    AssembleClient(server).upload(crash_lab(name), name)
    assert knows_all(server)
    (poke,) = look_up(server, DEBUG_ID, 0x113F)
    assert poke == {
        "addr": "0x113f",
        "function": "lab::poke(lab::Widget*, int)",
        "file": SOURCE,
        "line": 16,
        "frames": [{"function": "lab::poke(lab::Widget*, int)", "file": SOURCE, "line": 16}],
    }


def test_ids_and_addresses_are_taken_in_any_spelling(shared_server: RunningServer) -> None:
    debug_id, content = new_program("FUNC 2000 10 0 here\n2000 10 7 0\n")
    AssembleClient(shared_server).upload(content)
    for spelled in (debug_id, debug_id.upper(), debug_id.replace("-", "").upper() + "0"):
        response = ask(shared_server, spelled, ["0x2004", "8196", "0X2004", "0x2004"])
        assert response.json()["debug_id"] == debug_id
        assert [one["function"] for one in response.json()["symbols"]] == ["here"] * 4


def test_an_address_that_is_nowhere_is_nothing(shared_server: RunningServer) -> None:
    debug_id, content = new_program("FUNC 2000 10 0 here\n2000 10 7 0\n")
    AssembleClient(shared_server).upload(content)
    for found in look_up(shared_server, debug_id, 0, 0xFFF):
        assert (found["function"], found["file"], found["line"]) == (None, None, None)
        assert found["frames"] == []


def test_inlined_frames_are_told_from_the_innermost_on(shared_server: RunningServer) -> None:
    debug_id, content = new_program(
        "FILE 0 outer.cc\nFILE 1 inner.cc\nINLINE_ORIGIN 0 inner()\n"
        "FUNC 2000 20 0 outer()\nINLINE 0 7 0 0 2004 4\n2000 4 6 0\n2004 4 99 1\n2008 18 8 0\n"
    )
    AssembleClient(shared_server).upload(content)
    (found,) = look_up(shared_server, debug_id, 0x2005)
    assert (found["function"], found["file"], found["line"]) == ("inner()", "inner.cc", 99)
    assert found["frames"] == [
        {"function": "inner()", "file": "inner.cc", "line": 99},
        {"function": "outer()", "file": "outer.cc", "line": 7},
    ]


def test_names_are_demangled(shared_server: RunningServer) -> None:
    mangled = {
        "_ZN3lab4pokeEPNS_6WidgetEi": "lab::poke(lab::Widget*, int)",
        "_RNvCs43NoKGl62Ug_14rustc_demangle12try_demangle": "rustc_demangle::try_demangle",
        "?foo@@YAHH@Z": "int foo(int)",
        "plain_c": "plain_c",
        "_Z": "_Z",
    }
    lines = "".join(
        f"FUNC {0x2000 + 16 * number:x} 10 0 {name}\n" for number, name in enumerate(mangled)
    )
    debug_id, content = new_program(lines)
    AssembleClient(shared_server).upload(content)
    addresses = [0x2000 + 16 * number for number in range(len(mangled))]
    found = look_up(shared_server, debug_id, *addresses)
    assert [one["function"] for one in found] == list(mangled.values())


def test_the_file_with_the_most_to_tell_is_asked(serve: Serve) -> None:
    server = serve()
    client = AssembleClient(server)
    client.upload(crash_lab("crash_lab.stripped"), "crash_lab")
    (found,) = look_up(server, DEBUG_ID, 0x113F)
    assert found["function"] is None
    client.upload(crash_lab("crash_lab.debug"), "crash_lab.debug")
    assert knows_all(server)
    # One that comes later and has less does not count.
    client.upload(breakpad(IDENTIFIER))
    assert knows_all(server)


def test_what_is_wrong_with_a_call_is_told(shared_server: RunningServer) -> None:
    debug_id, content = new_program("FUNC 2000 10 0 here\n")
    AssembleClient(shared_server).upload(content)
    look_up(shared_server, debug_id, 2**64 - 1)
    for wrong in ("", "x", "-1", "0x", "0x1g", "1_0", "٣", str(2**64), "0x1" + "0" * 16):
        assert ask(shared_server, debug_id, [wrong]).status_code == 400, wrong
    assert shared_server.get(f"/api/v1/symbols/{debug_id}").status_code == 400
    assert ask(shared_server, debug_id, ["1"] * 1001).status_code == 400
    assert len(look_up(shared_server, debug_id, *["1"] * 1000)) == 1000
    assert ask(shared_server, "nonsense", [1]).status_code == 400
    unknown = ask(shared_server, str(uuid.uuid4()), [1])
    assert unknown.status_code == 404
    assert "none were uploaded" in unknown.json()["error"]["message"]
    assert shared_server.get("/api/v1/symbols/a/b?addr=1").status_code == 404
    posted = requests.post(f"{shared_server.url}/api/v1/symbols/{debug_id}?addr=1", timeout=60)
    assert posted.status_code == 405


def test_a_debug_file_that_tells_nothing_is_not_found(shared_server: RunningServer) -> None:
    identity = uuid.uuid4()
    dif = AssembleClient(shared_server).upload(pe(identity, 1), "thing.dll")
    assert set(dif["data"]["features"]).isdisjoint({"symtab", "debug"})
    response = ask(shared_server, dif["debugId"], [1])
    assert response.status_code == 404
    assert "neither a symbol table nor debug information" in response.text


def test_symbols_of_staged_builds_are_looked_up_as_well(serve: Serve, tmp_path: Path) -> None:
    server = serve("--allow-archive", f"file://{tmp_path}")
    name = make_build(tmp_path, "R1-1.0.0", crash_lab_symbols())
    assert server.call("/stage_debug", archive_url=f"file://{tmp_path}/{name}") == "Success"
    assert knows_all(server)
    assert rows_of(server, symcaches) == []
    # What was uploaded, and has no lines, is asked after them.
    AssembleClient(server).upload(crash_lab("crash_lab.stripped"))
    assert knows_all(server)
    dropped = requests.delete(f"{server.url}/api/v1/builds/{name}", timeout=60)
    assert dropped.status_code == 204
    (found,) = look_up(server, DEBUG_ID, 0x113F)
    assert found["function"] is None


# --- symcaches


def test_symcaches_are_built_when_a_file_is_assembled(serve: Serve) -> None:
    server = serve()
    content = crash_lab("crash_lab")
    AssembleClient(server).upload(content)
    (row,) = rows_of(server, symcaches)
    (path,) = symcache_files(server)
    assert (row.number, row.error) == (0, None)
    checksum = sha1_of(content)
    assert path.parent.name + path.name == f"{checksum}-0-v{row.version}"
    # Nothing of the upload is needed any more.
    for blob in blob_directory(server).glob("??/*"):
        blob.unlink()
    assert knows_all(server)


def test_a_symcache_that_is_gone_or_damaged_is_built_again(serve: Serve) -> None:
    server = serve()
    AssembleClient(server).upload(crash_lab("crash_lab"))
    (path,) = symcache_files(server)
    whole = path.read_bytes()
    for damaged in (None, b"", b"rubbish" * 100, whole[:100]):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        assert knows_all(server)
        assert path.read_bytes() == whole
        end_reader(server)


def test_a_symcache_of_an_older_format_is_built_anew(serve: Serve) -> None:
    server = serve()
    AssembleClient(server).upload(crash_lab("crash_lab"))
    (path,) = symcache_files(server)
    server.stop()
    version = rows_of(server, symcaches)[0].version
    # As if the library had been an older one.
    path.rename(path.with_name(path.name.replace(f"-v{version}", f"-v{version - 1}")))
    with database_of(server) as database, database.writing() as connection:
        connection.execute(update(symcaches).values(version=version - 1))
    again = serve()
    assert knows_all(again)
    assert path.exists()
    assert [row.version for row in rows_of(again, symcaches)] == [version]


def test_many_who_look_up_have_one_symcache_built(serve: Serve) -> None:
    server = serve()
    AssembleClient(server).upload(crash_lab("crash_lab"))
    symcache_files(server)[0].unlink()
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda _: knows_all(server), range(64)))
    assert len(symcache_files(server)) == len(rows_of(server, symcaches)) == 1


def test_those_who_upload_the_same_at_once_agree_on_one_symcache(
    serve: Serve, database_url: str
) -> None:
    server = serve("--database-url", database_url)
    content = crash_lab("crash_lab")
    with closing(Database(database_url)) as database:
        token = Tokens(database).create("lab", [PUBLISH])

        def upload(project: str) -> str:
            client = AssembleClient(server)
            client.token, client.project = token, project
            return str(client.upload(content)["id"])

        def row_count() -> int:
            with database.reading() as connection:
                return len(connection.execute(select(symcaches)).all())

        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(upload, ["devices"] * 8))) == 1
        assert (len(symcache_files(server)), row_count()) == (1, 1)
        assert knows_all(server)
        # In another project it is another debug file, of the same bytes.
        upload("another")
        assert (len(symcache_files(server)), row_count()) == (1, 2)


def test_what_cannot_be_converted_is_an_error_that_is_remembered(serve: Serve) -> None:
    server = serve()
    client = AssembleClient(server)
    debug_id, content = new_program("FUNC zz 1 0 broken\n")
    for asking in (client, AssembleClient(server)):
        answer = asking.settle(asking.difs, content)
        assert answer["state"] == "error"
        assert answer["detail"].startswith("no symcache can be made of it: ")
        assert "func record" in answer["detail"] and "\n" not in answer["detail"]
    (row,) = rows_of(server, symcaches)
    assert "func record" in row.error
    assert server.log.count("assembled") == 1
    # Others are well.
    assert client.upload(crash_lab("crash_lab"))["debugId"] == DEBUG_ID
    # What it has been kept for can be looked at.
    assert [dif["debugId"] for dif in client.list(debug_id=debug_id)] == [debug_id]
    response = ask(server, debug_id, [1])
    assert response.status_code == 404 and "func record" in response.text


def test_an_error_that_is_old_is_tried_again(serve: Serve) -> None:
    server = serve()
    client = AssembleClient(server)
    content = crash_lab("crash_lab.sym")
    client.upload(content)
    with database_of(server) as database, database.writing() as connection:
        connection.execute(update(symcaches).values(error="of yesterday", created_at=1.0))
    assert client.settle(client.difs, content)["state"] == "ok"
    assert [row.error for row in rows_of(server, symcaches)] == [None]


def end_reader(server: RunningServer) -> None:
    """End the process of a server that has symcaches open."""
    children = psutil.Process(server.process.pid).children()
    (reader,) = [child for child in children if "look-up" in child.cmdline()]
    reader.kill()
    wait_until(lambda: reader.status() == psutil.STATUS_ZOMBIE)


def converters(server: RunningServer) -> list[psutil.Process]:
    """The processes of a server that build symcaches."""
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if "convert" in child.cmdline()]


def test_a_converter_that_dies_is_an_error_for_that_file_alone(serve: Serve) -> None:
    server = serve()
    client = AssembleClient(server)
    client.upload(crash_lab("crash_lab"))
    (process,) = converters(server)
    process.suspend()
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
    _, content = new_program("FUNC 2000 10 0 here\n")
    with ThreadPoolExecutor(1) as pool:
        settled = pool.submit(client.settle, client.difs, content)
        wait_until(lambda: unread_bytes(process) > 0)
        process.kill()
        answer = settled.result()
    assert answer["state"] == "error"
    assert "ended with status -9" in answer["detail"]
    assert server.get("/health").status_code == 200
    assert client.upload(new_program("FUNC 2000 10 0 here\n")[1])["symbolType"] == "breakpad"


def test_a_thousand_debug_files_are_taken_in_one_request(serve: Serve) -> None:
    server = serve()
    client = AssembleClient(server)
    contents = [new_program(f"FUNC 2000 10 0 number_{n}\n") for n in range(1000)]
    for start in range(0, 1000, 64):
        assert client.send(*(chunk(c) for _, c in contents[start : start + 64])).ok
    offers = {sha1_of(c): {"name": "x", "chunks": [sha1_of(c)]} for _, c in contents}
    states: list[str] = []

    def is_settled() -> bool:
        states[:] = [answer["state"] for answer in client.ask(client.difs, offers).values()]
        return "assembling" not in states

    wait_until(is_settled)
    assert states == ["ok"] * 1000
    assert len(symcache_files(server)) == len(rows_of(server, symcaches)) == 1000
    for number in (0, 500, 999):
        (found,) = look_up(server, contents[number][0], 0x2004)
        assert found["function"] == f"number_{number}"


def test_the_process_that_looks_up_may_be_killed(serve: Serve) -> None:
    server = serve()
    AssembleClient(server).upload(crash_lab("crash_lab"))
    assert knows_all(server)
    end_reader(server)
    assert knows_all(server)


def test_what_a_crash_has_left_of_symcaches_goes_at_the_next_start(serve: Serve) -> None:
    server = serve()
    AssembleClient(server).upload(crash_lab("crash_lab"))
    (kept,) = symcache_files(server)
    server.kill()
    aside = kept.parent.parent / ".aside-of-a-crash"
    unrecorded = kept.with_name("f" * 38 + "-0-v9")
    recent = kept.with_name("e" * 38 + "-0-v9")
    for path in (aside, unrecorded, recent):
        path.write_bytes(b"x")
    os.utime(unrecorded, (1, 1))
    os.utime(kept, (1, 1))
    again = serve()
    wait_until(lambda: not unrecorded.exists())
    assert not aside.exists()
    assert symcache_files(again) == sorted([kept, recent])


def test_debug_files_of_before_there_were_symcaches_are_looked_up(serve: Serve) -> None:
    server = serve()
    AssembleClient(server).upload(crash_lab("crash_lab"))
    server.stop()
    for path in symcache_files(server):
        path.unlink()
    with database_of(server) as database, database.writing() as connection:
        connection.execute(symcaches.delete())
    again = serve()
    assert knows_all(again)
    assert len(rows_of(again, symcaches)) == 1
