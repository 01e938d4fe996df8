"""How a URL is written, before a driver reads it."""

from __future__ import annotations

from os.path import expanduser
from urllib.parse import quote

__all__ = ["as_drivers_write"]

_HOME = "unix://~/"


def as_drivers_write(url: str) -> str:
    """Return *url* with its scheme in lower case, and the user's folder for the `~` of a socket.

    RFC 3986 has schemes in any case; drivers know theirs in lower case only.
    """
    given: object = url
    if not isinstance(given, str) or "://" not in url:
        return url
    scheme, _, rest = url.partition("://")
    url = f"{scheme.lower()}://{rest}"
    if not url.startswith(_HOME):
        return url
    return f"unix://{quote(expanduser('~'))}/{url[len(_HOME) :]}"  # noqa: PTH111  # an unknown home stays `~`
