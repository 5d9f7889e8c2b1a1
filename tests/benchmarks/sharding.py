"""Peak memory of a learner's rank: the model in parts on all ranks, against the whole of it on each.

Run: python -m tests.benchmarks.sharding [--ranks 4] [--json]. Prints ratios; below 1 a sharded rank takes less. Each rank makes
two updates of PPO with a value head and a reference on SmolLM2-135M in float32, on batches and packs so small that activations
hardly count. Tensors: parameters, gradients and moments after the second update, added up. Resident: the highest that the
process reached; and that above what it took after the same on a model of 0.5 MiB, which loads all that a library loads late.
"""

import argparse
import gc
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from actors.sources.models import resolve_model
from learners.network.models import Reference
from learners.network.sharding import local_part
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.settings.policy import PolicyLearnerConfig
from tests.benchmarks.random_batch import random_batch
from tests.learners.process_ranks import ProcessRanks

SMALL_MODEL, MODEL = "tiny", "smollm2-135m-instruct"
NUM_TRAJECTORIES, NUM_TOKENS = 8, 8  # tokens of each prompt and of each completion
BYTES_PER_MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """Bytes of one rank."""

    resident: int
    resident_of_model: int
    tensors: int


def memory_of_updates(rank: int, num_ranks: int, small_model: str, model: str, sharding: str) -> RankMemory:
    updated(rank, num_ranks, small_model, sharding)
    gc.collect()
    before = _status_bytes("VmRSS")
    learner = updated(rank, num_ranks, model, sharding)
    highest = _status_bytes("VmHWM")
    assert isinstance(learner._reference, Reference)
    parameters = [*learner._network.parameters(), *learner._reference.parameters()]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    tensors = [*parameters, *gradients, *learner._optimizer.state().values()]
    return RankMemory(
        resident=highest,
        resident_of_model=highest - before,
        tensors=sum(local_part(tensor).numel() * tensor.element_size() for tensor in tensors),
    )


def updated(rank: int, num_ranks: int, model: str, sharding: str) -> PolicyLearner:
    """A learner after two updates."""
    workers = {"num_workers": num_ranks, "sharding": sharding, "num_threads": 1, "compute_dtype": "float32"}
    workers |= {"micro_batch_tokens": 2 * NUM_TOKENS, "logprob_chunk_tokens": NUM_TOKENS}
    fields = {"num_steps": 2, "prompts_per_step": NUM_TRAJECTORIES, "minibatch_size": NUM_TRAJECTORIES, "workers": workers}
    config = PolicyLearnerConfig.model_validate(fields)
    start = StartingPoint(model_path=model, temperature=1.0, max_completion_tokens=NUM_TOKENS, samples_per_prompt=1, seed=0)
    learner = PolicyLearner(start, config, rank=rank, world_size=num_ranks)
    for step in range(2):
        learner.update(random_batch(step, lengths=[2 * NUM_TOKENS] * NUM_TRAJECTORIES))
    return learner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    models = resolve_model(SMALL_MODEL), resolve_model(MODEL)
    largest = {}
    for sharding in ("full", "none"):
        with ProcessRanks(arguments.ranks) as ranks:  # new ones: a process's highest never comes down
            found = [asdict(memory) for memory in ranks.run(memory_of_updates, arguments.ranks, *models, sharding)]
        largest[sharding] = {name: max(memory[name] for memory in found) for name in found[0]}
    sharded, replicated = largest["full"], largest["none"]
    ratios = {name: sharded[name] / replicated[name] for name in sharded}
    if arguments.json:
        sys.stdout.write(json.dumps({"sharded": sharded, "replicated": replicated, "ratios": ratios}) + "\n")
        return
    for name, ratio in ratios.items():
        in_parts, whole = sharded[name] / BYTES_PER_MIB, replicated[name] / BYTES_PER_MIB
        sys.stdout.write(f"{name}: {in_parts:.0f} MiB a rank sharded, {whole:.0f} MiB replicated, ratio {ratio:.2f}\n")


def _status_bytes(name: str) -> int:
    """Of this process, from the kernel."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


if __name__ == "__main__":
    main()
