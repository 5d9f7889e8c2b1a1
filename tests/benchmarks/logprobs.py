"""Log-probabilities of completion tokens: chunked over positions against full logits, forward and backward.

Run: python -m tests.benchmarks.logprobs [--json]. Prints ratios of medians taken alternately in one process; below 1 the
chunked form is faster or smaller. Shapes are those of SmolLM2-135M with a micro-batch of 1,024 completion tokens.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from learners.algorithms.logprobs import gather_logprobs

NUM_POSITIONS, HIDDEN, VOCABULARY = 1024, 576, 49152
CHUNK_TOKENS = 512
NUM_REPEATS = 5
FLOAT32_BYTES = 4


def chunked(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    logprobs_N, _ = gather_logprobs(
        hidden_ND, weight_VD, targets_N, temperature=1.0, chunk_tokens=CHUNK_TOKENS, compute_dtype=torch.bfloat16
    )
    return logprobs_N


def full(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    logits_NV = (hidden_ND.bfloat16() @ weight_VD.bfloat16().t()).float()
    return torch.log_softmax(logits_NV, dim=-1).gather(1, targets_N[:, None]).squeeze(1)


def seconds(function: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    for tensor in inputs[:2]:
        tensor.grad = None
    started_s = time.perf_counter()
    function(*inputs).sum().backward()
    return time.perf_counter() - started_s


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    torch.manual_seed(0)
    inputs = (
        torch.randn(NUM_POSITIONS, HIDDEN, requires_grad=True),
        torch.randn(VOCABULARY, HIDDEN, requires_grad=True),
        torch.randint(VOCABULARY, (NUM_POSITIONS,)),
    )
    times: dict[str, list[float]] = {function.__name__: [] for function in (chunked, full)}
    for _ in range(NUM_REPEATS + 1):  # the first round warms up
        for function in (chunked, full):
            times[function.__name__].append(seconds(function, inputs))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    result = {
        "seconds_chunked": medians["chunked"],
        "seconds_full": medians["full"],
        "time_ratio": medians["chunked"] / medians["full"],
        # The largest block of logits that exists at one time; full logits also live until the backward pass.
        "logits_bytes_chunked": CHUNK_TOKENS * VOCABULARY * FLOAT32_BYTES,
        "logits_bytes_full": NUM_POSITIONS * VOCABULARY * FLOAT32_BYTES,
    }
    if parser.parse_args().json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        share = CHUNK_TOKENS / NUM_POSITIONS
        sys.stdout.write(f"chunked / full: {result['time_ratio']:.2f} of the time, {share:.2f} of the logits\n")


if __name__ == "__main__":
    main()
