"""The table of `actorbot sessions ls`.

It keeps its columns also with long ids, with wide characters and on a narrow terminal.
"""

from __future__ import annotations

import shutil
import sys

import click
from rich.cells import cell_len

from actorbot.cli._format import show_distance, show_id, show_when
from actorbot.stores import Record

__all__ = ["SessionTable"]

PAGE = 250  # sessions that are held back, so that their columns are as wide as they need
USUAL = 80  # cells
COMMON = 32  # cells for an id where there is room; most ids are shorter
HEADINGS = ("SESSION", "BYTES", "VERSION", "LAST ACTIVITY", "EXPIRES")
WIDE = " {:>9} {:>8}  {:<36} {}"
NARROW = " {:>7} {:>7}  {:<14}  {}"
WIDE_REST, NARROW_REST = 92, 47  # cells of the longest such lines


def _room() -> int:
    """Return how many cells a line has; 0 if there is no bound, as in a pipe.

    COLUMNS sets another, but none of 80 or more in a pipe: a program that uses GNU readline leaves
    its own width, or 80, to all that it starts.
    """
    columns = shutil.get_terminal_size((0, 0)).columns
    return columns if columns < USUAL or sys.stdout.isatty() else 0


class SessionTable:
    """Prints sessions, a page at a time. A million of them need no memory.

    On a terminal of at least 54 columns each line fits, if need be by leaving out the dates. An id
    for which there is no room has a line of its own. In a pipe each session has one line.
    """

    def __init__(self) -> None:
        self._page: list[Record] = []
        self._room = _room()
        self._is_wide = True
        self._width = 0  # cells for an id

    def add(self, record: Record) -> None:
        self._page.append(record)
        if len(self._page) == PAGE:
            self.flush()

    def flush(self) -> None:
        """Print what has been held back, and the headings if that is the first page."""
        ids = [show_id(record.session_id) for record in self._page]
        longest = max(map(cell_len, ids), default=0)
        if not self._width:
            self._is_wide = not self._room or longest + WIDE_REST <= self._room
            self._widen(longest)
            self._print(HEADINGS[0], *HEADINGS[1:])
        self._widen(longest)
        for session_id, record in zip(ids, self._page, strict=True):
            self._print(session_id, *self._facts(record))
        self._page.clear()

    def _widen(self, longest: int) -> None:
        rest = WIDE_REST if self._is_wide else NARROW_REST
        most = max(len(HEADINGS[0]), self._room - rest) if self._room else max(longest, COMMON)
        self._width = max(self._width, min(max(longest, COMMON), most))

    def _facts(self, record: Record) -> tuple[str, ...]:
        show = show_when if self._is_wide else show_distance
        ends = show(record.expires_at) if record.state is not None else "destroyed"
        return str(len(record.state or b"")), str(record.version), show(record.last_activity), ends

    def _print(self, session_id: str, *facts: str) -> None:
        if cell_len(session_id) > self._width:
            click.echo(session_id)
            session_id = ""
        padding = " " * (self._width - cell_len(session_id))
        click.echo(session_id + padding + (WIDE if self._is_wide else NARROW).format(*facts))
