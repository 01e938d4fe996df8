"""What the tests of kills and of owners share."""

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


@pytest.fixture(scope="package")
def owners() -> Iterator[ForkServer]:
    """Where the bots come from that want to own a store."""
    one = ForkServer("tests.faults._owner")
    try:
        yield one
    finally:
        one.close()
