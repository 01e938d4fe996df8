"""A disk that forgets what was not synced: what a program wrote, as `strace` saw it, and every
state that a power loss may leave of it.

The rules are those that file systems give: a write counts once its file was synced; until then any
of a file's writes may be there or not, each as a whole or torn at a sector. Names (of new, renamed
and removed files) count once their folder was synced, or, in their order, earlier.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

__all__ = ["Disk", "find_strace", "record", "states"]

CALLS = "openat,pwrite64,write,fsync,fdatasync,ftruncate,rename,renameat,renameat2,unlink,unlinkat"
LINE = re.compile(r"^\d+ +(\w+)\((.*)\) = (-?\d+)")
QUOTED = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
ON_FILE = re.compile(r"^\d+<((?:\\x[0-9a-f]{2})*)>")
SECTOR = 512


@dataclass(frozen=True, slots=True)
class Step:
    """One call: *name* is a file's in the folder, "" the folder itself."""

    call: str
    name: str
    offset: int = 0
    data: bytes = b""
    to: str = ""


def find_strace() -> str:
    """Return the path of `strace`; without one the test is skipped, and under `CI` it fails."""
    strace = shutil.which("strace")
    if strace is None:
        if os.environ.get("CI"):
            pytest.fail("no strace: apt-get install strace")
        pytest.skip("no strace: apt-get install strace")
    return strace


def record(program: str, folder: Path) -> list[Step]:
    """Run *program* in *folder* until it kills itself; return its calls, and what it printed as
    calls "said".
    """
    strace = find_strace()
    log = folder.with_name(f"{folder.name}.log")
    subprocess.run(
        [strace, "-f", "-xx", "-y", "-s", "1000000", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", log,
         sys.executable, "-c", program],
        cwd=folder, check=False, stdout=subprocess.DEVNULL, timeout=50,
    )  # fmt: skip
    steps: list[Step] = []
    for line in log.read_text().splitlines():
        matched = LINE.match(line)
        if matched and int(matched[3]) >= 0 and (step := _step(matched[1], matched[2], str(folder))):
            steps.append(step)
    return steps


def _step(call: str, args: str, folder: str) -> Step | None:
    texts = [_bytes(text) for text in QUOTED.findall(args)]
    on_file = ON_FILE.match(args)
    path = _bytes(on_file[1]).decode() if on_file else ""
    if call == "write" and args.startswith("1<"):
        return Step("said", "", data=texts[0])
    if on_file and call in ("write", "pwrite64", "fsync", "fdatasync", "ftruncate"):
        if folder not in (path, str(Path(path).parent)):
            return None
        name = "" if path == folder else Path(path).name
        if call == "write":
            return Step("append", name, data=texts[0])
        if call == "pwrite64":
            return Step("write", name, int(args.rsplit(", ", 1)[1]), texts[0])
        if call == "ftruncate":
            return Step("truncate", name, int(args.rsplit(", ", 1)[1]))
        return Step("sync", name)
    if call not in ("openat", "unlink", "unlinkat", "rename", "renameat", "renameat2"):
        return None
    names = [Path(text.decode()).name for text in texts if _is_in(text.decode(), args, folder)]
    if call == "openat":
        return Step("open", names[0]) if names and "O_CREAT" in args else None
    if call in ("unlink", "unlinkat"):
        return Step("remove", names[0]) if names else None
    return Step("rename", names[0], to=names[1]) if len(names) == 2 else None


def _is_in(path: str, args: str, folder: str) -> bool:
    if path.startswith("/"):
        return str(Path(path).parent) == folder
    return "/" not in path and _bytes("".join(re.findall(r"<((?:\\x[0-9a-f]{2})*)>", args)[:1])).decode() == folder


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


@dataclass(slots=True, eq=False)
class File:
    """An inode: what was synced of it, and what came since."""

    synced: bytes = b""
    pending: list[Step] = field(default_factory=list)
    size: int = 0  # as the program sees it

    def settle(self) -> None:
        self.synced, self.pending = apply(self.synced, self.pending), []


def apply(content: bytes, steps: list[Step]) -> bytes:
    data = bytearray(content)
    for step in steps:
        if step.call == "truncate":
            data = data[: step.offset].ljust(step.offset, b"\0")
        else:
            data.extend(bytes(max(0, step.offset - len(data))))
            data[step.offset : step.offset + len(step.data)] = step.data
    return bytes(data)


class Disk:
    """A folder, step by step."""

    def __init__(self) -> None:
        self.names: dict[str, File] = {}  # as the program sees them
        self.synced: dict[str, File] = {}
        self.pending: list[dict[str, File]] = []  # what the folder was after each change since
        self.said = b""

    def take(self, step: Step) -> None:
        match step.call:
            case "said":
                self.said += step.data
            case "open" if step.name not in self.names:
                self._name({**self.names, step.name: File()})
            case "remove" if step.name in self.names:
                self._name({name: file for name, file in self.names.items() if name != step.name})
            case "rename":
                rest = {name: file for name, file in self.names.items() if name != step.name}
                self._name(rest | {step.to: self.names[step.name]})
            case "append" | "write" | "truncate":
                file = self.names[step.name]
                at = file.size if step.call == "append" else step.offset
                file.pending.append(Step("truncate" if step.call == "truncate" else "write", "", at, step.data))
                file.size = at if step.call == "truncate" else max(file.size, at + len(step.data))
            case "sync" if step.name:
                self.names[step.name].settle()
            case "sync":
                self.synced, self.pending = self.names, []

    def _name(self, names: dict[str, File]) -> None:
        self.names = names
        self.pending.append(names)

    def crash(self, random: Random) -> dict[str, bytes]:
        """Draw what a power loss leaves."""
        folder = random.choice([self.synced, *self.pending])
        lucky = random.choice((0.0, 0.5, 0.9, 1.0))
        return {name: _survive(file, lucky, random) for name, file in folder.items()}


def _survive(file: File, lucky: float, random: Random) -> bytes:
    kept = []
    for step in file.pending:
        if random.random() < lucky:
            kept.append(step)
        elif random.random() < 0.3 and len(step.data) > SECTOR:  # torn: some of its sectors
            cut = random.randrange(0, len(step.data), SECTOR)
            part = step.data[cut:] if random.random() < 0.5 else step.data[:cut]
            offset = step.offset + (cut if part == step.data[cut:] else 0)
            kept.append(Step(step.call, "", offset, part))
    return apply(file.synced, kept)


def states(steps: list[Step], number: int, seed: int) -> Iterator[tuple[dict[str, bytes], bytes]]:
    """Yield *number* states that a power loss may leave, at instants all over the run, each with
    what had been said by then.
    """
    random = Random(seed)
    instants = sorted(random.randrange(len(steps) + 1) for _ in range(number))
    disk, at = Disk(), 0
    for instant in instants:
        while at < instant:
            disk.take(steps[at])
            at += 1
        yield disk.crash(random), disk.said
