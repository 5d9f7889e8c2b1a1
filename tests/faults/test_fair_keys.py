"""One key cannot starve another, on a real endpoint with one engine.

A single request keeps an engine and the front door busy on both cores of a small machine. A second engine there would only take
from the first, which no quota can give back; within one engine requests are decoded together.
"""

import time
from collections.abc import Callable, Iterator

import pytest

from tests.faults import greedy_clients
from tests.faults.fault_table import FaultRow
from tests.faults.guarded_endpoint import Endpoint, running_endpoint
from tests.faults.load import percentile

USUAL = {"model": "tiny", "prompt": "usual", "max_tokens": 64, "ignore_eos": True}
USUAL_SECONDS = 20.0

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def endpoint(no_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with running_endpoint(tmp_path_factory.mktemp("endpoint"), num_replicas=1) as endpoint:
        yield endpoint


def test_one_key_does_not_starve_another(endpoint: Endpoint, measured: Callable[[FaultRow], None]) -> None:
    """`second` has 32 connections that ask as fast as they can, eight times what one key may have in progress."""
    usual_latencies(endpoint, for_s=USUAL_SECONDS / 4)  # the first requests of an engine are slow
    alone = usual_latencies(endpoint, for_s=USUAL_SECONDS)
    greedy = greedy_clients.start(
        endpoint.served.base_url, endpoint.other_key, USUAL, num_connections=32, for_s=1.5 * USUAL_SECONDS
    )
    time.sleep(USUAL_SECONDS / 4)
    beside = usual_latencies(endpoint, for_s=USUAL_SECONDS)
    statuses = greedy_clients.statuses_of(greedy)
    ratio = percentile(beside, 0.95) / percentile(alone, 0.95)
    measured(
        FaultRow(
            row="S11",
            fault="one key with 32 connections beside another with one, one engine",
            num_injected=1,
            num_survived=int(ratio <= 2),
            measured=f"p95 of the other {percentile(alone, 0.95):.2f} s alone, {percentile(beside, 0.95):.2f} s beside "
            f"({ratio:.1f} times); the first got {statuses[200]} replies and {statuses[429]} times 429",
            bar="2 times",
            holds=ratio <= 2,
        )
    )
    assert statuses.keys() == {200, 429}
    assert len(beside) > 3


def usual_latencies(endpoint: Endpoint, *, for_s: float) -> list[float]:
    over, latencies = time.monotonic() + for_s, []
    while time.monotonic() < over:
        begun_s = time.monotonic()
        assert endpoint.client.post("/v1/completions", json=USUAL).status_code == 200
        latencies.append(time.monotonic() - begun_s)
    return latencies
