"""`actorbot sessions edit`: a session changed by hand, and nothing overwritten."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from actorbot import FlushPolicy, SessionManager, errors, store_from_url
from actorbot._state.codec import decode_state
from actorbot._state.record import Record
from actorbot.stores import Write
from actorbot.stores.driver import as_records
from actorbot.testing._expect import make_record, make_tombstone, write_all
from tests import ROOT
from tests.backends import DictStore
from tests.handlers import count_plainly
from tests.tools.test_cli import run, serve
from tests.tools.test_cli_owner import Busy, Driver
from tests.tools.test_cli_sessions import in_files, in_mongo, in_redis

STATE = {"n": 1, "paid": True, "born": date(2017, 5, 1), "price": Decimal("1.50"), "raw": b"\x00\xff", "pair": (1, 2)}
PLACES: dict[str, Callable[[Path], str]] = {"file": in_files, "redis": in_redis, "mongo": in_mongo}


@pytest.fixture(params=[*PLACES, "driver"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store with a session of ann's, and some that are none any more."""
    if request.param == "driver":
        driver = Driver()
        serve(monkeypatch, lambda url: driver)
        made = "plain://here"
    else:
        made = PLACES[request.param](tmp_path)
    ended = make_record("old", {"n": 1}, expires_at=time.time() - 60)
    put(made, make_record("ann", STATE), ended, make_tombstone("gone"))
    return made


def put(url: str, *records: Record) -> None:
    with as_records(store_from_url(url)) as store:
        write_all(store.init(), [Write(record, b"") for record in records])
        store.close()


def stored(url: str, session_id: str = "ann") -> Record:
    with as_records(store_from_url(url)) as store:
        found = store.init().read_many([session_id])[0]
        store.close()
    assert isinstance(found, Record)
    return found


def let_editor(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Let the user's editor run *code*, which changes `text`."""
    script = folder / "editor.py"
    script.write_text(
        "import json, sys\n"
        "from pathlib import Path\n"
        "file = Path(sys.argv[1])\n"
        "text = file.read_text('utf-8')\n"
        f"{code}\n"
        "file.write_text(text, 'utf-8')\n"
    )
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", f"{sys.executable} {script}")


@pytest.mark.parametrize("backwards", [False, True])
def test_what_is_edited_is_written_as_a_new_write_and_all_else_stays(
    url: str, backwards: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_editor(monkeypatch, tmp_path, "text = text.replace('\"paid\": true', '\"paid\": false')")
    before = stored(url)
    done = run("sessions", "edit", *(("ann", url) if backwards else (url, "ann")))
    after = stored(url)

    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("ann: written (version 1, ")
    assert after.state is not None
    assert decode_state(after.state) == STATE | {"paid": False}
    assert after.write_id != before.write_id
    assert before.write_id in after.write_ids
    rest = ("session_id", "version", "event_ids", "last_activity", "expires_at")
    assert [getattr(after, name) for name in rest] == [getattr(before, name) for name in rest]


def test_the_user_sees_the_values_as_json_and_nothing_else(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_editor(monkeypatch, tmp_path, f"Path({str(tmp_path / 'seen')!r}).write_text(f'{{file.suffix}}{{text}}')")
    run("sessions", "edit", url, "ann")
    suffix, text = (tmp_path / "seen").read_text()[:5], (tmp_path / "seen").read_text()[5:]

    assert suffix == ".json"
    assert json.loads(text) == {
        "n": 1, "paid": True, "born": {"$date": "2017-05-01"}, "price": {"$decimal": "1.50"},
        "raw": {"$bytes": "AP8="}, "pair": {"$tuple": [1, 2]},
    }  # fmt: skip


@pytest.mark.parametrize("code", ["sys.exit(0)", "pass", "text = json.dumps(json.loads(text))"])
def test_if_nothing_is_changed_nothing_is_written(
    url: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_editor(monkeypatch, tmp_path, code)
    before = stored(url)
    done = run("sessions", "edit", url, "ann")

    assert (done.exit_code, done.stdout) == (0, "ann: unchanged, nothing was written\n")
    assert stored(url) == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value"),
        ('{"n": 1', "line 1 column"),
        ("[1]", "a JSON object"),
        ('{"n": NaN}', "NaN is no JSON"),
        ('{"n": 1e400}', "session['n']"),
        ('{"n": 99999999999999999999999}', "session['n']"),
        ('{"n": 1, "n": 2}', "the key 'n' stands there twice"),
        ('{"$actorbot": {"version": 7}}', "'$actorbot' is not yours to set"),
        ('{"born": {"$date": "yesterday"}}', "malformed $date"),
        ("[" * 100_000, ""),
        ('{"n": ' * 300 + "1" + "}" * 300, "nested"),
    ],
)
def test_what_no_session_can_hold_is_told_and_not_written(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = in_files(tmp_path)
    put(url, make_record("ann", STATE))
    (tmp_path / "typed").write_text(text)
    let_editor(monkeypatch, tmp_path, f"text = Path({str(tmp_path / 'typed')!r}).read_text()")
    before = stored(url)
    done = run("sessions", "edit", url, "ann")

    assert done.exit_code == 1
    assert "this is no session: " in done.stderr
    assert says in done.stderr
    assert done.stderr.endswith("Error: nothing was written\n")
    assert stored(url) == before


def test_at_a_terminal_a_mistake_can_be_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = in_files(tmp_path)
    put(url, make_record("ann", {"n": 1}))
    let_editor(monkeypatch, tmp_path, "text = text.replace(' 1', ' 2,') if ',' not in text else text.replace(',', '')")
    ours, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "actorbot", "sessions", "edit", url, "ann"], stdin=terminal, stdout=terminal, stderr=terminal
    ) as process:  # fmt: skip
        os.write(ours, b"y\n")
        assert process.wait(timeout=30) == 0
    said = os.read(ours, 10_000)
    os.close(ours)
    os.close(terminal)

    assert b"this is no session" in said
    assert b"ann: written" in said
    assert decode_state(stored(url).state or b"") == {"n": 2}


@pytest.mark.parametrize("session_id", ["nobody", "gone", "old"])
def test_a_session_that_is_none_is_not_made(
    url: str, session_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_editor(monkeypatch, tmp_path, "text = '{}'")
    done = run("sessions", "edit", url, session_id)

    assert (done.exit_code, done.stdout) == (1, "")
    assert f"there is no session '{session_id}'" in done.stderr


def test_an_editor_that_fails_changes_nothing(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_editor(monkeypatch, tmp_path, "sys.exit(3)")
    before = stored(url)

    assert run("sessions", "edit", url, "ann").exit_code == 1
    assert stored(url) == before


def test_what_was_written_meanwhile_is_not_overwritten_and_the_text_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Busy()
    write_all(store.init(), [Write(make_record("ann", {"n": 1}), b"")])
    serve(monkeypatch, lambda url: store)
    monkeypatch.setattr(store, "close", lambda: None)
    let_editor(monkeypatch, tmp_path, "text = '{\"n\": 2}'")
    done = run("sessions", "edit", "plain://here", "ann")

    assert (done.exit_code, done.stdout) == (1, '{"n": 2}\n')
    assert "not written: memory: session 'ann': it was written by someone else" in done.stderr
    assert "try again" in done.stderr
    assert (store.read("ann") or {})["n"] == 1


def test_a_bot_can_have_the_folder_while_its_session_is_edited_and_what_it_writes_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = in_files(tmp_path)
    put(url, make_record("ann", {"n": 1}))
    bot = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from actorbot import FileSessionStore, SessionManager\n"
        "from tests.handlers import count_plainly\n"
        f"with SessionManager(FileSessionStore({str(tmp_path / 'sessions')!r}), handler=count_plainly) as manager:\n"
        "    manager.dispatch_sync('ann', 'hi')\n"
        "text = '{\"n\": 100}'"
    )
    let_editor(monkeypatch, tmp_path, bot.replace("sys.argv[2]", repr(str(ROOT))))
    done = run("sessions", "edit", url, "ann")

    assert done.exit_code == 1
    assert "it was written by someone else" in done.stderr
    assert decode_state(stored(url).state or b"") == {"n": 2}


def test_a_driver_that_compares_nothing_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = DictStore()
    driver.data = {"ann": {"n": 1}}
    serve(monkeypatch, lambda url: driver)
    let_editor(monkeypatch, tmp_path, "text = '{\"n\": 2}'")
    done = run("sessions", "edit", "plain://here", "ann")

    assert done.exit_code == 0
    assert "note: DictStore compares nothing" in done.stderr
    assert driver.data["ann"]["n"] == 2


@pytest.mark.parametrize("place", [in_redis, in_mongo])
def test_a_change_stands_though_the_owner_has_the_session_in_memory(
    place: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = place(tmp_path)
    let_editor(monkeypatch, tmp_path, "text = '{\"n\": 100}'")
    policy = FlushPolicy.write_behind(max_delay=600.0)
    with SessionManager(store_from_url(url), handler=count_plainly, flush=policy) as manager:
        manager.dispatch_sync("ann", "hi")
        manager.flush_sync()
        done = run("sessions", "edit", url, "ann")
        assert manager.dispatch_sync("ann", "hi") == 2  # it has her in memory
        with pytest.raises(errors.ConflictError):
            manager.flush_sync("ann")
        assert manager.dispatch_sync("ann", "hi") == 101
        assert [each.state for each in manager.conflicts()] == [{"n": 2}]

    assert done.exit_code == 0
    assert f"is owned by process {os.getpid()} on " in done.stderr
    assert "your change stands" in done.stderr
