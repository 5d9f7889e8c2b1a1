"""How weights reach generators over devices. Imports no torch: the driver makes the record, the ranks use it."""

from dataclasses import dataclass
from typing import Any, Literal

from actors.config import DType


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorLink:
    """Produced by `learners.run.composition`, consumed by `WeightSender`."""

    backend: Literal["nccl", "ipc"]
    generators: tuple[Any, ...]  # handles of Ray actors of a `DeviceFedGenerator`
    workers_per_generator: int  # devices of one engine
    dtype: DType  # what generators compute in
