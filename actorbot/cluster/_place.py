"""Where the server is that has a cluster's keys, and takes writes.

A URL names it; or Sentinels, who know it; or some node of a Redis Cluster, which knows who has the
keys. The answer may be another one after each loss, so it is asked before each connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from actorbot.cluster._wire import LostError, RefusedError, Wire, connect
from actorbot.errors import ConfigError
from actorbot.stores._redis_address import Address, key_slot
from actorbot.stores._secrets import ENCODED, hosts_of

__all__ = ["NowhereError", "Place"]

_SENTINELS: Final = "redis+sentinel://[[user:]password@]host[:26379][,host…]/name-of-the-primary[/database]"
_PORT: Final = 26379
_FULL: Final = "max number of clients"  # what a server says before it closes the connection


class NowhereError(Exception):
    """Nobody says where the server is."""


class Place:
    """What the URL of a cluster leads to."""

    def __init__(self, url: str, key: bytes) -> None:
        """*key* is one of the cluster's. Raises: ConfigError."""
        self._slot = key_slot(key)
        self._service = ""
        given: object = url
        scheme = given.partition("://")[0].lower() if isinstance(given, str) else ""
        if scheme.endswith("+sentinel"):
            self._address, self._sentinels, self._service = _sentinels(url, scheme.removesuffix("+sentinel"))
        else:
            self._address, self._sentinels = Address.of(url), []
        self._nodes: list[Address] = [self._address]  # of a Redis Cluster, the one of the URL first
        self._moved: Address | None = None

    @property
    def where(self) -> str:
        """What a message calls it."""
        if self._service:
            return f"{self._service} of the Sentinels {', '.join(map(str, self._sentinels))}"
        return str(self._address)

    def moved(self, to: str) -> None:
        """Note that the server has named *to*, `host:port`, as the one that has the keys."""
        host, _, port = to.rpartition(":")
        if port.isdecimal():
            self._moved = self._address.at(host or self._address.host, int(port))

    async def connect(self) -> tuple[Wire, str]:
        """Connect to it; return the connection, and what a message calls the other end.

        Raises: OSError, RefusedError, LostError, NowhereError.
        """
        moved, self._moved = self._moved, None
        if moved is not None:
            return await connect(moved), str(moved)
        if self._service:
            address = await self._ask_sentinels()
            return await connect(address), str(address)
        failure: Exception | None = None
        for node in list(self._nodes):
            try:
                return await self._connect_by(node)
            except (OSError, RefusedError, LostError) as error:
                failure = failure or error
        assert failure is not None
        raise failure

    async def _connect_by(self, node: Address) -> tuple[Wire, str]:
        """Connect to *node*, or to whom it names in a Redis Cluster."""
        wire = await connect(node)
        try:
            ranges = await wire.call("CLUSTER", "SLOTS")
        except BaseException:
            wire.close()
            raise
        if isinstance(ranges, LostError) or _FULL in str(ranges):
            wire.close()
            raise ranges
        if not isinstance(ranges, list):  # no cluster, or a user who may not ask
            return wire, str(node)
        nodes = [self._named(each, node) for _, _, *those in ranges for each in those]
        self._nodes = list(dict.fromkeys([self._address, *nodes]))
        for first, last, primary, *_ in ranges:
            if first <= self._slot <= last:
                address = self._named(primary, node)
                if address == node:
                    return wire, str(node)
                wire.close()
                return await connect(address), str(address)
        wire.close()
        raise NowhereError(f"no node of the Redis Cluster at {node} has hash slot {self._slot}")

    def _named(self, told: list[Any], by: Address) -> Address:
        return by.at((told[0] or b"").decode() or by.host, int(told[1]))

    async def _ask_sentinels(self) -> Address:
        said = []
        for sentinel in list(self._sentinels):
            try:
                async with asyncio.timeout(sentinel.connect_timeout):
                    wire = await connect(sentinel)
                    try:
                        found = await wire.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
                    finally:
                        wire.close()
            except TimeoutError:
                said.append(f"{sentinel}: no answer within {sentinel.connect_timeout:g} s")
                continue
            except (OSError, RefusedError, LostError) as error:
                said.append(f"{sentinel}: {error}")
                continue
            if isinstance(found, list) and len(found) == 2:
                self._sentinels.remove(sentinel)  # who answers is asked first the next time
                self._sentinels.insert(0, sentinel)
                return self._address.at(found[0].decode(), int(found[1]))
            said.append(f"{sentinel}: {'knows no primary of this name' if found is None else found}")
        raise NowhereError("; ".join(said))


def _sentinels(url: str, scheme: str) -> tuple[Address, list[Address], str]:
    """Return the primary's address but for its host, those of the Sentinels, and its name."""
    hosts = hosts_of(url)
    if hosts is None:
        raise ConfigError("url", f"{scheme}+sentinel://…", ENCODED)
    parts = urlsplit(url)
    service, _, database = parts.path.strip("/").partition("/")
    named = [_host_and_port(each) for each in hosts.split(",") if each]
    if scheme not in {"redis", "rediss"} or not service or not named or not all(port for _, port in named):
        raise ConfigError("url", f"{scheme}+sentinel://…", _SENTINELS)
    options = dict(parse_qsl(parts.query))
    user, password = options.pop("sentinel_username", ""), options.pop("sentinel_password", "")
    info = parts.netloc.rpartition("@")[0]
    query = "?" + urlencode(options) if options else ""
    address = Address.of(f"{scheme}://{info}{'@' if info else ''}localhost/{database}{query}")
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
    of_sentinel = Address.of(f"{scheme}://{login}localhost{query}")
    return address, [of_sentinel.at(host, port) for host, port in named], unquote(service)


def _host_and_port(text: str) -> Sequence[Any]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return text.strip("[]"), _PORT
    return host.strip("[]"), int(port) if port.isdecimal() else 0
