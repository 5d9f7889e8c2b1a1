"""The engines of a run: of one kind, or of several."""

from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from actors.config import GeneratorConfig
from cluster.config import StrictConfig

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
