"""What every test with a server gets."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def nobody_waits_for_a_young_server(young_servers_will_do: None) -> None:
    """See there; the tests of the lease itself wait."""
