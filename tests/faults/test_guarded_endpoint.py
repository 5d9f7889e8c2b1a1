"""The security table on a real endpoint: two replicas of the tiny model behind keys, another's application beside them."""

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from ray import serve

from tests.faults.fault_table import FaultRow
from tests.faults.guarded_endpoint import GOOD, Endpoint, running_endpoint
from tests.serving.odd_requests import OddRequest, odd_requests

ANSWER_WITHIN_S = 20.0  # of an odd request; a good one of two tokens takes some hundredths of it
MAX_GROWTH_MIB = 50.0
LONG = {"model": "tiny", "prompt": "long", "max_tokens": 100, "n": 8, "ignore_eos": True}
BUSY_S = 0.03  # of processor time; an idle engine uses less while a request is on its way

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def endpoint(no_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with running_endpoint(tmp_path_factory.mktemp("endpoint"), num_replicas=2) as endpoint:
        yield endpoint


def test_odd_requests_get_one_form_and_hurt_nothing(endpoint: Endpoint, measured: Callable[[FaultRow], None]) -> None:
    assert endpoint.good_is_answered()
    before_mib, statuses, slowest_s = endpoint.door_mib(), [], [0.0]
    wrong: list[str] = []
    client = endpoint.client_of(endpoint.key, timeout_s=ANSWER_WITHIN_S)

    @settings(max_examples=250, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(odd=odd_requests())
    def send(odd: OddRequest) -> None:
        begun_s = time.monotonic()
        try:
            reply = client.request(odd.method, odd.path, headers=odd.headers, content=odd.content)
        except httpx.HTTPError as error:
            wrong.append(f"{type(error).__name__}: {odd}")
            return
        slowest_s[0] = max(slowest_s[0], time.monotonic() - begun_s)
        statuses.append(reply.status_code)
        is_whole = (
            reply.headers.get_list("X-Request-ID")[0].startswith("req_") and len(reply.headers.get_list("X-Request-ID")) == 1
        )
        has_form = reply.status_code == 200 or list(reply.json()["error"]) == ["message", "type", "param", "code"]
        if reply.status_code >= 500 or not is_whole or not has_form:
            wrong.append(f"{reply.status_code} {reply.text[:300]}: {odd}")

    send()
    grown_mib = endpoint.door_mib() - before_mib
    holds = not wrong and grown_mib <= MAX_GROWTH_MIB and endpoint.good_is_answered() and len(endpoint.engines()) == 2
    measured(
        FaultRow(
            row="S15",
            fault="odd requests of hypothesis' making, by HTTP, two replicas",
            num_injected=len(statuses),
            num_survived=len(statuses) - len(wrong),
            measured=f"{sum(status >= 500 for status in statuses)} of 5xx, slowest {slowest_s[0]:.1f} s, {grown_mib:+.0f} MiB",
            bar=f"0; {ANSWER_WITHIN_S:.0f} s; +{MAX_GROWTH_MIB:.0f} MiB; both engines live, the next good request 200",
            holds=holds,
        )
    )
    assert not wrong
    assert holds


def test_bodies_and_headers_beyond_the_limits(endpoint: Endpoint, measured: Callable[[FaultRow], None]) -> None:
    before_mib = endpoint.door_mib()
    mebibyte = b"x" * 2**20
    sent = {
        "one body of 64 MiB, announced": {"content": mebibyte * 64},
        "one body of 64 MiB, in chunks": {"content": (piece for piece in itertools.repeat(mebibyte, 64))},
        "headers of 32 KiB": {"json": GOOD, "headers": {"X-Long": "x" * 2**15}},
        "compressed": {"json": GOOD, "headers": {"Content-Encoding": "gzip"}},
        "not JSON": {"content": "a=b", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        "another's timeout": {"json": {**GOOD, "n": 9}, "headers": {"X-Request-Timeout-Seconds": "-1"}},
    }
    statuses: dict[str, int] = {}
    slowest_s = 0.0
    for name, request in sent.items():
        begun_s = time.monotonic()
        try:
            statuses[name] = endpoint.client.post("/v1/completions", **request).status_code  # type: ignore[arg-type]
        except httpx.WriteError:  # the reply was sent, and the rest of the body not read
            statuses[name] = 413
        slowest_s = max(slowest_s, time.monotonic() - begun_s)
    grown_mib = endpoint.door_mib() - before_mib
    expected = dict(zip(sent, (413, 413, 431, 415, 415, 400), strict=True))
    holds = statuses == expected and grown_mib <= MAX_GROWTH_MIB and endpoint.good_is_answered()
    measured(
        FaultRow(
            row="S8",
            fault="; ".join(sent),
            num_injected=len(sent),
            num_survived=sum(statuses[name] == expected[name] for name in sent),
            measured=f"slowest {slowest_s:.2f} s, memory {grown_mib:+.0f} MiB",
            bar=f"the right 4xx; +{MAX_GROWTH_MIB:.0f} MiB; the next good request 200",
            holds=holds,
        )
    )
    assert statuses == expected
    assert holds


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_request_inside_an_engine_at_its_end(
    endpoint: Endpoint, measured: Callable[[FaultRow], None], number: signal.Signals
) -> None:
    """A crash may be the request's doing, and a kill from outside is not. The engine is found by its processor time."""
    endpoint.wait_until_whole()
    has_crashed = number == signal.SIGSEGV
    body = {**LONG, "prompt": f"inside at {number.name}"}
    engines = endpoint.engines()
    idle_s = {engine: cpu_s(engine) for engine in engines}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(endpoint.client.post, "/v1/completions", json=body)
        while not (busy := [engine for engine in engines if cpu_s(engine) - idle_s[engine] > BUSY_S]):
            assert not asked.done(), "the request ended before its engine was found"
            time.sleep(0.005)
        busy[0].send_signal(number)
        first = asked.result()
    again = endpoint.client.post("/v1/completions", json=body)
    num_left = sum(engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE for engine in engines)
    statuses = (first.status_code, again.status_code)
    holds = num_left == 1 and statuses == ((500, 400) if has_crashed else (200, 200))
    measured(
        FaultRow(
            row="5",
            fault=f"{number.name} for the engine of one request, two replicas; the request comes again",
            num_injected=1,
            num_survived=int(holds),
            measured=f"{statuses[0]}, again {statuses[1]}; {num_left} engine lives on",
            bar="500, 400, 1: written down and refused" if has_crashed else "200, 200, 1: tried once more on the other",
            holds=holds,
        )
    )
    assert holds, (first.text, again.text)
    assert endpoint.good_is_answered()


def cpu_s(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))


def test_no_key_is_to_be_seen_anywhere(endpoint: Endpoint, measured: Callable[[FaultRow], None]) -> None:
    places = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True) if process.is_running()]
    files = [path for folder in (endpoint.session_logs, endpoint.state_dir) for path in folder.rglob("*") if path.is_file()]
    texts = [path.read_bytes().decode("utf-8", "replace") for path in [*files, endpoint.key_file]]
    hits = sum(key in text for text in [*places, *texts] for key in (endpoint.key, endpoint.other_key))
    measured(
        FaultRow(
            row="S18",
            fault=f"two keys sought in {len(places)} command lines and {len(texts)} files of logs, state and keys",
            num_injected=2,
            num_survived=2 if hits == 0 else 0,
            measured=f"{hits} found",
            bar="0",
            holds=hits == 0,
        )
    )
    assert hits == 0
    assert len(files) > 10


def test_an_application_of_others_lives_on(endpoint: Endpoint, measured: Callable[[FaultRow], None]) -> None:
    """Last of this file: it ends the endpoint, with a stream in progress, which is let end."""
    endpoint.wait_until_whole()
    with (
        ThreadPoolExecutor(1) as pool,
        endpoint.client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as reply,
    ):
        events = reply.iter_lines()
        next(events)
        stopped = pool.submit(endpoint.served.stop)
        lines = [line for line in events if line]
        stopped.result()
    other = httpx.get(f"{endpoint.served.base_url}/other")
    left = serve.status().applications.keys()
    holds = lines[-1] == "data: [DONE]" and other.text == "still here" and set(left) == {"other"}
    measured(
        FaultRow(
            row="stop",
            fault="an end of the endpoint with a stream in progress and another's application on the same Serve",
            num_injected=1,
            num_survived=int(holds),
            measured=f"stream ended with {lines[-1]!r}; left: {', '.join(left)}",
            bar="[DONE]; other",
            holds=holds,
        )
    )
    assert holds
