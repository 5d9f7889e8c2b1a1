"""Milliseconds of processor time to pickle and unpickle a group of 16 completions of 4,096 tokens, against tuples of numbers.

Run: python -m tests.benchmarks.wire. Prints the ratio of medians; above 1 the records are faster than tuples of numbers.
"""

import pickle
import statistics
import sys
import time
from typing import Any

import numpy as np

from cluster.types import TrajectoryTokens
from tests.records import single_turn

NUM_SAMPLES, NUM_TOKENS, NUM_PROMPT_TOKENS = 16, 4096, 128
REPEATS = 50


def main() -> None:
    generator = np.random.default_rng(0)
    prompt = generator.integers(0, 49_152, NUM_PROMPT_TOKENS).tolist()
    rows = [
        (generator.integers(0, 49_152, NUM_TOKENS).tolist(), (-generator.random(NUM_TOKENS)).tolist()) for _ in range(NUM_SAMPLES)
    ]
    records = tuple(single_turn(prompt, chosen, logprobs=logprobs) for chosen, logprobs in rows)
    assert isinstance(records[0], TrajectoryTokens)
    numbers = tuple((tuple(chosen), tuple(logprobs)) for chosen, logprobs in rows)
    ours_ms, plain_ms = milliseconds(records), milliseconds(numbers)
    sys.stdout.write(
        f"{NUM_SAMPLES} completions of {NUM_TOKENS:,} tokens, dumps and loads: records {ours_ms:.2f} ms, tuples of numbers "
        f"{plain_ms:.1f} ms: ratio {plain_ms / ours_ms:.1f}\n"
    )


def milliseconds(value: Any) -> float:
    """Median of one round trip."""
    times = []
    for _ in range(REPEATS):
        begun_s = time.process_time()
        pickle.loads(pickle.dumps(value, protocol=5))
        times.append(1e3 * (time.process_time() - begun_s))
    return statistics.median(times)


if __name__ == "__main__":
    main()
