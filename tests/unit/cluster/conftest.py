"""What tests of the log get."""

from __future__ import annotations

import pytest

from actorbot.cluster import _redis_log
from tests.servers.redis_servers import KINDS, Server, shared


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> Server:
    """Each kind of server in turn, which other tests use too."""
    return shared(request.param)


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a reader for whom there is nothing return soon."""
    monkeypatch.setattr(_redis_log, "WAIT", 0.02)
