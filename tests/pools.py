"""Pools of generators for tests."""

from typing import Any

from actors.generation.rollout_pool import GeneratorKind, RolloutPool


def pool_of(actor: Any, *, max_num_sequences: int) -> RolloutPool:
    """Of one generator that is there already; unsupervised, so that its loss is an error."""
    kind = GeneratorKind(start=lambda name: actor, num_replicas=1, max_num_sequences=max_num_sequences)
    return RolloutPool([kind], supervision=None, note=print)
