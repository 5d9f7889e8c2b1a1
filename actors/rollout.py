"""The rollout stage, driver side: completions from a pool of generators, and new weights into it."""

from collections.abc import Iterator, Sequence
from typing import Any

from actors.generator import HeldWeights
from cluster.errors import WeightMismatchError
from cluster.pool import ActorPool
from cluster.types import Prompt, PublishedWeights, SamplingParameters, TrajectoryGroup

QUEUE_FACTOR = 2  # batches' worth of prompts at each engine, so that it never waits for the driver


class RolloutPool:
    """Generators of like configuration behind two calls. `generators` holds Ray actors of a `Generator`."""

    def __init__(self, generators: ActorPool[Any], *, max_num_sequences: int) -> None:
        self._generators = generators
        self._max_num_sequences = max_num_sequences

    def wait_until_ready(self) -> None:
        """Return when every engine answers; raises with the name of one that does not start."""
        self._generators.broadcast(lambda generator: generator.ready.remote())

    def collect(self, prompts: Sequence[Prompt], sampling: SamplingParameters) -> Iterator[TrajectoryGroup]:
        """Yield one group a prompt, in order of completion, so that scoring starts while others generate."""
        max_in_flight = max(1, QUEUE_FACTOR * self._max_num_sequences // sampling.samples_per_prompt)
        results = self._generators.map_unordered(
            lambda generator, prompt: generator.generate.remote(prompt, sampling), prompts, max_in_flight=max_in_flight
        )
        for _, group in results:
            yield group

    def publish(self, weights: PublishedWeights) -> None:
        """Load `weights` into every generator; returns only when all of them report this version and this checksum."""
        self._generators.broadcast(lambda generator: generator.load_weights.remote(weights))
        held_by_name: dict[str, HeldWeights] = self._generators.broadcast(lambda generator: generator.held_weights.remote())
        expected = HeldWeights(policy_version=weights.policy_version, checksum=weights.checksum)
        differing = {name: held for name, held in held_by_name.items() if held != expected}
        if differing:
            raise WeightMismatchError(f"published {expected}, but generators hold {differing}; restart those generators")

    def shutdown(self) -> None:
        """Stop the engines; the actors themselves stay until Ray ends them."""
        self._generators.broadcast(lambda generator: generator.shutdown.remote())
