"""The secrets of a store's URL: its password, and what else of it nobody may see.

A password that holds `/`, `?` or `#` cuts the URL in two, and what is left of it looks like a host.
So a URL with an `@` behind its host is refused before anybody connects to that or names it.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote, unquote_plus

__all__ = ["ENCODED", "GIVEN", "Secrets", "has_secret_option", "hosts_of"]

ENCODED: Final = (
    "a URL whose user and password are percent-encoded, as by urllib.parse.quote(text, safe=''),"
    " and with no other '@' than the one in front of the host"
)
"""What a URL is expected to be that may show a part of its password."""

LEAST: Final = 3  # characters; to hide less would garble a text, and tell what was hidden

_END_OF_HOSTS: Final = re.compile(r"[/?#]")
_SECRET_OPTION: Final = re.compile(r"pass|pwd|secret|token|credential|properties|api_?key", re.IGNORECASE)
_OPTION: Final = re.compile("[A-Za-z_]+")


def hosts_of(url: str, *, ends: str = "/?#") -> str | None:
    """Return what *url* has between user and path; `None` if that may be a part of a password.

    *ends* are the characters that end it for the driver.
    """
    rest = url.partition("://")[2]
    authority = re.split(f"[{ends}]", rest, maxsplit=1)[0]
    if not rest.startswith("/") and "@" in rest[len(authority) :]:  # else it is a path
        return None
    return authority.rpartition("@")[2]


def has_secret_option(url: str) -> bool:
    """Tell whether the query holds a secret: then what looks like an option may be a part of it."""
    return bool(_SECRET_OPTION.search(url.partition("?")[2]))


class Secrets:
    """What must not be shown of *url*, which may be no URL at all."""

    def __init__(self, url: str) -> None:
        words = {form for word in _words(url) for form in (word, unquote(word), unquote_plus(word))}
        words |= {repr(word)[1:-1] for word in words}
        self._words = {word for word in words if len(word) >= LEAST}

    def add(self, other: Secrets) -> None:
        self._words = self._words | other._words

    def hide(self, text: str) -> str:
        """Return *text* without the secrets. Two of them may overlap."""
        kept, after = [], 0
        found = (match.span(1) for word in self._words for match in re.finditer(f"(?=({re.escape(word)}))", text))
        for begin, end in sorted(found):
            if begin >= after:
                kept += [text[after:begin], "…"]
            after = max(after, end)
        return "".join([*kept, text[after:]])

    def show_in(self, error: BaseException | None) -> bool:
        """Tell whether a traceback of *error*, or of what led to it, would show a secret."""
        while error is not None:
            if any(word in f"{error} {error!r}" for word in self._words):
                return True
            error = error.__cause__ or error.__context__
        return False

    def tell(self, error: BaseException) -> tuple[str, BaseException | None]:
        """Return *error* in words, and what may be the `__cause__` of ours: both show no secret."""
        return self.hide(f"{type(error).__name__}: {error}"), None if self.show_in(error) else error


def _words(url: str) -> set[str]:
    rest = url.partition("://")[2] if "://" in url else url
    words: set[str] = set()
    begun = False
    pairs = rest.partition("?")[2].split("&")
    for number, pair in enumerate(pairs):
        name, _, value = pair.partition("=")
        if _SECRET_OPTION.search(name):
            begun = True
            words |= {value, *re.split("[#;:,]", value), "&".join([value, *pairs[number + 1 :]])}
        elif begun and not _OPTION.fullmatch(name):  # what a password has behind its own `&`
            words |= {pair, *re.split("[#;:,=]", pair)}
    if rest.startswith("/"):  # no host and no user: a path
        return words
    info, at, _ = rest.rpartition("@")
    user, _, password = (info if at else _END_OF_HOSTS.split(rest)[0]).partition(":")
    secret = password or user
    if not at and (not password or password.isdecimal()):  # a host, perhaps with its port
        return words
    words.add(secret)
    if _END_OF_HOSTS.search(secret):  # a driver may take each part for something else
        words.update(re.split(r"[/?#@:&=\s]", secret))
    return words


GIVEN: Final = Secrets("")
"""Those of all URLs that went to other packages: their drivers' errors may quote them."""
