"""A console bot on a terminal: lines can be edited, and the terminal is left as it was."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.promises.test_close_of_processes import ended, wait_for

BOT = "from tests.unit.bot.test_bot import console; console().run()"
UP = b"\x1b[A"  # the arrow key


@pytest.mark.parametrize("leave", [b"/quit\n", b"\x04", signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_line_can_be_edited_and_the_terminal_is_left_as_it_was(leave: bytes | signal.Signals) -> None:
    pytest.importorskip("readline")
    console, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", BOT], stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
            cwd=Path(__file__).parents[3], env=os.environ | {"TERM": "xterm"},
        )  # fmt: skip
        wait_for(console, b"You > ")
        os.write(console, b"Hello\n")
        wait_for(console, b"Bot > Hello\r\nYou > ")
        os.write(console, UP + b" again\n")
        wait_for(console, b"Bot > Hello again\r\nYou > ")
        if isinstance(leave, bytes):
            os.write(console, leave)
        else:
            process.send_signal(leave)
        assert ended(process) == 0
        assert termios.tcgetattr(terminal) == before
    finally:
        os.close(console)
        os.close(terminal)


def test_where_the_input_is_no_terminal_the_output_is_the_dialogue() -> None:
    """No prompt stands in front of a reply, so that a program can read the replies line by line."""
    done = subprocess.run(
        [sys.executable, "-c", BOT], input="Hi\n\n/quit\n", capture_output=True, text=True, timeout=30, check=True,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip

    assert done.stdout.splitlines() == ["You > Hi", "Bot > Hi", "You > ", "Bot > ", "You > /quit"]
