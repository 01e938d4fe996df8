"""The lock of a folder or a journal."""

from __future__ import annotations

import os
from pathlib import Path

from actorbot._runtime.file_lock import FileLock


def test_a_lock_ends_with_its_release_though_a_new_child_still_has_the_file_open(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    lock = FileLock(path)
    lock.take()
    (file,) = [int(each.name) for each in Path("/proc/self/fd").iterdir() if _target(each) == path]
    left_open = os.dup(file)  # as a forked child has it, until it runs its first line

    lock.release()
    try:
        other = FileLock(path)
        other.take()
        other.release()
    finally:
        os.close(left_open)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""
