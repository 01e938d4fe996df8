"""What the tests of kills share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults._kills import ForkServer


@pytest.fixture(scope="package")
def server() -> Iterator[ForkServer]:
    """Where the bots come from that are killed."""
    one = ForkServer()
    try:
        yield one
    finally:
        one.close()
