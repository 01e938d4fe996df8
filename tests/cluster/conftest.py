"""What the tests of clusters share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults._kills import ForkServer


@pytest.fixture(scope="package")
def fork() -> Iterator[ForkServer]:
    """Where shards come from."""
    server = ForkServer("tests.cluster._shard")
    try:
        yield server
    finally:
        server.close()
