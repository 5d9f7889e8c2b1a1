"""What roles must be like that take turns on the same devices."""

from collections.abc import Sequence

from actors.config import GeneratorConfig, RewardModelScorerConfig, ScorerConfig
from learners.settings.policy import PolicyLearnerConfig


def sharing_problems(
    kinds: Sequence[GeneratorConfig], learner: PolicyLearnerConfig, scorers: Sequence[ScorerConfig]
) -> list[str]:
    """Of placement=shared."""
    generator, workers = kinds[0], learner.workers
    if generator.num_gpus == 0 or workers.num_gpus == 0:
        return [
            "placement=shared lets roles take turns on GPUs, and vLLM's engines sleep on no other device, but generator.num_gpus="
            f"{generator.num_gpus:g} and learner.workers.num_gpus={workers.num_gpus:g}; on CPUs use separate, whose roles share "
            "memory and cores anyway"
        ]
    problems = []
    if len(kinds) > 1 or generator.num_replicas != workers.num_workers or generator.largest != generator.num_replicas:
        problems.append(
            f"placement=shared puts one engine and one rank on each GPU, but there are {len(kinds)} kinds of engines, "
            f"generator.num_replicas={generator.num_replicas} (at most {generator.largest}) and learner.workers.num_workers="
            f"{workers.num_workers}; make them equal, of one kind, without max_replicas"
        )
    others = sum(each.num_replicas * each.num_gpus for each in scorers if isinstance(each, RewardModelScorerConfig))
    if not (
        0.5 < generator.num_gpus < 1
        and generator.num_gpus + workers.num_gpus <= 1
        and generator.num_gpus + 2 * workers.num_gpus > 1
        and others <= workers.num_workers * (1 - generator.num_gpus - workers.num_gpus) + 1e-9
    ):
        problems.append(
            f"placement=shared tells Ray by shares who is on a GPU: more than half for an engine, the rest for a rank and its "
            f"scorers, but generator.num_gpus={generator.num_gpus:g}, learner.workers.num_gpus={workers.num_gpus:g}, scorers "
            f"together {others:g}; 0.6 and 0.3 leave 0.1 of each for scorers"
        )
    unfit = {
        f"generator.weight_transfer={generator.weight_transfer}": generator.weight_transfer != "shm",  # both on the device
        f"learner.workers.sharding={workers.sharding}": workers.sharding != "none",
        "learner.lora": learner.lora is not None,  # an engine is asked about an adapter before its cache is awake
    }
    problems += [f"placement=shared does not go with {name}; take it out" for name, is_set in unfit.items() if is_set]
    return problems
