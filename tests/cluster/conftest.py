"""What the tests of clusters share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults._kills import ForkServer
from tests.faults._scale import TORTURE

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave one `long` case of each test here; all of them are for `make torture`.

    Each takes seconds, since leases run out in it, and there are 170.
    """
    if TORTURE:
        return
    seen: set[tuple[Path, str, str]] = set()
    left_out = []
    for item in items:
        if FOLDER in item.path.parents and item.get_closest_marker("long") is not None:
            call = getattr(item, "callspec", None)
            without = "" if call is None else call.params.get("without", "")  # which fence is taken out
            name = item.path, getattr(item, "originalname", item.name), without
            if name in seen:
                left_out.append(item)
            seen.add(name)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


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
