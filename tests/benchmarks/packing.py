"""Processor time of updates on packed rows over that on padded ones, by the lengths of the sequences.

Run: python -m tests.benchmarks.packing [--model smollm2-135m-instruct] [--tokens 2048] [--rounds 3] [--json]. One PPO update with
a value head and a reference on about so many tokens, in the learner's own compute type; packed and padded take turns in one
process, after one update of each that is not counted. Prints, for each kind of lengths, the share of padding that the padded
update has in spite of its sorting by length, and the ratio of the medians: below 1 packing is faster.
"""

import argparse
import json
import statistics
import sys
import time

import numpy as np

from actors.sources.models import resolve_model
from learners.network.micro_batch import PassSizes, micro_batches
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.settings.policy import PolicyLearnerConfig
from tests.benchmarks.random_batch import random_batch

LAYOUTS = ("padded", "packed")
MAX_PASS_TOKENS = 1024
LENGTHS = {  # name -> shortest, mean, longest
    "equal": (128, 128, 128),
    "short": (8, 32, 64),
    "mixed": (16, 160, 768),
}


def lengths_of(kind: str, num_tokens: int) -> list[int]:
    """Log-normal within limits, as many as make up the tokens."""
    shortest, mean, longest = LENGTHS[kind]
    generator = np.random.default_rng(0)
    lengths: list[int] = []
    while sum(lengths) < num_tokens:
        lengths.append(int(np.clip(generator.lognormal(np.log(mean) - 0.32, 0.8), shortest, longest)))
    return lengths


def padding_frac(lengths: list[int]) -> float:
    """Of the tokens of padded passes."""
    sizes = PassSizes(max_tokens=MAX_PASS_TOKENS)
    passes = micro_batches(range(len(lengths)), [(length,) for length in lengths], sizes)
    return 1 - sum(lengths) / sum(len(rows) * max(lengths[row] for row in rows) for rows in passes)


def learner_of(model: str, layout: str, num_trajectories: int) -> PolicyLearner:
    fields = {"num_steps": 1, "prompts_per_step": num_trajectories, "minibatch_size": num_trajectories}
    workers = {"packing": layout, "micro_batch_tokens": MAX_PASS_TOKENS}
    start = StartingPoint(model_path=model, temperature=1.0, max_completion_tokens=1024, samples_per_prompt=1, seed=0)
    return PolicyLearner(start, PolicyLearnerConfig.model_validate(fields | {"workers": workers}))


def measured(model: str, kind: str, num_tokens: int, num_rounds: int) -> dict[str, float]:
    lengths = lengths_of(kind, num_tokens)
    learners = {layout: learner_of(model, layout, len(lengths)) for layout in LAYOUTS}
    seconds: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    for step in range(1 + num_rounds):
        for layout, learner in learners.items():
            batch, begun_s = random_batch(step, lengths=lengths), time.process_time()
            learner.update(batch)
            if step > 0:
                seconds[layout].append(time.process_time() - begun_s)
    medians = {f"{layout}_s": statistics.median(each) for layout, each in seconds.items()}
    ratio = medians["packed_s"] / medians["padded_s"]
    return {"sequences": len(lengths), "padding_frac": padding_frac(lengths), **medians, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=2048, help="of an update")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = resolve_model(arguments.model)
    found = {kind: measured(model, kind, arguments.tokens, arguments.rounds) for kind in LENGTHS}
    if arguments.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for kind, values in found.items():
        sys.stdout.write(
            f"{kind}: {values['sequences']} sequences, {values['padding_frac']:.0%} padding; "
            f"{values['padded_s']:.1f} s padded, {values['packed_s']:.1f} s packed, ratio {values['ratio']:.2f}\n"
        )


if __name__ == "__main__":
    main()
