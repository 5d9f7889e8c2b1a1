"""An endpoint that loses parts of itself, takes new weights, and gets more than it can do, all of it under load."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ray import serve
from safetensors.torch import load_file, save_file

from actors.sources.models import resolve_model
from cluster.processes.runtime import start_ray
from serving.app import APP_NAME, ServedPolicy, serve_policy
from serving.config import ServeConfig
from tests.faults.fault_table import FaultRow, seconds
from tests.faults.load import load, raw_client, sdk_client
from tests.serving.tiny_contract import seal_tiny

SERVER, ENGINE, DOOR = "ray::ServeReplica:rayward:PolicyServer", "VLLM::EngineCore", "ray::ServeReplica:rayward:PolicyIngress"
MODEL = "run"
NUM_REQUESTS, NUM_CLIENTS, KILL_AFTER = 200, 8, 60
BODY: dict[str, Any] = {"max_tokens": 48, "temperature": 0}
SHORT_BODY: dict[str, Any] = {**BODY, "max_tokens": 16}
NUM_UNDER_CHANGE, CHANGE_AT = 1600, (100, 500, 900)  # replicas change one after the other, for some seconds each
SETTLED_S = 2.0  # requests that begin later than this after a kill must not fail
START_TIMEOUT_S = 500.0

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


class Endpoint:
    """Two replicas on the tiny model that follow a run directory."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._processes_before = set(psutil.Process().children(recursive=True))
        self.publish(seed=0)
        started_s = time.monotonic()
        config = ServeConfig(
            model=str(run_dir),
            port=0,
            max_model_tokens=128,
            kv_cache_gib=0.1,
            num_replicas=2,
            num_threads=1,
            dtype="float32",
            follow=True,
            state_dir=str(run_dir.parent / "state"),
        )
        self.served: ServedPolicy = serve_policy(config, start=partial(start_ray, num_cpus=2))
        self.wait_until_whole()
        self.cold_start_s = time.monotonic() - started_s

    def publish(self, *, seed: int) -> int:
        """A next version, its matrices drawn from `seed`; whole when it appears, as the learner's export is."""
        policies = self._run_dir / "policies"
        policies.mkdir(parents=True, exist_ok=True)
        version = len(list(policies.iterdir())) + 1
        draft = self._run_dir / "draft"
        shutil.copytree(resolve_model("tiny"), draft)
        generator = torch.Generator().manual_seed(seed)
        for path in draft.glob("*.safetensors"):
            tensors = {
                name: torch.randn(tensor.shape, generator=generator) * 0.3 if tensor.ndim == 2 else tensor
                for name, tensor in load_file(path).items()
            }
            save_file(tensors, path, metadata={"format": "pt"})
        seal_tiny(draft, policy_version=version)
        draft.rename(policies / f"v{version:06d}")
        return version

    def wait_until_whole(self) -> None:
        """Both replicas and both front doors run."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_whole():
            assert time.monotonic() < deadline, serve.status()
            time.sleep(0.2)

    def kill(self, title: str) -> float:
        """SIGKILL the first process of that title; the time of it."""
        process = min((process for process in self._processes() if _title(process).startswith(title)), key=lambda one: one.pid)
        process.kill()
        return time.monotonic()

    def _is_whole(self) -> bool:
        application = serve.status().applications.get(APP_NAME)
        if application is None or application.status != "RUNNING" or not application.deployments:
            return False
        states = [deployment.replica_states for deployment in application.deployments.values()]
        engines = [process for process in self._processes() if _title(process).startswith(ENGINE)]
        return len(engines) == 2 and all(dict(state) == {"RUNNING": 2} for state in states)

    def _processes(self) -> set[psutil.Process]:
        return set(psutil.Process().children(recursive=True)) - self._processes_before


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory, no_ray: None) -> Iterator[Endpoint]:
    endpoint = Endpoint(tmp_path_factory.mktemp("runs") / MODEL)
    yield endpoint
    endpoint.served.stop()


@pytest.mark.parametrize(("title", "what"), [(SERVER, "a replica"), (ENGINE, "a replica's engine"), (DOOR, "a front door")])
def test_a_killed_replica_costs_what_was_in_flight_there(
    endpoint: Endpoint, measured: Callable[[FaultRow], None], title: str, what: str
) -> None:
    """With the OpenAI client nothing at all, because it asks again."""
    kills_s: list[float] = []
    recoveries_s: list[float] = []
    outcomes = []
    for client in (
        sdk_client(endpoint.served.base_url, MODEL, **BODY),
        raw_client(endpoint.served.base_url, MODEL, stream=lambda number: number % 2 == 0, **BODY),
    ):
        outcomes.append(
            load(
                client,
                num_requests=NUM_REQUESTS,
                num_clients=NUM_CLIENTS,
                at={KILL_AFTER: lambda: kills_s.append(endpoint.kill(title))},
            )
        )
        endpoint.wait_until_whole()
        recoveries_s.append(time.monotonic() - kills_s[-1])
    by_sdk, raw = outcomes
    failed = [outcome for outcome in raw if outcome.problem]
    in_flight = [outcome for outcome in raw if outcome.begun_s <= kills_s[1] <= outcome.ended_s]
    late = [outcome for outcome in failed if outcome.begun_s > kills_s[1] + SETTLED_S]
    lying = [outcome for outcome in failed if outcome.claims_an_end]
    num_sdk_failures = sum(bool(outcome.problem) for outcome in by_sdk)
    limit_s = 1.5 * endpoint.cold_start_s + 10
    is_kept = num_sdk_failures == 0 and len(failed) <= len(in_flight) and not late and not lying
    measured(
        FaultRow(
            row="5",
            fault=f"SIGKILL {what} under load (2 replicas, {NUM_CLIENTS} clients, {NUM_REQUESTS} requests, twice)",
            num_injected=2,
            num_survived=2 if is_kept else 0,
            measured=(
                f"OpenAI client {num_sdk_failures} failed; raw client {len(failed)} failed of {len(in_flight)} in flight, "
                f"{len(late)} begun later than {SETTLED_S:g} s after, {len(lying)} streams that claim their end; "
                f"whole after {seconds(recoveries_s)}"
            ),
            bar=f"0; at most those in flight, 0, 0; {limit_s:.0f} s (1.5 x {endpoint.cold_start_s:.0f} s + 10 s)",
            holds=is_kept and max(recoveries_s) <= limit_s,
        )
    )
    assert is_kept, [outcome for outcome in [*by_sdk, *failed] if outcome.problem]


def test_new_weights_under_load(endpoint: Endpoint, measured: Callable[[FaultRow], None]) -> None:
    """Each response is one version's, the one in its header: the text is what those weights say when nothing else happens."""
    seeds = (1, 2, 3, 4)
    seed_of = {endpoint.publish(seed=seeds[0]): seeds[0]}
    texts = {seeds[0]: texts_of(endpoint, max(seed_of))}

    def publish(seed: int) -> None:
        seed_of[endpoint.publish(seed=seed)] = seed

    ask = raw_client(endpoint.served.base_url, MODEL, stream=lambda number: number % 2 == 0, **SHORT_BODY)
    moments: dict[int, Callable[[], object]] = {
        number: partial(publish, seed) for number, seed in zip(CHANGE_AT, seeds[1:], strict=True)
    }
    outcomes = load(lambda number: ask(number % NUM_REQUESTS), num_requests=NUM_UNDER_CHANGE, num_clients=NUM_CLIENTS, at=moments)
    for seed in seeds[1:]:
        texts[seed] = texts_of(endpoint, endpoint.publish(seed=seed))
    failed = [outcome for outcome in outcomes if outcome.problem]
    answered = [(outcome, seed_of[outcome.policy_version or 0]) for outcome in outcomes if not outcome.problem]
    mixed = [outcome for outcome, seed in answered if outcome.text != texts[seed][outcome.number]]
    by_seed = Counter(seed for _, seed in answered)
    is_kept = not failed and not mixed and len(by_seed) == len(seeds)
    measured(
        FaultRow(
            row="5b",
            fault=f"new weights three times under load (2 replicas, {NUM_CLIENTS} clients, {NUM_UNDER_CHANGE} requests)",
            num_injected=len(seeds) - 1,
            num_survived=len(seeds) - 1 if is_kept else 0,
            measured=f"{len(failed)} failed, {len(mixed)} other than their header says; {sorted(by_seed.values())} by version",
            bar="0, 0",
            holds=is_kept,
        )
    )
    assert not failed
    assert not mixed
    assert len(by_seed) == len(seeds)


def texts_of(endpoint: Endpoint, version: int) -> dict[int, str]:
    """What the version says to every prompt, once all replicas hold it."""
    texts: dict[int, str] = {}
    ask = raw_client(endpoint.served.base_url, MODEL, **SHORT_BODY)
    deadline = time.monotonic() + START_TIMEOUT_S
    while len(texts) < NUM_REQUESTS:
        assert time.monotonic() < deadline, f"{len(texts)} of {NUM_REQUESTS} prompts answered by version {version}"
        for outcome in load(ask, num_requests=NUM_REQUESTS, num_clients=2):
            if outcome.policy_version == version:
                texts[outcome.number] = outcome.text
    assert len(set(texts.values())) > NUM_REQUESTS // 10, "too many prompts get the same text to tell versions apart"
    return texts


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
