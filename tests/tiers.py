"""Which cases of a test `make test` runs, and which it leaves to `make test-all`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def tiers(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """Make the parameters of a test:

    *quick* are its cases in `make test`, by default the first; the others are `long`.
    """
    cases = list(cases)
    quick = quick or (cases[0],)
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if case in quick else pytest.mark.long)
        for case in cases
    ]
