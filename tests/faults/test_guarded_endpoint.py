"""The security table on a real endpoint: two replicas of the tiny model behind keys, another's application beside them."""

import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from ray import serve
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from actors.sources.models import resolve_model
from cluster.processes.runtime import RaySession, ray_session
from serving.app import APP_NAME, ServedPolicy, serve_policy
from serving.config import KeyQuota, RequestLimits, ServeConfig
from serving.guard import proxy
from serving.guard.keys.key_file import add_key
from tests.faults.fault_table import FaultRow
from tests.faults.load import percentile
from tests.serving.odd_requests import OddRequest, odd_requests

ENGINE = "VLLM::EngineCore"
DOORS = ("ProxyActor", "PolicyIngress")
START_TIMEOUT_S = 500.0
ANSWER_WITHIN_S = 20.0  # of an odd request; a good one of two tokens takes some hundredths of it
MAX_GROWTH_MIB = 50.0
LONG = {"model": "tiny", "prompt": "long", "max_tokens": 100, "n": 8, "ignore_eos": True}
GOOD = {"model": "tiny", "prompt": "good", "max_tokens": 2}
USUAL = {"model": "tiny", "prompt": "usual", "max_tokens": 64, "ignore_eos": True}
USUAL_SECONDS = 20.0
BUSY_S = 0.03  # of processor time; an idle engine uses less while a request is on its way

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


class Endpoint:
    """Two replicas behind keys on a Ray that is not the endpoint's own."""

    def __init__(self, folder: Path) -> None:
        self.state_dir = folder / "state"
        self.key_file = folder / "keys.json"
        self.key, self.other_key = (add_key(self.key_file, name) for name in ("first", "second"))
        config = ServeConfig(
            model=resolve_model("tiny"),
            model_id="tiny",
            port=0,
            num_replicas=2,
            num_cpus=0.5,
            num_threads=1,
            max_model_tokens=128,
            kv_cache_gib=0.1,
            dtype="float32",
            keys=str(self.key_file),
            quota=KeyQuota(requests_per_minute=100_000, tokens_per_minute=10**9, max_streams=8),
            state_dir=str(self.state_dir),
        )
        self.served: ServedPolicy = serve_policy(config)
        serve.run(Other.bind(), name="other", route_prefix="/other")  # type: ignore[attr-defined]  # the decorator's
        self.served.wait_ready(timeout_s=START_TIMEOUT_S)
        self.wait_until_whole()
        self.client = self.client_of(self.key)

    def client_of(self, key: str, *, timeout_s: float = START_TIMEOUT_S) -> httpx.Client:
        return httpx.Client(base_url=self.served.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=timeout_s)

    def wait_until_whole(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while len(self.engines()) < 2 or not self._is_running():
            assert time.monotonic() < deadline, serve.status()
            time.sleep(0.2)

    def engines(self) -> list[psutil.Process]:
        return [process for process in psutil.Process().children(recursive=True) if title_of(process).startswith(ENGINE)]

    def door_mib(self) -> float:
        """Resident memory of the proxy and the front doors."""
        titles = ((process, title_of(process)) for process in psutil.Process().children(recursive=True))
        return sum(process.memory_info().rss for process, title in titles if any(door in title for door in DOORS)) / 2**20

    def good_is_answered(self) -> bool:
        return self.client.post("/v1/completions", json=GOOD).status_code == 200

    def _is_running(self) -> bool:
        application = serve.status().applications.get(APP_NAME)
        states = [dict(one.replica_states) for one in application.deployments.values()] if application else []
        return bool(states) and all(state == {"RUNNING": 2} for state in states)


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Other:
    """Somebody else's application on the same Serve."""

    async def __call__(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse("still here")


@pytest.fixture(scope="module")
def session(no_ray: None) -> Iterator[RaySession]:
    proxy.arrange(os.environ, RequestLimits())
    with ray_session(num_cpus=2, include_dashboard=False) as session:
        yield session


@pytest.fixture(scope="module")
def endpoint(session: RaySession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    endpoint = Endpoint(tmp_path_factory.mktemp("endpoint"))
    yield endpoint
    endpoint.served.stop()
    serve.shutdown()


def title_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


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


def test_one_key_does_not_starve_another(endpoint: Endpoint, measured: Callable[[FaultRow], None]) -> None:
    """`second` has 32 connections that ask as fast as they can, four times what one key may have in progress."""
    usual_latencies(endpoint, for_s=USUAL_SECONDS / 4)  # the first requests of an engine are slow
    alone = usual_latencies(endpoint, for_s=USUAL_SECONDS)
    over = time.monotonic() + 1.5 * USUAL_SECONDS
    with endpoint.client_of(endpoint.other_key) as greedy, ThreadPoolExecutor(32) as pool:
        asked = [pool.submit(ask_until, greedy, over) for _ in range(32)]
        time.sleep(USUAL_SECONDS / 4)
        beside = usual_latencies(endpoint, for_s=USUAL_SECONDS)
        statuses = Counter(status for outcome in asked for status in outcome.result())
    ratio = percentile(beside, 0.95) / percentile(alone, 0.95)
    measured(
        FaultRow(
            row="S11",
            fault="one key with 32 connections beside another with one",
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


def ask_until(client: httpx.Client, over: float) -> list[int]:
    statuses = []
    while time.monotonic() < over:
        statuses.append(client.post("/v1/completions", json=USUAL).status_code)
        if statuses[-1] == 429:
            time.sleep(0.5)  # half of what Retry-After says
    return statuses


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


def test_no_key_is_to_be_seen_anywhere(endpoint: Endpoint, session: RaySession, measured: Callable[[FaultRow], None]) -> None:
    places = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True) if process.is_running()]
    files = [path for folder in (session.session_logs, endpoint.state_dir) for path in folder.rglob("*") if path.is_file()]
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
