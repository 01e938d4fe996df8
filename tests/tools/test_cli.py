"""The command `actorbot`: what it prints, its exit status, and what it never prints."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints, version
from inspect import signature
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from click.testing import CliRunner, Result

import actorbot
from actorbot import FileSessionStore, MemorySessionStore, RedisSessionStore, store_from_url
from actorbot.cli._command import command
from actorbot.stores._findings import judge_clock
from tests import ROOT
from tests.backends import AsyncDictStore, DictStore
from tests.servers import mongo_servers
from tests.servers.redis_servers import KINDS, QUICK, Server
from tests.tiers import tiers
from tests.waiting import Call

SECRET = "s3cret-pa55"
# click 8.1 mixes the two outputs, unless it is told not to. Newer ones cannot be told.
RUNNER = CliRunner(**{"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {})


def run(*args: str, stdin: str = "") -> Result:
    """Run the command in this process."""
    return RUNNER.invoke(command, args, input=stdin, prog_name="actorbot")


def run_apart(
    *args: str,
    stdin: str = "",
    cwd: Path | None = None,
    stdout: int = subprocess.PIPE,
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("actorbot")), *args],
        input=stdin, cwd=cwd, stdout=stdout, env=env, stderr=subprocess.PIPE, text=True, timeout=30, check=False,
    )  # fmt: skip


def run_code(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=30, check=False)


def examine(url: str) -> dict[str, tuple[str, str]]:
    """Return what the doctor finds: by what was looked at, how good it is and why."""
    done = run("doctor", url, "--json")
    report = json.loads(done.stdout)
    findings = {each["what"]: (each["level"], each["text"]) for each in report["findings"]}
    assert len(findings) == len(report["findings"])
    levels = [level for level, _ in findings.values()]
    assert report["level"] == max(levels, key=["ok", "warning", "failure"].index)
    assert done.exit_code == (report["level"] == "failure")
    return findings


def levels_of(findings: dict[str, tuple[str, str]]) -> dict[str, str]:
    return {what: level for what, (level, _) in findings.items()}


# --- the frame ----------------------------------------------------------------------------------


def test_it_says_its_version() -> None:
    said = f"actorbot {version('actorbot')}\n"

    assert actorbot.__version__ == version("actorbot")
    assert run_apart("--version").stdout == said
    assert run_code("import runpy; runpy.run_module('actorbot', run_name='__main__')", "--version").stdout == said


def test_without_its_extra_the_command_says_what_to_install_and_the_library_works() -> None:
    code = (
        "import sys\n"
        "sys.modules['{0}'] = None\n"
        "import actorbot\n"
        "actorbot.MemorySessionStore().write('ann', {{}})\n"
        "from actorbot.cli import main\n"
        "main()\n"
    )
    for missing in ("click", "rich"):
        done = run_code(code.format(missing))
        assert done.returncode == 2
        assert (
            done.stderr
            == "actorbot: the command line needs two more packages: pip install '.[cli]' in a clone of actorbot\n"
        )


def test_importing_the_library_imports_neither_click_nor_rich() -> None:
    code = "import sys, actorbot, actorbot.testing; print([m for m in ('click', 'rich', 'actorbot.cli') if m in sys.modules])"

    assert run_code(code).stdout == "[]\n"


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (("doctor", f"odd://bot:{SECRET}@localhost"), 1),
        (("doctor", f"redis://bot:{SECRET}@localhost/?expires_in=soon"), 1),
        (("doctor", f"redis://bot:{SECRET}@localhost/0", f"redis://bot:{SECRET}@localhost/1"), 2),
        ((f"redis://bot:{SECRET}@localhost/0",), 2),
        (("doctor", f"redis://bot:{SECRET.replace('-', '%2D')}@localhost/0", f"--x={SECRET}"), 2),
        (("doctor",), 2),
    ],
)
def test_a_wrong_use_is_told_without_the_password(args: tuple[str, ...], status: int) -> None:
    done = run(*args)

    assert done.exit_code == status
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert SECRET not in done.output
    assert "Traceback" not in done.output


def test_a_missing_driver_is_told_in_one_line() -> None:
    code = "import sys; sys.modules['redis'] = None; from actorbot.cli import main; main()"
    done = run_code(code, "doctor", "redis://localhost")

    assert done.returncode == 1
    assert done.stderr == "Error: RedisSessionStore needs redis-py: pip install '.[redis]' in a clone of actorbot\n"


@pytest.mark.parametrize(
    "args", [("doctor",), ("chat", "--store"), ("sessions", "ls"), ("sessions", "copy", "memory://")], ids=" ".join
)
def test_a_server_that_never_answers_is_given_up(args: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        done = Call(run, *args, f"redis://bot:{SECRET}@127.0.0.1:{port}/?socket_timeout=0.2").result()

    could_not_start = 2  # the status of a bot
    assert (done.exit_code, done.stderr.count("\n")) == (could_not_start if args[0] == "chat" else 1, 1)
    assert f"127.0.0.1:{port}" in done.stderr
    assert SECRET not in done.output


@pytest.mark.parametrize("spelled", [SECRET, SECRET.replace("-", "%2D")])
def test_an_error_of_somebody_elses_store_is_told_without_the_password(
    spelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(url: str) -> Any:
        raise RuntimeError(f"no such thing:\n{url} {unquote(url)}")

    serve(monkeypatch, make)
    done = run("doctor", f"plain://bot:{spelled}@here")

    assert done.exit_code == 1
    said = "plain://bot:…@here plain://bot:…@here"
    assert done.stderr == f"Error: plain: its store cannot be made: RuntimeError: no such thing: {said}\n"


def serve(monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    """Let *make* serve the URLs of the scheme `plain`, as another package's entry point would."""
    point = EntryPoint("plain", "builtins:str", "actorbot.stores")
    monkeypatch.setattr(EntryPoint, "load", lambda self: make)
    monkeypatch.setattr("actorbot.stores.url.entry_points", EntryPoints([point]).select)


def test_a_failure_is_said_once() -> None:
    done = run("doctor", "redis://localhost:1/0")

    assert done.exit_code == 1
    assert done.output.count("localhost:1 does not answer") == 1
    assert done.stdout == "failure  reach  see the error\n"
    assert json.loads(run("doctor", "redis://localhost:1/0", "--json").output)["level"] == "failure"


@pytest.mark.parametrize("path", ["foo", "/var/lib/bot/sessions", "localhost:6379", "", "C:\\bot"])
def test_what_is_no_url_is_told_what_a_url_is(path: str) -> None:
    for verb in (("doctor",), ("sessions", "ls"), ("chat", "--store")):
        done = run(*verb, path)

        assert done.exit_code == 1
        assert "a URL" in done.stderr
        assert "<class" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_output_that_cannot_be_written_is_told_in_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        done = run_apart("doctor", "memory://", "--json", stdout=full.fileno())

    assert done.returncode == 1
    assert done.stderr == "Error: OSError: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("actorbot ", ["chat", "cluster", "doctor", "sessions"]),
        ("actorbot cluster ", ["drain", "run", "status"]),
        ("actorbot sessions ", ["copy", "edit", "export", "ls", "rm", "show"]),
    ],
)
def test_a_shell_can_complete_what_is_typed(words: str, completed: list[str]) -> None:
    env = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split())), "_ACTORBOT_COMPLETE": "bash_complete"}
    done = run_apart(env=os.environ | env)

    assert [line.partition(",")[2] for line in done.stdout.splitlines()] == completed
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    for shell in ("bash", "zsh", "fish"):
        assert f"_ACTORBOT_COMPLETE={shell}_source actorbot" in page
        source = run_apart(env=os.environ | {"_ACTORBOT_COMPLETE": f"{shell}_source"})
        assert "actorbot" in source.stdout or "Couldn't detect" in source.stderr


@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_what_a_store_of_somebody_else_raises_is_told_in_one_line(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(MemorySessionStore):
        url: str

        def scan(self) -> Any:
            raise kind(f"no answer from {self.url}")

    def make(url: str) -> Broken:
        Broken.url = url
        return Broken()

    serve(monkeypatch, make)
    done = run("sessions", "ls", f"plain://bot:{SECRET}@here")

    assert done.exit_code == 1
    assert done.stderr == f"Error: {kind.__name__}: no answer from plain://bot:…@here\n"


# --- chat ---------------------------------------------------------------------------------------


def test_the_first_page_s_dialogue_can_be_tried_on_any_store(tmp_path: Path) -> None:
    first = run_apart("chat", stdin="Hi\nTim\n")
    assert first.stdout == "You > Hi\nBot > Hi, what's your nickname?\nYou > Tim\nBot > Hello Tim\nYou > \n"
    assert (first.stderr, first.returncode) == ("", 0)

    url = f"file://{tmp_path}/sessions"
    run_apart("chat", "--store", url, stdin="Hi\nTim\n/quit\n")
    again = run_apart("chat", "--store", url, stdin="It rains\n")
    assert again.stdout == "You > It rains\nBot > That was message 3, Tim\nYou > \n"


# --- doctor -------------------------------------------------------------------------------------

LIFE = {"round trip": "ok", "write and read": "ok", "compare": "ok", "destroy": "ok"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_doctor_finds_a_good_redis_good_and_leaves_nothing_alive_in_it(kind: str, tmp_path: Path) -> None:
    with Server(kind, tmp_path) as server:
        findings = examine(server.url)
        keys = server.ask("KEYS", "*")
        assert isinstance(keys, list)
        store = RedisSessionStore(server.url).init()
        left = store.read_many([key.decode().removeprefix("actorbot:") for key in keys])
        store.close()

    same = ("reach", "version", "role", "persistence", "eviction", "memory", "clock", "owner")
    assert levels_of(findings) == dict.fromkeys(same, "ok") | LIFE
    assert f"127.0.0.1:{server.port}" in findings["reach"][1]
    assert ("Valkey" if kind == "valkey" else "Redis") in findings["version"][1]
    assert [record.state for record in left] == [None]  # the tombstone of the probe, for some minutes


@pytest.mark.parametrize(
    ("options", "what", "says"),
    [
        (["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"], "eviction", "set it to noeviction"),
        (["--appendonly", "no"], "persistence", "set appendonly to yes"),
        (["--maxmemory", "1kb"], "memory", "give it more"),
    ],
)
def test_the_doctor_warns_of_a_redis_that_may_lose_sessions(
    options: list[str], what: str, says: str, tmp_path: Path
) -> None:
    with Server(QUICK, tmp_path, *options) as server:
        done = run("doctor", server.url)
        findings = examine(server.url)

    assert findings[what][0] == "warning"
    assert says in findings[what][1]
    assert [line.split()[0] for line in done.stdout.splitlines() if says in line] == ["warning"]


def test_the_doctor_refuses_a_replica_and_names_its_primary(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with Server(QUICK, tmp_path / "a") as primary, Server(QUICK, tmp_path / "b") as replica:
        replica.ask("REPLICAOF", "127.0.0.1", primary.port)
        findings = examine(replica.url)

    assert findings["role"][0] == "failure"
    assert f"127.0.0.1:{primary.port}" in findings["role"][1]
    assert "destroy" not in findings


def test_the_doctor_says_what_it_was_not_allowed_to_ask(tmp_path: Path) -> None:
    rights = ["+eval", "+evalsha", "+script|load", "+mget", "+get", "+exists", "+set", "+getrange", "+time"]
    with Server(QUICK, tmp_path) as server:
        server.ask("ACL", "SETUSER", "bot", "on", f">{SECRET}", "~actorbot:*", *rights)
        findings = examine(f"redis://bot:{SECRET}@127.0.0.1:{server.port}/0")

    good = dict.fromkeys(("reach", "clock", "owner"), "ok") | LIFE
    assert levels_of(findings) == good | dict.fromkeys(("server", "rights"), "warning")
    assert "+info +config|get" in findings["server"][1]
    assert "+info +config|get +scan" in findings["rights"][1]


@pytest.mark.parametrize(
    ("ahead", "level"),
    [
        (0.0, "ok"),
        (4.9, "ok"),
        (-4.9, "ok"),
        (5.1, "warning"),
        (-5.1, "warning"),
        (-601.0, "warning"),
    ],
)
def test_a_clock_that_differs_is_told_of(ahead: float, level: str) -> None:
    found = judge_clock(ahead)

    assert found.level == level
    assert ("behind" if ahead < 0 else "ahead") in found.text
    assert ("NTP" in found.text) == (level != "ok")


@pytest.mark.parametrize("replica_set", tiers([False, True]))
def test_the_doctor_finds_a_good_mongodb_good(replica_set: bool, tmp_path: Path) -> None:
    server = mongo_servers.shared(replica_set)
    url = server.url + ("&" if "?" in server.url else "?") + f"database=actorbot_doctor_{os.getpid()}"
    store_from_url(url).init().close()
    findings = examine(url)

    same = ("reach", "version", "role", "persistence", "writes", "expiry", "clock", "owner")
    assert levels_of(findings) == dict.fromkeys(same, "ok") | LIFE
    assert ("rs0" if replica_set else "standalone") in findings["role"][1]
    assert f"127.0.0.1:{server.port}" in findings["reach"][1]


def test_the_doctor_warns_of_an_index_that_expires_nothing() -> None:
    server, database = mongo_servers.shared(), f"actorbot_doctor_index_{os.getpid()}"
    with server.client() as client:
        client[database].sessions.create_index("expireAt")
    findings = examine(f"{server.url}?database={database}")

    assert findings["expiry"][0] == "warning"


def test_the_doctor_looks_at_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    url = f"file://{folder}"
    before = examine(url)
    assert not folder.exists()
    folder.mkdir(0o700)
    second = examine(url)
    folder.chmod(0o755)
    open_to_all = examine(url)

    assert levels_of(before) == {"reach": "warning"}
    assert {*levels_of(second)} >= {"reach", "owner", "owner and mode", "space", "sync", *LIFE}
    assert second["reach"][0] == second["owner and mode"][0] == "ok"
    assert open_to_all["owner and mode"][0] == "warning"
    assert not [each.name for each in folder.iterdir() if each.suffix == ".tmp"]


def test_the_doctor_refuses_a_folder_that_a_bot_could_not_use(tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    with_bot = FileSessionStore(folder).init()
    locked = examine(f"file://{folder}")
    with_bot.close()
    folder.chmod(0o777)
    insecure = examine(f"file://{folder}")

    assert locked["owner"][0] == insecure["reach"][0] == "failure"
    assert f"process {os.getpid()} on " in locked["owner"][1]
    assert "chmod 700" in insecure["reach"][1]


def test_the_doctor_says_that_memory_keeps_nothing() -> None:
    assert levels_of(examine("memory://")) == {"persistence": "warning"} | LIFE


@pytest.mark.parametrize("driver", [DictStore, AsyncDictStore])
def test_the_doctor_tries_somebody_elses_driver_and_says_what_it_lacks(
    driver: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, lambda url: driver())
    findings = examine("plain://here")

    warnings = {"owner": "warning", "compare": "warning"}
    assert levels_of(findings) == {"reach": "ok", "optional methods": "ok"} | LIFE | warnings
    assert "has none of read_many" in findings["optional methods"][1]


@pytest.mark.parametrize("scheme", ["redis", "mongodb"])
def test_a_wrong_password_is_told_in_one_line_and_not_shown(scheme: str, tmp_path: Path) -> None:
    def look(port: int) -> Result:
        return run("doctor", f"{scheme}://bot:{SECRET}@127.0.0.1:{port}/")

    if scheme == "redis":
        with Server(QUICK, tmp_path, "--requirepass", "right") as server:
            done = look(server.port)
    else:
        with mongo_servers.server(password="right") as own:
            done = look(own.port)

    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "password" in done.stderr
    assert SECRET not in done.output
