"""The engines of a run: of one kind, or of several; with devices of their own, or shared with other roles."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from actors.config import GeneratorConfig, RewardModelScorerConfig, ScorerConfig
from cluster.config import StrictConfig
from learners.settings.policy import PolicyLearnerConfig

# An engine takes this much of its device when it has its turn; contexts of CUDA, those of the sleeping roles too, take the rest.
SHARED_ENGINE_DEFAULTS: dict[str, Any] = {"sleep_level": 1, "gpu_memory_utilization": 0.8}


class GeneratorsConfig(StrictConfig):
    """What a stage has that samples."""

    placement: Literal["separate", "shared"] = "separate"
    """separate: each role has devices of its own, or shares of them. shared: roles take turns on the same GPUs. Engines sleep
    (`generator.sleep_level`) and the others lie in host memory while they have no turn. Each role's `num_gpus` is then what Ray
    counts, and an engine with `gpu_memory_utilization` takes nearly the whole device when it has its turn."""
    generator: GeneratorConfig = GeneratorConfig()
    generators: tuple[GeneratorConfig, ...] = Field(())
    """Kinds of engines in the place of `generator`, each with a `name` of its own: one on two large GPUs and two on small ones,
    say. Each engine gets work in proportion to its max_num_sequences. They hold the same weights in the same dtype."""

    @property
    def generator_kinds(self) -> tuple[GeneratorConfig, ...]:
        """All of them. What they share is that of `generator`, too."""
        return self.generators or (self.generator,)

    @property
    def generator_sections(self) -> tuple[str, ...]:
        """Where each kind stands in the file."""
        return tuple(f"generators.{index}" for index in range(len(self.generators))) or ("generator",)

    @model_validator(mode="before")
    @classmethod
    def _defaults_follow_placement_and_list(cls, values: Any) -> Any:
        kinds = values.get("generators") if isinstance(values, dict) else None
        if isinstance(values, dict) and values.get("placement") == "shared" and isinstance(values.get("generator"), dict):
            values = {**values, "generator": SHARED_ENGINE_DEFAULTS | values["generator"]}
        if not kinds or not isinstance(kinds, list | tuple):  # what is no list is refused by the field
            return values
        if values.get("generator", kinds[0]) != kinds[0]:
            raise ValueError("generator and generators are both set; keep one of them")
        return {**values, "generator": kinds[0]}

    @model_serializer(mode="wrap")
    def _one_of_the_two(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if self.generators:
            del values["generator"]
        return values

    @model_validator(mode="after")
    def _kinds_go_together(self) -> Self:
        if not self.generators:
            return self
        problems = []
        names = [kind.name for kind in self.generators]
        if len(set(names)) < len(names):
            problems.append(f"generators: two kinds share a name: {names}; give each its own `name`")
        for key in ("dtype", "weight_transfer"):
            found = [str(kind.model_dump()[key]) for kind in self.generators]
            if len(set(found)) > 1:
                problems.append(f"generators: all kinds get the same weights in the same way, but {key} is {', '.join(found)}")
        if len(self.generators) > 1 and self.generator.weight_transfer == "ipc":
            problems.append("generators: weight_transfer=ipc ties each engine to a learner rank's GPU; use one kind, or shm")
        if problems:
            raise ValueError("; ".join(problems))
        return self


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
