"""What a MongoDB URL says besides its hosts: the database, and how long to wait for what."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

from actorbot.errors import ConfigError

__all__ = ["DATABASE", "check_names", "database_of", "times_of"]

logger = logging.getLogger("actorbot")

DATABASE: Final = "actorbot"
"""The database of who names none."""

# In a URL, these say where its user is known. Sessions have no place there.
_OF_THE_SERVER: Final = frozenset({"admin", "config", "local"})


def database_of(url: str) -> str:
    """Return the database that the path of *url* names, a URL that was checked before.

    Raises: ConfigError.
    """
    scheme, _, rest = url.partition("://")
    name = unquote(rest.partition("?")[0].partition("/")[2])
    if not name or name in _OF_THE_SERVER:
        return DATABASE
    if re.search(r'[ ."$/\\\0]', name):
        expected = "a database behind the host, without a collection: collection_name= says that"
        raise ConfigError("url", f"{scheme}://…", expected)
    return name


def check_names(database: str | None, collection_name: str) -> None:
    """Raises: ConfigError."""
    if database is not None:
        _check_name("database", database, ' ."$/\\\0')
    _check_name("collection_name", collection_name, "$\0")
    if collection_name.startswith((".", "system.")) or collection_name.endswith("."):
        raise ConfigError("collection_name", collection_name, "no dot at its ends, and not `system.`")


def _check_name(field: str, name: object, forbidden: str) -> None:
    if not isinstance(name, str) or not name or set(name) & set(forbidden):
        raise ConfigError(field, name, f"text without any of {forbidden!r}")


def times_of(url: str, longest: Mapping[str, float]) -> dict[str, int]:
    """Return the milliseconds that *url* gives for options among *longest*, which has seconds.

    A longer time is cut short, and warned of. 0, which is no bound, is left out.
    """
    times, cut = {}, []
    names = {name.lower(): name for name in longest}
    for pair in re.split("[&;]", url.partition("?")[2]):
        option, _, text = pair.partition("=")
        name = names.get(option.lower())
        if name is None or not text.isdecimal() or not int(text):
            continue
        times[name] = min(int(text), round(longest[name] * 1000))
        if times[name] < int(text):
            cut.append(f"{name}={int(text)} (it is {times[name]})")
    if cut:
        logger.warning("mongo: the URL asks for more than the time of a call allows: %s", ", ".join(cut))
    return times
