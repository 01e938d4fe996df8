"""What the tests of clusters share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults._kills import ForkServer


@pytest.fixture(autouse=True)
def nobody_waits_for_a_young_server(young_servers_will_do: None) -> None:
    """See there; shards that are processes do the same."""


@pytest.fixture(scope="package")
def fork() -> Iterator[ForkServer]:
    """Where shards come from."""
    server = ForkServer("tests.cluster._shard")
    try:
        yield server
    finally:
        server.close()
