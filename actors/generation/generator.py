"""What the driver asks of a generator, whatever engine it runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cluster.types import GroupTexts, Prompt, PublishedWeights, Sample, SamplingParameters, TrajectoryTokens

INITIAL_CHECKSUM = ""  # of version 0: the weights of the model folder, which nobody published


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldWeights:
    """The weights that an engine samples from. Produced by a generator, consumed by `RolloutPool.publish`."""

    policy_version: int  # the engine's own label
    checksum: str  # of the `PublishedWeights` that were taken over; INITIAL_CHECKSUM for version 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupNumbers:
    """What the driver needs to know of one prompt's samples."""

    samples: tuple[Sample, ...]  # [G], in order of sample_index; those that failed are missing
    failures: Mapping[int, str]  # sample_index -> why the engine gave no completion for it


class Generated(NamedTuple):
    """What one prompt came to. Three objects of Ray: only the first goes to the driver, the others to those who read them."""

    numbers: GroupNumbers
    texts: GroupTexts
    tokens: tuple[TrajectoryTokens, ...]  # [G]


class Generator(Protocol):
    """Makes completions. Lives in a Ray actor; every method may be called while others run."""

    async def ready(self) -> int:
        """The policy version, once the engine answers."""

    async def generate(self, prompt: Prompt, sampling: SamplingParameters) -> Generated:
        """`sampling.samples_per_prompt` trajectories of one prompt; requests that failed alone are among the failures."""

    async def progress(self) -> int:
        """A number that changes whenever the engine has done a step."""

    async def load_weights(self, weights: PublishedWeights) -> int:
        """Take over published weights; returns the policy version now held. Raises `WeightMismatchError`, the old ones kept."""

    async def held_weights(self) -> HeldWeights:
        """Version and checksum of the weights held."""

    async def shutdown(self) -> None:
        """Stop the engine and its processes."""
