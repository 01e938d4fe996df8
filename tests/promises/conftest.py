"""What every test of a promise gets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.programs import started
from tests.waiting import HANGS


@pytest.fixture(autouse=True)
def no_process_stays_behind() -> Iterator[None]:
    """End what a test has started and not waited for."""
    yield
    while started:
        process = started.pop()
        process.kill()
        process.wait(HANGS)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
