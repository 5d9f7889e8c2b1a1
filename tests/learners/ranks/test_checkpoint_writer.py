"""A learner that was written down and read back is the learner that never stopped, to the last bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.errors import CannotResumeError
from cluster.storage.checkpoint import CheckpointFolder
from cluster.types import ScoredBatch
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.ranks.checkpoint import CheckpointWriter, LearnerSnapshot, read_snapshot
from learners.ranks.mailbox import CheckpointPlan
from learners.settings.policy import PolicyLearnerConfig

ConfigBuilder = Callable[..., PolicyLearnerConfig]
BatchBuilder = Callable[..., ScoredBatch]
FACTS = {"model": "abc", "seed": "0"}


def learner_of(model: str, config: PolicyLearnerConfig) -> PolicyLearner:
    start = StartingPoint(model_path=model, temperature=1.0, max_completion_tokens=8, samples_per_prompt=1, seed=0)
    return PolicyLearner(start, config)


@pytest.mark.numeric
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_frozen_layers": 1},
        {"critic": {"kind": "own_model", "whiten_returns": True}},
        {"kl": {"control": "adaptive", "refresh_reference_steps": 1}, "reward": {"normalise": True}},
        {"algorithm": "grpo", "optimizer": {"learning_rate": 1e-4, "warmup_steps": 3, "decay": "linear"}},
    ],
    ids=["ppo", "frozen", "own-critic", "adaptive-kl-moving-reference", "grpo"],
)
def test_a_resumed_learner_goes_on_bit_by_bit(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, tmp_path: Path, fields: dict[str, object]
) -> None:
    config = ppo_config(**fields, num_steps=4)
    batches = [scored_batch(step=step, group_size=2) for step in range(4)]
    unbroken = learner_of(tiny_model, config)
    for batch in batches[:2]:
        unbroken.update(batch)
    writer = CheckpointWriter(CheckpointPlan(directory=tmp_path, keep=1, facts=FACTS))
    assert writer.begin(2, unbroken.snapshot(), policy_version=unbroken.policy_version) is None
    expected = [unbroken.update(batch).metrics for batch in batches[2:]]  # while the checkpoint is written
    report = writer.finish()
    assert report is not None
    assert (report.step, report.problem) == (2, "")

    checkpoint = CheckpointFolder(tmp_path).newest_intact()
    assert checkpoint is not None
    resumed = learner_of(tiny_model, config)
    resumed.restore(read_snapshot(checkpoint))
    assert (resumed.num_steps_done, resumed.policy_version) == (2, 4)
    found = [resumed.update(batch).metrics for batch in batches[2:]]
    for before, after in zip(expected, found, strict=True):
        assert {name: value for name, value in after.items() if not name.startswith("time/")} == {
            name: value for name, value in before.items() if not name.startswith("time/")
        }
    assert_same(unbroken.snapshot(), resumed.snapshot())


def assert_same(first: LearnerSnapshot, second: LearnerSnapshot) -> None:
    assert first.numbers == second.numbers
    assert first.tensors.keys() == second.tensors.keys()
    assert [name for name, tensor in first.tensors.items() if not torch.equal(tensor, second.tensors[name])] == []


def test_a_checkpoint_of_another_shape_is_refused(tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder) -> None:
    learner = learner_of(tiny_model, ppo_config())
    learner.update(scored_batch())
    with pytest.raises(CannotResumeError, match="critic does not fit"):
        learner_of(tiny_model, ppo_config(critic={"kind": "own_model"})).restore(learner.snapshot())


def test_a_checkpoint_of_other_frozen_layers_is_refused_by_name(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder
) -> None:
    learner = learner_of(tiny_model, ppo_config())
    learner.update(scored_batch())
    refused = learner_of(tiny_model, ppo_config(num_frozen_layers=1))
    with pytest.raises(CannotResumeError, match=r"policy\.model\.\S+ was trained and is now frozen .*num_frozen_layers"):
        refused.restore(learner.snapshot())


def test_other_facts_are_refused_by_name(tmp_path: Path) -> None:
    writer = CheckpointWriter(CheckpointPlan(directory=tmp_path, keep=1, facts=FACTS))
    writer.begin(1, LearnerSnapshot(tensors={"a": torch.zeros(1)}, numbers={}), policy_version=1)
    writer.finish()
    checkpoint = CheckpointFolder(tmp_path).newest_intact()
    assert checkpoint is not None
    checkpoint.check_facts(FACTS)
    with pytest.raises(CannotResumeError, match="seed was 0, is 1"):
        checkpoint.check_facts({**FACTS, "seed": "1"})


def test_a_checkpoint_that_cannot_be_written_is_told_and_the_old_one_stays(tmp_path: Path) -> None:
    writer = CheckpointWriter(CheckpointPlan(directory=tmp_path, keep=2, facts=FACTS))
    snapshot = LearnerSnapshot(tensors={"a": torch.zeros(4)}, numbers={})
    writer.begin(1, snapshot, policy_version=1)
    broken = LearnerSnapshot(tensors=snapshot.tensors, numbers={"not a number": float("nan")})
    first = writer.begin(2, broken, policy_version=2)
    second = writer.begin(3, snapshot, policy_version=3)
    assert first is not None
    assert second is not None
    assert (first.step, first.problem) == (1, "")
    assert second.step == 2
    assert "ValueError" in second.problem
    writer.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000003"]


def test_a_damaged_checkpoint_of_a_later_step_never_costs_the_new_one(tmp_path: Path) -> None:
    snapshot = LearnerSnapshot(tensors={"a": torch.zeros(4)}, numbers={})
    writer = CheckpointWriter(CheckpointPlan(directory=tmp_path, keep=1, facts=FACTS))
    writer.begin(20, snapshot, policy_version=1)
    writer.finish()
    (tmp_path / "step-000020" / "learner.json").unlink()
    writer.begin(15, snapshot, policy_version=1)  # training went on from an older one
    writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000015"]
