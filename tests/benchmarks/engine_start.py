"""Processor time until a process that a Ray actor spawns has imported vLLM's engine: lightly, against multiprocessing's own way.

Run: python -m tests.benchmarks.engine_start [--json]. Prints the ratio of medians of processes that were spawned by turns, one
after the other; below 1 the light way is cheaper.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from contextlib import nullcontext
from multiprocessing.connection import Connection

import ray

from actors.generation.engine_process import spawned_lightly
from cluster.processes.runtime import ray_session

NUM_REPEATS = 5


def import_engine(answers: Connection) -> None:
    """Runs in the spawned process."""
    import vllm.v1.engine.core  # noqa: F401

    answers.send(time.process_time())


class Parent:
    """An actor, for its main module is what is at issue."""

    def spawn(self, *, lightly: bool) -> float:
        from tests.benchmarks import engine_start  # by its own name, which the other process finds

        answers, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=engine_start.import_engine, args=(theirs,))
        with spawned_lightly() if lightly else nullcontext():
            process.start()
        seconds = answers.recv()
        process.join()
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with ray_session(num_cpus=1, include_dashboard=False):
        parent = ray.remote(Parent).options(num_cpus=0).remote()
        for _ in range(NUM_REPEATS + 1):  # the first round warms up
            for lightly, found in seconds.items():
                found.append(ray.get(parent.spawn.remote(lightly=lightly)))
    light, plain = (statistics.median(found[1:]) for found in (seconds[True], seconds[False]))
    result = {"cpu_seconds_light": light, "cpu_seconds_plain": plain, "ratio": light / plain, "num_repeats": NUM_REPEATS}
    if parser.parse_args().json:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    sys.stdout.write(
        f"an engine's imports: {light:.1f} s of processor time lightly, {plain:.1f} s plainly, ratio {light / plain:.2f} "
        f"(medians of {NUM_REPEATS})\n"
    )


if __name__ == "__main__":
    main()
