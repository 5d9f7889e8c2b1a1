"""Our layer against plain Ray Serve LLM: requests a second, latency, and processor time of what stands before the engine.

Run: python -m tests.benchmarks.front_door [--rounds 20] [--json], with nothing beside. Three endpoints live at the same time, and
are asked by turns: Ray's `build_openai_app`, `rayward serve` without keys, and with them. Each is on a Ray of its own, with one
engine of the tiny model under the same settings. Every other request is a stream. Serve logs no access on any of them. The
first round warms up. Ratios are to plain Ray Serve LLM; intervals are of 95 %, from rounds drawn with replacement.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from actors.sources.models import resolve_model
from cluster.host.cpu_engine import cpu_engine_environment
from cluster.processes.runtime import ray_session
from serving.config import KeyQuota, ServeConfig
from serving.guard.keys.key_file import add_key
from serving.listening import available_port
from tests.faults.load import Client, load, raw_client

PLAIN, OURS, KEYS = "plain Ray Serve LLM", "ours", "ours with keys"
MODEL = "tiny"
NUM_REQUESTS, NUM_CLIENTS = 48, 4  # of one round
BODY: Final[dict[str, Any]] = {"max_tokens": 32, "temperature": 0, "ignore_eos": True}
DOORS = ("ray::ProxyActor", "PolicyIngress", "OpenAiIngress", "UsageServer")  # in titles of processes
START_TIMEOUT_S = 600.0
NUM_DRAWS = 5000
INTERVAL = (0.025, 0.975)
KEY_NAME = "benchmark"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One side's share of one round."""

    seconds: float
    latencies_s: tuple[float, ...]
    door_cpu_s: float  # of the proxy, the front door, and the counter of keys


def serve_plain(config: ServeConfig, port: int) -> None:
    """Ray Serve LLM as its documentation builds it, with our engine's settings."""
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    from serving.deployment import QUIET, engine_arguments

    llm_config = LLMConfig(
        model_loading_config={"model_id": MODEL, "model_source": config.model},
        accelerator_config={"kind": "cpu"},
        placement_group_config={"bundles": [{"CPU": config.num_cpus}]},
        deployment_config={
            "num_replicas": 1,
            "max_ongoing_requests": config.max_ongoing_requests,
            "ray_actor_options": {"num_cpus": 0},
        },
        engine_kwargs=engine_arguments(config),
        runtime_env={
            "env_vars": {
                **cpu_engine_environment(config.num_threads, eager=True),
                "HF_HUB_OFFLINE": "1",
                "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0",
            }
        },
    )
    door = {"num_replicas": 1, "max_ongoing_requests": config.max_ongoing_requests, "ray_actor_options": {"num_cpus": 0}}
    serve.start(proxy_location="HeadOnly", http_options={"host": config.host, "port": port}, logging_config=QUIET)
    app = build_openai_app({"llm_configs": [llm_config], "ingress_deployment_config": door})
    serve.run(app, name="plain", logging_config=QUIET)


def serve_side(side: str, folder: str, pipe: Connection) -> None:
    """Runs in a process of its own: one Ray with one endpoint, until the other end of `pipe` is closed."""
    from serving.app import serve_policy
    from serving.guard import proxy

    keys = Path(folder) / "keys.json"
    key = add_key(keys, KEY_NAME) if side == KEYS else ""
    config = ServeConfig(
        model=resolve_model(MODEL),
        model_id=MODEL,
        port=available_port("127.0.0.1", 0),
        max_model_tokens=128,
        kv_cache_gib=0.1,
        num_threads=1,
        dtype="float32",
        keys=str(keys) if key else None,
        quota=KeyQuota(requests_per_minute=10**6, tokens_per_minute=10**9),
        state_dir=folder,
    )
    if side != PLAIN:
        proxy.arrange(os.environ, proxy.ProxyLimits(num_engine_places=config.num_engine_places))
    with ray_session(num_cpus=2, include_dashboard=False):
        if side == PLAIN:
            serve_plain(config, config.port)
        else:
            serve_policy(config).wait_ready(timeout_s=START_TIMEOUT_S)
        pipe.send((f"http://{config.host}:{config.port}", key))
        try:
            pipe.recv()
        except EOFError:
            return


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A running endpoint."""

    name: str
    ask: Client
    doors: tuple[psutil.Process, ...]

    def round(self) -> Round:
        """Raises `AssertionError` where a request fails."""
        before_s, started_s = self.door_cpu_s(), time.perf_counter()
        outcomes = load(self.ask, num_requests=NUM_REQUESTS, num_clients=NUM_CLIENTS)
        seconds = time.perf_counter() - started_s
        assert not (problems := [outcome.problem for outcome in outcomes if outcome.problem]), (self.name, problems)
        return Round(
            seconds=seconds,
            latencies_s=tuple(outcome.took_s for outcome in outcomes),
            door_cpu_s=self.door_cpu_s() - before_s,
        )

    def door_cpu_s(self) -> float:
        return float(sum(sum(door.cpu_times()[:2]) for door in self.doors))


@contextmanager
def starting(name: str) -> Iterator[Callable[[], Side]]:
    """One endpoint, whose start goes on beside others; it is ready when the call returns."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=serve_side, args=(name, folder, theirs))
        process.start()
        theirs.close()

        def ready() -> Side:
            base_url, key = ours.recv()
            children = psutil.Process(process.pid).children(recursive=True)
            doors = tuple(child for child in children if any(door in " ".join(child.cmdline()) for door in DOORS))
            assert len(doors) == (3 if key else 2), (name, doors)
            ask = raw_client(base_url, MODEL, key=key, stream=lambda number: number % 2 == 0, **BODY)
            return Side(name=name, ask=ask, doors=doors)

        try:
            yield ready
        finally:
            ours.close()
            process.join()


def measure(num_rounds: int) -> dict[str, list[Round]]:
    """Rounds by side, taken by turns; every other turn backwards, so that a drift of the machine meets all alike."""
    rounds: dict[str, list[Round]] = {PLAIN: [], OURS: [], KEYS: []}
    with ExitStack() as stack:
        started = [stack.enter_context(starting(name)) for name in rounds]
        sides = [ready() for ready in started]
        for number in range(num_rounds + 1):
            for side in sides if number % 2 else reversed(sides):
                rounds[side.name].append(side.round())
    return {name: found[1:] for name, found in rounds.items()}


def throughput(rounds: list[Round]) -> float:
    return sum(len(one.latencies_s) for one in rounds) / sum(one.seconds for one in rounds)


def median_latency_s(rounds: list[Round]) -> float:
    return statistics.median(latency for one in rounds for latency in one.latencies_s)


def door_cpu_ms(rounds: list[Round]) -> float:
    return 1000 * sum(one.door_cpu_s for one in rounds) / sum(len(one.latencies_s) for one in rounds)


def ratio_interval(
    statistic: Callable[[list[Round]], float], side: list[Round], plain: list[Round]
) -> tuple[float, float, float]:
    """The ratio, and the ends of its interval: rounds of both sides are drawn together, as they were taken."""
    random = np.random.default_rng(0)
    ratios = []
    for _ in range(NUM_DRAWS):
        drawn = random.integers(len(side), size=len(side))
        ratios.append(statistic([side[index] for index in drawn]) / statistic([plain[index] for index in drawn]))
    low, high = np.quantile(ratios, INTERVAL)
    return statistic(side) / statistic(plain), float(low), float(high)


def described(rounds: dict[str, list[Round]]) -> list[dict[str, Any]]:
    found = []
    for name, own in rounds.items():
        entry = {
            "side": name,
            "requests_per_s": throughput(own),
            "median_latency_ms": 1000 * median_latency_s(own),
            "door_cpu_ms_per_request": door_cpu_ms(own),
        }
        if name != PLAIN:
            for statistic in (throughput, median_latency_s, door_cpu_ms):
                entry[f"{statistic.__name__}_ratio"] = ratio_interval(statistic, own, rounds[PLAIN])
        found.append(entry)
    return found


def line(entry: dict[str, Any]) -> str:
    ratios = "".join(
        f"; {name.removesuffix('_ratio')} {value[0]:.2f} times ({value[1]:.2f} to {value[2]:.2f})"
        for name, value in entry.items()
        if name.endswith("_ratio")
    )
    return (
        f"{entry['side']}: {entry['requests_per_s']:.1f} requests/s, median latency {entry['median_latency_ms']:.0f} ms, "
        f"{entry['door_cpu_ms_per_request']:.1f} ms of the front door's processor time a request{ratios}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = described(measure(arguments.rounds))
    sys.stdout.write(json.dumps(found, indent=1) + "\n" if arguments.json else "".join(map(line, found)))


if __name__ == "__main__":
    main()
