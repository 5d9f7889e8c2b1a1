"""Seconds of a training step by part, against the time that its necessary matrix products would take on this machine.

Run: python -m tests.benchmarks.step [--algorithm ppo --algorithm grpo] [--steps 4] [--json], with nothing beside. The work is
that of `peer_trl`: SmolLM2-135M in the processor's fast type, 8 prompts x 4 samples x 64 tokens, KL 0.05. The first step is
left out.

Necessary are the products of one update, of the reference where there is a KL, and of the policy before the update where the
advantages or the ratio need it. Counted are weights only; attention over so few tokens adds less than 2 %. Their time is said at
two rates: of one product again and again, whose operands stay in the processor's cache, and of such products of all layers in
turn, forward and backward, whose operands come from memory as a learner's do.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from tokenizers import Tokenizer

from actors.config import fast_dtype
from actors.sources.models import resolve_model
from cluster.storage.ledger import read_ledger
from learners.network.models import TORCH_DTYPES
from learners.run.memory_estimate import ModelShape, local_model_shape
from learners.settings.policy import PolicyLearnerConfig
from learners.settings.run import PolicyRunConfig, load_run_config

MODEL = "smollm2-135m-instruct"
NUM_PROMPTS, NUM_SAMPLES, NUM_TOKENS = 8, 4, 64
KL_COEF = 0.05
DTYPE = fast_dtype({})  # what both sides compute in
PARTS = ("rollout", "prepare", "update", "publish")
RATE_REPEATS = 20
NUM_PASS_TOKENS = 2304  # of the products whose rate is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Medians over the steps of one run."""

    algorithm: str
    seconds: dict[str, float]  # by part
    necessary_flop: float

    @property
    def step_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def learner_s(self) -> float:
        return self.seconds["prepare"] + self.seconds["update"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algorithm", action="append", choices=("ppo", "grpo"))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    shape = local_model_shape(MODEL) if resolve_model(MODEL) else None
    assert shape is not None, "the model was fetched just now"
    found = []
    for algorithm in arguments.algorithm or ("ppo", "grpo"):
        rates = [measure_rates(shape)]
        times = measure(algorithm, num_steps=arguments.steps, shape=shape)
        rates.append(measure_rates(shape))
        found.append(described(times, rates))
    sys.stdout.write(json.dumps(found, indent=1) + "\n" if arguments.json else "".join(map(table, found)))


def measure(algorithm: str, *, num_steps: int, shape: ModelShape) -> StepTimes:
    """A real run in a folder of its own; its first step is left out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(run_config(algorithm, folder, num_steps=num_steps + 1)))
        subprocess.run([sys.executable, "-m", "rayward", "train", str(path), "--json"], check=True, stdout=subprocess.DEVNULL)
        run = Path(folder) / "step"
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "time/update_s" in line and line["step"] > 0]
        entries = [entry for entry in read_ledger(run / "trajectories") if entry.step > 0]
        config = load_run_config(path)
    assert isinstance(config, PolicyRunConfig)
    completion_tokens = sum(entry.completion_tokens for entry in entries) / num_steps
    tokenizer = Tokenizer.from_file(str(Path(resolve_model(MODEL)) / "tokenizer.json"))
    prompt_tokens = sum(len(tokenizer.encode(entry.prompt).ids) for entry in entries) / num_steps
    return StepTimes(
        algorithm=algorithm,
        seconds={part: statistics.median(line[f"time/{part}_s"] for line in steps) for part in PARTS},
        necessary_flop=necessary_flop(
            config.learner,
            shape,
            num_trajectories=NUM_PROMPTS * NUM_SAMPLES,
            all_tokens=prompt_tokens + completion_tokens,
            scored=completion_tokens,
        ),
    )


def run_config(algorithm: str, folder: str, *, num_steps: int) -> dict[str, Any]:
    return {
        "name": "step",
        "runs_dir": folder,
        "model": MODEL,
        "task": {"kind": "movie_reviews", "num_prompt_words": 5, "prompt_format": "plain"},
        "sampling": {"max_completion_tokens": NUM_TOKENS, "samples_per_prompt": NUM_SAMPLES},
        "generator": {"num_cpus": 0.5, "max_model_tokens": 128, "max_num_sequences": 128, "kv_cache_gib": 1},
        "scorers": [{"kind": "function", "function": "length", "weight": -0.01}],
        "learner": {
            "algorithm": algorithm,
            "num_steps": num_steps,
            "prompts_per_step": NUM_PROMPTS,
            "minibatch_size": NUM_PROMPTS * NUM_SAMPLES,
            "kl": {"coef": KL_COEF},
            "optimizer": {"learning_rate": 1e-6},
        },
        "evaluation": {"num_prompts": 1},
    }


def necessary_flop(
    learner: PolicyLearnerConfig, shape: ModelShape, *, num_trajectories: int, all_tokens: float, scored: float
) -> float:
    """Of one step: two a weight and token forward, twice that backward."""
    head = 2 * shape.hidden * shape.vocabulary * scored
    layers = 2 * shape.layer * all_tokens
    forward = shape.num_layers * layers + head
    backward = 2 * (shape.num_layers - learner.num_frozen_layers) * layers + 2 * head
    num_optimizer_steps = learner.num_epochs * num_trajectories // learner.minibatch_size
    needs_reference = learner.kl.coef > 0
    needs_policy_before = num_optimizer_steps > 1 or learner.critic.kind != "none"
    return learner.num_epochs * (forward + backward) + (needs_reference + needs_policy_before) * forward


class ProductRates(NamedTuple):
    """FLOP a second of two threads in `DTYPE`, in products as large as those of the model's feed-forward blocks."""

    cached: float  # one product, again and again
    from_memory: float  # those of each layer and its backward pass, in turn


def measure_rates(shape: ModelShape) -> ProductRates:
    torch.set_num_threads(2)
    tokens, hidden, wide = NUM_PASS_TOKENS, shape.hidden, shape.layer // shape.hidden // 4
    dtype = TORCH_DTYPES[DTYPE]
    operands = [
        (torch.randn(tokens, hidden, dtype=dtype), torch.randn(hidden, wide, dtype=dtype), torch.randn(tokens, wide, dtype=dtype))
        for _ in range(shape.num_layers)
    ]

    def cached() -> None:
        operands[0][0] @ operands[0][1]

    def from_memory() -> None:
        for taken, weight, gradient in operands:
            taken @ weight
            gradient @ weight.t()
            taken.t() @ gradient

    flop = 2 * tokens * hidden * wide
    return ProductRates(
        cached=flop / median_s(cached, RATE_REPEATS),
        from_memory=3 * len(operands) * flop / median_s(from_memory, RATE_REPEATS // 4),
    )


def median_s(work: Callable[[], None], num_repeats: int) -> float:
    seconds = []
    for _ in range(num_repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def described(times: StepTimes, rates: Sequence[ProductRates]) -> dict[str, Any]:
    """`rates`: measured before and after."""
    cached, from_memory = (statistics.mean(each) for each in zip(*rates, strict=True))
    return {
        "algorithm": times.algorithm,
        "dtype": DTYPE,
        "seconds": {part: round(seconds, 2) for part, seconds in times.seconds.items()},
        "step_s": round(times.step_s, 2),
        "necessary_tflop": round(times.necessary_flop / 1e12, 2),
        "cached_tflop_per_s": round(cached / 1e12, 3),
        "from_memory_tflop_per_s": round(from_memory / 1e12, 3),
        "learner_over_cached": round(times.learner_s * cached / times.necessary_flop, 2),
        "learner_over_from_memory": round(times.learner_s * from_memory / times.necessary_flop, 2),
    }


def table(found: dict[str, Any]) -> str:
    parts = "  ".join(f"{part} {seconds:.1f} s" for part, seconds in found["seconds"].items())
    return (
        f"{found['algorithm']} in {found['dtype']}: step {found['step_s']:.1f} s ({parts}); necessary products "
        f"{found['necessary_tflop']} TFLOP; learner {found['learner_over_cached']} times their time at "
        f"{found['cached_tflop_per_s']} TFLOP/s (operands in the cache), {found['learner_over_from_memory']} times that at "
        f"{found['from_memory_tflop_per_s']} (from memory)\n"
    )


if __name__ == "__main__":
    main()
