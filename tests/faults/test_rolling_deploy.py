"""Rolling deploys of the webhook example under load, to a platform that posts each event again
until it is taken: every user's count is exact.

`python -m benchmarks deploy` measures for how long nobody answers.
"""

from __future__ import annotations

import argparse
import asyncio

import pytest

from benchmarks.deploy import measure
from tests.faults._scale import scaled
from tests.servers import mongo_servers, redis_servers
from tests.tiers import tiers


@pytest.mark.timeout(scaled(180, 900))
@pytest.mark.parametrize("store", ["redis", pytest.param("mongo", marks=pytest.mark.long)])
@pytest.mark.parametrize(("deploys", "rate"), tiers([(1, 50), (10, 300)]))
def test_no_deploy_loses_an_event_or_counts_one_twice(store: str, deploys: int, rate: int) -> None:
    url = (redis_servers if store == "redis" else mongo_servers).shared().url
    asked = argparse.Namespace(store=store, url=url, users=100, rate=rate, deploys=deploys, around=0.2)

    found, platform, wrong = asyncio.run(measure(asked, lambda _: None))

    print([round(each.gap, 3) for each in found], platform.sent.total(), platform.again)
    assert len(found) == deploys
    assert wrong == {}
    assert len(platform.late) == platform.sent.total() > 0
