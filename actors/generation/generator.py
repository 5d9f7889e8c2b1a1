"""What the driver asks of a generator, whatever engine it runs."""

from dataclasses import dataclass
from typing import Protocol

from cluster.types import Prompt, PublishedWeights, SamplingParameters, TrajectoryGroup

INITIAL_CHECKSUM = ""  # of version 0: the weights of the model folder, which nobody published


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldWeights:
    """The weights that an engine samples from. Produced by a generator, consumed by `RolloutPool.publish`."""

    policy_version: int  # the engine's own label
    checksum: str  # of the `PublishedWeights` that were taken over; INITIAL_CHECKSUM for version 0


class Generator(Protocol):
    """Makes completions. Lives in a Ray actor; every method may be called while others run."""

    async def ready(self) -> int:
        """The policy version, once the engine answers."""

    async def generate(self, prompt: Prompt, sampling: SamplingParameters) -> TrajectoryGroup:
        """`sampling.samples_per_prompt` trajectories of one prompt; requests that failed alone are among its `failures`."""

    async def progress(self) -> int:
        """A number that changes whenever the engine has done a step."""

    async def load_weights(self, weights: PublishedWeights) -> int:
        """Take over published weights; returns the policy version now held. Raises `WeightMismatchError`, the old ones kept."""

    async def held_weights(self) -> HeldWeights:
        """Version and checksum of the weights held."""

    async def shutdown(self) -> None:
        """Stop the engine and its processes."""
