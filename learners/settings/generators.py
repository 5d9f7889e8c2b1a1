"""The engines of a run: of one kind, or of several."""

from typing import Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from actors.config import GeneratorConfig
from cluster.config import StrictConfig


class GeneratorsConfig(StrictConfig):
    """What a stage has that samples."""

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
    def _what_kinds_share_is_that_of_the_first(cls, values: Any) -> Any:
        kinds = values.get("generators") if isinstance(values, dict) else None
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
