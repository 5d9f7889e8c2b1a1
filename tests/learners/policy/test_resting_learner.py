"""A learner that leaves its device and comes back: nothing else changes. On a CPU both are the same memory; see tests/gpu."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.types import ScoredBatch, WeightFile
from learners.network.residence import HOST, move_state
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.settings.policy import PolicyLearnerConfig

METHODS: dict[str, dict[str, Any]] = {
    "own critic": {"critic": {"kind": "own_model"}},
    "grpo with a moving reference": {"algorithm": "grpo", "kl": {"coef": 0.1, "refresh_reference_steps": 1}},
    "frozen layer": {"num_frozen_layers": 1},
}


def learner_of(model: str, config: PolicyLearnerConfig, *, takes_turns: bool) -> PolicyLearner:
    start = StartingPoint(
        model_path=model,
        temperature=1.0,
        max_completion_tokens=8,
        samples_per_prompt=1,
        seed=0,
        takes_turns=takes_turns,
    )
    return PolicyLearner(start, config)


@pytest.mark.parametrize("method", METHODS)
def test_turns_change_no_bit_of_what_is_learned(
    tiny_model: str,
    tmp_path: Path,
    ppo_config: Callable[..., PolicyLearnerConfig],
    scored_batch: Callable[..., ScoredBatch],
    method: str,
) -> None:
    config = ppo_config(**METHODS[method])
    plain, turning = (learner_of(tiny_model, config, takes_turns=each) for each in (False, True))
    for step in range(2):
        batch = scored_batch(8, step=step, group_size=2)
        turning.move_to(turning.device)
        plain.update(batch)
        turning.update(batch)
        turning.move_to(HOST)
    published = [learner.publish(tmp_path / str(number), "float32") for number, learner in enumerate((plain, turning))]
    assert all(isinstance(each, WeightFile) for each in published)
    assert len({each.checksum for each in published}) == 1
    snapshots = plain.snapshot().tensors, turning.snapshot().tensors
    assert snapshots[0].keys() == snapshots[1].keys()
    assert [name for name, tensor in snapshots[0].items() if not tensor.equal(snapshots[1][name])] == []


def test_everything_that_a_learner_holds_moves(
    tiny_model: str, ppo_config: Callable[..., PolicyLearnerConfig], scored_batch: Callable[..., ScoredBatch]
) -> None:
    """The meta device stands for another one: it takes tensors, and keeps no number."""
    learner = learner_of(tiny_model, ppo_config(algorithm="grpo", kl={"coef": 0.1}), takes_turns=True)
    learner.update(scored_batch(8, group_size=2))
    move_state(learner._modules, learner._optimizer, torch.device("meta"))
    network, reference = learner._network, learner._reference
    assert isinstance(reference, torch.nn.Module)
    tensors = [*network.parameters(), *network.buffers(), *reference.parameters(), *reference.buffers()]
    moments = [each for state in learner._optimizer._adamw.state.values() for each in state.values()]
    assert moments
    assert {each.device.type for each in [*tensors, *moments]} == {"meta"}
