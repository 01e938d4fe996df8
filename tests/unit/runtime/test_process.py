"""Whether a process is still there, as another one can tell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actorbot._runtime import process
from actorbot._runtime.process import Process, is_gone, is_same, this_process
from tests.waiting import until_sync

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until its stdin is closed."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        yield child
        child.kill()


def described(child: subprocess.Popen[bytes]) -> Process:
    stat = Path(f"/proc/{child.pid}/stat").read_text()
    return replace(this_process(), pid=child.pid, started=stat.rpartition(")")[2].split()[19])


def test_a_process_says_who_it_is() -> None:
    me = this_process()

    assert me.pid == os.getpid()
    assert me.started.isdigit()
    assert me.namespace.startswith("pid:[")
    assert len(me.kernel) == 36
    assert str(me) == f"process {os.getpid()} on {me.host} ({me.program})"
    assert me == this_process()
    assert is_same(me, this_process())
    assert not is_gone(me)


def test_a_process_is_there_until_it_has_ended_also_if_nobody_has_asked_how(child: subprocess.Popen[bytes]) -> None:
    its = described(child)
    assert not is_gone(its)

    child.kill()
    until_sync(lambda: is_gone(its))  # a zombie: its parent has not waited for it
    assert Path(f"/proc/{child.pid}").exists()
    child.wait()
    assert is_gone(its)


def test_a_process_whose_id_was_given_to_another_is_gone(child: subprocess.Popen[bytes]) -> None:
    its = described(child)

    assert is_gone(replace(its, started=f"{int(its.started) - 1}"))
    assert not is_same(its, replace(its, started=f"{int(its.started) - 1}"))


@pytest.mark.parametrize("unknown", ["kernel", "namespace", "started"])
@pytest.mark.parametrize("value", ["", "another"])
def test_of_a_process_elsewhere_or_where_nobody_tells_nothing_is_known(unknown: str, value: str) -> None:
    never = replace(this_process(), pid=2**22 + 1)  # more than Linux counts
    assert is_gone(never)
    if (unknown, value) == ("started", "another"):
        return  # that is the id that was given again

    assert not is_gone(replace(never, **{unknown: value}))
    other = replace(this_process(), **{unknown: value})
    assert not is_same(other, other if value == "" else this_process())


def test_a_process_that_is_there_and_hidden_is_not_gone(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    its = described(child)
    beside = tmp_path / "self"
    beside.symlink_to(str(os.getpid()))
    real = tmp_path / str(os.getpid())
    real.symlink_to(f"/proc/{os.getpid()}")
    (tmp_path / "sys").symlink_to("/proc/sys")
    monkeypatch.setattr(process, "_PROC", tmp_path)  # as `hidepid` shows it: one's own alone
    assert this_process() == replace(its, pid=os.getpid(), started=this_process().started)
    assert not is_gone(its)

    def refuses(pid: int, signal: int) -> None:
        assert signal == 0
        raise PermissionError(f"{pid} is another user's")

    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", refuses)
        assert not is_gone(its)
    child.kill()
    child.wait()
    assert is_gone(its)


def test_where_the_system_tells_nothing_a_process_has_a_name_and_is_not_known_to_be_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(process, "_PROC", tmp_path / "nothing")
    me = this_process()

    assert (me.pid, me.started, me.namespace, me.kernel) == (os.getpid(), "", "", "")
    assert not is_gone(replace(me, pid=2**22 + 1))
    assert not is_same(me, me)  # two sandboxes may look the same


def test_a_proc_of_another_namespace_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    me = this_process()
    (tmp_path / "self").symlink_to("1")  # where this process has another number
    (tmp_path / "1").symlink_to(f"/proc/{os.getpid()}")
    (tmp_path / "sys").symlink_to("/proc/sys")
    monkeypatch.setattr(process, "_PROC", tmp_path)

    assert this_process().namespace == ""
    assert not is_gone(replace(me, pid=2**22 + 1))


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["/home/ann/bot.py"], "bot.py"),
        (["/opt/mybot/__main__.py", "--token", "secret"], "mybot"),
        (["-c"], "-c"),
        ([""], "python"),
        ([], "python"),
        (["/home/ann/b\udce9\x1b[2J\n.py"], "b??[2J?.py"),
        (["/" + "x" * 300], "x" * 100),
    ],
)
def test_a_program_is_named_without_its_folder_its_arguments_or_what_harms_a_terminal(
    argv: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)

    assert this_process().program == name
