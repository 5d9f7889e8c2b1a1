"""The counters of keys in a real actor: exact for all who ask, replaced when lost, gone with the endpoint."""

import asyncio
import pickle
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from serving.api_errors import Refusal
from serving.config import KeyQuota
from serving.guard.keys.usage_actor import RemoteUsage, UsageServer, start_usage, stop_usage

QUOTA = KeyQuota(max_streams=2, tokens_per_minute=10)


@pytest.fixture
def usage(local_ray: None) -> Iterator[RemoteUsage]:
    start_usage(QUOTA, lease_s=60)
    yield pickle.loads(pickle.dumps(RemoteUsage()))  # as a front door gets it
    stop_usage()


def admitted(usage: RemoteUsage, *request_ids: str) -> list[bool]:
    async def ask() -> list[bool]:
        return [(await usage.admit("a", request_id)).is_admitted for request_id in request_ids]

    return asyncio.run(ask())


def test_front_doors_share_one_count(usage: RemoteUsage) -> None:
    other = RemoteUsage()
    assert admitted(usage, "x") + admitted(other, "y") + admitted(usage, "z") == [True, True, False]
    other.release("a", "x")
    assert admitted(other, "z") == [True]
    assert [asyncio.run(usage.spend("a", tokens)).is_admitted for tokens in (7, 4)] == [True, False]


def test_a_counter_that_is_lost_is_replaced(usage: RemoteUsage) -> None:
    assert admitted(usage, "x", "y", "z") == [True, True, False]
    children = psutil.Process().children(recursive=True)
    [process] = [child for child in children if UsageServer.__name__ in " ".join(child.cmdline())]
    process.kill()
    psutil.wait_procs([process])
    counts: list[bool] = []
    while not counts:
        with suppress(Refusal):
            counts = admitted(usage, "z")
    assert counts == [True]  # it counts from nothing


def test_an_endpoint_counts_from_nothing_and_leaves_no_counter(usage: RemoteUsage) -> None:
    assert admitted(usage, "x", "y") == [True, True]
    start_usage(QUOTA, lease_s=60)
    assert admitted(RemoteUsage(), "z") == [True]
    stop_usage()
    with pytest.raises(Refusal, match="cannot be counted"):
        admitted(RemoteUsage(), "w")
    stop_usage()  # there is none
