"""Integers beyond 64 bits."""

from __future__ import annotations

from typing import Any

import pytest

from actorbot import errors
from actorbot._state.codec import encode_state


@pytest.mark.parametrize("value", [2**63, [2**64 - 1], -(2**63) - 1])
def test_an_integer_beyond_64_bits_is_refused_by_every_way_through_the_check(value: Any) -> None:
    with pytest.raises(errors.NotEncodableError):
        encode_state({"n": value}, 1_000)
