"""Peak memory and processor time of an update that computes activations again, against one that keeps them.

Run: python -m tests.benchmarks.activations [--tokens 2048] [--json], with nothing beside. One PPO update of SmolLM2-135M in
float32 on one pack of so many tokens, in a process of its own each time; memory is what the process came to hold above what it
held before.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time

from actors.sources.models import resolve_model
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.settings.policy import PolicyLearnerConfig
from tests.benchmarks.random_batch import random_batch

MODEL = "smollm2-135m-instruct"
TOKENS_PER_TRAJECTORY = 256  # half of them chosen by the policy
KIB_PER_MIB = 2**10


def updated(model: str, num_tokens: int, again: bool) -> dict[str, float]:
    """In a process of its own: nothing of an earlier update is in its memory."""
    num_trajectories = num_tokens // TOKENS_PER_TRAJECTORY
    config = PolicyLearnerConfig.model_validate(
        {
            "num_steps": 1,
            "prompts_per_step": num_trajectories,
            "minibatch_size": num_trajectories,
            "workers": {"compute_dtype": "float32", "micro_batch_tokens": num_tokens, "activation_checkpointing": again},
        }
    )
    start = StartingPoint(
        model_path=model, temperature=1.0, max_completion_tokens=TOKENS_PER_TRAJECTORY // 2, samples_per_prompt=1, seed=0
    )
    learner = PolicyLearner(start, config)
    before_kib, begun_s = _peak_kib(), time.process_time()
    learner.update(random_batch(0, lengths=[TOKENS_PER_TRAJECTORY] * num_trajectories))
    return {"grown_mib": (_peak_kib() - before_kib) / KIB_PER_MIB, "processor_s": time.process_time() - begun_s}


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="of the pack")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    model = resolve_model(MODEL)
    found = {}
    for name, again in (("kept", False), ("computed again", True)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[name] = pool.apply(updated, (model, arguments.tokens, again))
    if arguments.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for name, values in found.items():
        sys.stdout.write(
            f"{name}: {values['grown_mib']:,.0f} MiB ({values['grown_mib'] / found['kept']['grown_mib']:.2f}), "
            f"{values['processor_s']:.0f} s of processor time ({values['processor_s'] / found['kept']['processor_s']:.2f})\n"
        )


if __name__ == "__main__":
    main()
