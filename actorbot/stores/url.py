"""A store by its URL, as in a configuration file, an environment variable or a command."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, unquote_plus

from actorbot.errors import ConfigError, StoreUnavailableError
from actorbot.stores._secrets import GIVEN, Secrets, has_secret_option, hosts_of

__all__ = ["store_from_url"]

ENTRY_POINTS: Final = "actorbot.stores"
"""The group of entry points for other schemes: each has a scheme's name, and takes the URL."""

_SCHEME: Final = re.compile("[A-Za-z][A-Za-z0-9+.-]*")
_NAME: Final = re.compile("[A-Za-z_]+")


class _Kind(NamedTuple):
    module: str  # imported when it is wanted: it may need a driver
    name: str
    options: Mapping[str, Callable[[str], Any]]
    takes_url: bool


_MEMORY: Final = _Kind("memory", "MemorySessionStore", {"max_sessions": int, "expires_in": float}, False)
_FILE: Final = _Kind("file", "FileSessionStore", {"expires_in": float}, False)
_REDIS: Final = _Kind("redis", "RedisSessionStore", {"key_prefix": str, "expires_in": float}, True)
_MONGO: Final = _Kind(
    "mongo", "MongoSessionStore", {"database": str, "collection_name": str, "expires_in": float}, True
)
_KINDS: Final = {
    "memory": _MEMORY,
    "file": _FILE,
    **dict.fromkeys(("redis", "rediss", "unix"), _REDIS),
    **dict.fromkeys(("mongodb", "mongodb+srv"), _MONGO),
}


def store_from_url(url: str) -> Any:
    """Make the store that *url* names; nothing is connected yet.

    It is `memory://`, `file:///a/folder` (or `file://folder`, relative, or `file://~/folder`),
    `redis://…`, `rediss://…`, `unix://…`, `mongodb://…` or `mongodb+srv://…`. Options of the
    store's constructor go into its query: `redis://localhost/0?key_prefix=mybot:&expires_in=3600`.
    The rest of the query is the driver's. For other schemes there are entry points of the group
    `actorbot.stores`.

    Raises: ConfigError, which quotes no more of the URL than its scheme; ImportError if the store's
    driver is not installed.
    """
    given: object = url
    if not isinstance(given, str):
        raise ConfigError("url", type(given), "text such as 'redis://localhost:6379/0'")
    scheme, colon, behind = given.partition(":")
    if not colon or not _SCHEME.fullmatch(scheme):
        raise ConfigError("url", "…", "a URL such as 'redis://localhost:6379/0'; a folder is file:///path/of/folder")
    scheme = scheme.lower()
    kind = _KINDS.get(scheme)
    if kind is None:
        return _from_entry_point(scheme if behind.startswith("//") else "…", url)
    rest, options = _take_options(url, kind.options)
    store = getattr(import_module(f"actorbot.stores.{kind.module}"), kind.name)
    known, found = ", ".join(kind.options), _names_in(rest)
    if kind.takes_url:
        try:
            return store(rest, **options)
        except ConfigError as error:
            if error.field != "url" or not found:
                raise
            expected = f"{error.expected}. The options of such a URL are {known}, and the driver's; found {found}"
            raise ConfigError("url", error.value, expected) from None
    place, end, _ = rest.partition(":")[2].removeprefix("//").partition("?")
    host, slash, path = place.partition("/")
    if kind is _FILE and set("@:") & set(host):  # it would be the name of a folder
        raise ConfigError("url", scheme, "file:///path/of/folder, without a host, a user or a password")
    if end or "#" in place:
        raise ConfigError("url", scheme, f"no options but {known}{found and f'; found {found}'}")
    if kind is _FILE:
        place = slash + path if host.lower() == "localhost" and slash else place  # RFC 8089: this machine
        return store(*[unquote(place)] if place else [], **options)
    if place:
        raise ConfigError("url", scheme, "nothing after memory:// but options")
    return store(**options)


def _take_options(url: str, known: Mapping[str, Callable[[str], Any]]) -> tuple[str, dict[str, Any]]:
    """Return *url* without the *known* options, and those. The driver's stay as they are."""
    front, question, query = url.partition("?")
    options: dict[str, Any] = {}
    left = []
    for pair in query.split("&") if question else ():
        name, _, text = pair.partition("=")
        if name not in known:
            left.append(pair)
            continue
        if name in options:
            raise ConfigError(name, _shown(text), "no second value")
        try:
            options[name] = known[name](unquote_plus(text))
        except ValueError:
            raise ConfigError(name, _shown(text), f"a value of type {known[name].__name__}") from None
    return f"{front}?{'&'.join(left)}" if any(left) else front, options


def _names_in(url: str) -> str:
    """List the names of the options in *url*; none if they may be parts of a password."""
    query = url.partition("?")[2]
    if hosts_of(url) is None or "@" in query or has_secret_option(url):
        return ""
    return ", ".join(filter(_NAME.fullmatch, (pair.partition("=")[0] for pair in query.split("&"))))


def _shown(text: str) -> str:
    """Return an option's value for an error; a password may have been taken for one."""
    return "…" if "@" in text else unquote_plus(text)


def _from_entry_point(scheme: str, url: str) -> Any:
    found = entry_points(group=ENTRY_POINTS, name=scheme)
    if not found:
        others = sorted({*_KINDS, *entry_points(group=ENTRY_POINTS).names})
        raise ConfigError("url", scheme, f"a URL that begins with one of {', '.join(others)}")
    make = next(iter(found)).load()
    secrets = Secrets(url)
    GIVEN.add(secrets)
    try:
        return make(url)
    except Exception as error:
        said, cause = secrets.tell(error)
        if cause is not None:
            raise
    raise StoreUnavailableError(scheme, f"its store cannot be made: {said}")
