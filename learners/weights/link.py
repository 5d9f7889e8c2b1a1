"""How weights reach generators over devices. Imports no torch: the driver makes the record, the ranks use it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from actors.config import DType


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorLink:
    """Produced by `PolicyLearnerHandle`, consumed by `WeightSender`."""

    epoch: int  # 1, 2, ...: a link is made anew whenever a rank or a generator was lost; generators refuse older ones
    backend: Literal["nccl", "ipc"]
    generators: tuple[Any, ...]  # handles of Ray actors of a `DeviceFedGenerator`
    dtype: DType  # what generators compute in
    deadline_s: float  # for each call to a generator, which may have to finish its running requests first


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPlan:
    """Produced by `learners.run.composition`, consumed by `PolicyLearnerHandle`, which makes links of it."""

    backend: Literal["nccl", "ipc"]
    generators: Callable[[], tuple[Any, ...]]  # those that take work now
    dtype: DType
    deadline_s: float

    def link(self, epoch: int, generators: tuple[Any, ...]) -> GeneratorLink:
        """A link to these generators."""
        return GeneratorLink(
            epoch=epoch,
            backend=self.backend,
            generators=generators,
            dtype=self.dtype,
            deadline_s=self.deadline_s,
        )
