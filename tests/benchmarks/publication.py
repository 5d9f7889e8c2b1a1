"""From tensors to generators that have checked them: bytes hashed by writer and every generator, against once a host.

Run: python -m tests.benchmarks.publication [--json]. Prints ratios of medians taken alternately in one process; below 1 one hash
is faster. The size is that of SmolLM2-135M in bfloat16, in shared memory. Generators are threads here, for hashing and reading
leave Python's lock; in a run each is a process of its own.
"""

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cluster.storage.weight_file import check_weights
from learners.weights.file import publish_weights

SHARED_MEMORY = Path("/dev/shm")
NUM_TENSORS, TENSOR_NUMBERS = 32, 4_200_000  # 134.4 million in all
GENERATOR_COUNTS = (1, 2, 4)
NUM_REPEATS = 5

Publication = Callable[[dict[str, Tensor], Path], Callable[[], None]]  # returns what each generator does


def hashed_by_all(tensors: dict[str, Tensor], directory: Path) -> Callable[[], None]:
    path = directory / "weights.safetensors"
    save_file(tensors, path)
    published = _sha256(path)

    def check() -> None:
        assert _sha256(path) == published

    return check


def hashed_once(tensors: dict[str, Tensor], directory: Path) -> Callable[[], None]:
    weights = publish_weights(tensors, directory, policy_version=1)
    return lambda: check_weights(weights)


def seconds(publication: Publication, tensors: dict[str, Tensor], num_generators: int) -> float:
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder, ThreadPoolExecutor(num_generators) as generators:
        started_s = time.perf_counter()
        check = publication(tensors, Path(folder))
        for checked in [generators.submit(check) for _ in range(num_generators)]:
            checked.result()
        return time.perf_counter() - started_s


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    is_json = parser.parse_args().json
    tensors = {str(index): torch.randn(TENSOR_NUMBERS).bfloat16() for index in range(NUM_TENSORS)}
    results = []
    for num_generators in GENERATOR_COUNTS:
        times: dict[str, list[float]] = {"by_all": [], "once": []}
        for _ in range(NUM_REPEATS + 1):  # the first round warms up
            times["by_all"].append(seconds(hashed_by_all, tensors, num_generators))
            times["once"].append(seconds(hashed_once, tensors, num_generators))
        by_all, once = (statistics.median(values[1:]) for values in times.values())
        results.append(
            {"generators": num_generators, "seconds_by_all": by_all, "seconds_once": once, "time_ratio": once / by_all}
        )
    if is_json:
        sys.stdout.write(json.dumps(results) + "\n")
        return
    for result in results:
        sys.stdout.write(
            f"{result['generators']} generators: {result['seconds_by_all']:.2f} s hashed by all, {result['seconds_once']:.2f} s "
            f"hashed once, ratio {result['time_ratio']:.2f}\n"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
