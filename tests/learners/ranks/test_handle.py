"""The learner's ranks behind the handle: a real Ray Train group on the tiny model."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from ray.util.placement_group import placement_group_table
from safetensors.torch import load_file
from torch.testing import assert_close

from cluster.errors import ActorLostError, DataError, LearnerRestartedError, RaywardError
from cluster.types import ScoredBatch, WeightFile
from learners.policy.handle import LearnerFolders, PolicyLearnerHandle
from learners.policy.start import StartingPoint
from learners.ranks.mailbox import CheckpointPlan
from learners.settings.policy import PolicyLearnerConfig

ConfigBuilder = Callable[..., PolicyLearnerConfig]
BatchBuilder = Callable[..., ScoredBatch]


def _handle(model: str, config: PolicyLearnerConfig, folder: Path) -> PolicyLearnerHandle:
    folders = LearnerFolders(storage=folder / "storage", weights=folder / "weights", weights_dtype="float32")
    return PolicyLearnerHandle(
        StartingPoint(model_path=model, temperature=1.0, max_completion_tokens=8, samples_per_prompt=1, seed=0),
        config,
        folders,
        CheckpointPlan(directory=folder / "checkpoints", keep=2, facts={"seed": "0"}),
    )


def _published(learner: PolicyLearnerHandle) -> WeightFile:
    weights = learner.publish()
    assert isinstance(weights, WeightFile)
    return weights


@pytest.mark.usefixtures("local_ray")
def test_two_ranks_learn_what_one_rank_learns(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, tmp_path: Path
) -> None:
    fields = {
        # The policy rests in the first step: with a decay it shows whether it does so on two ranks, too.
        "critic": {"kind": "own_model", "warmup_steps": 1},
        # An eps far above float32 rounding: Adam's quotient of two roundings would be a step of either sign.
        "optimizer": {"learning_rate": 1e-4, "weight_decay": 0.1, "eps": 1e-3},
    }
    results = []
    for num_workers in (1, 2):
        # Seven trajectories: the last minibatch has three, and ranks get unequal shares.
        with _handle(tiny_model, ppo_config(**fields, num_workers=num_workers), tmp_path / str(num_workers)) as learner:
            updates = [learner.submit(scored_batch(7, step=step)) for step in range(2)]
            trajectories = [scored.group.trajectories[0] for scored in scored_batch(7).groups]
            logprobs = learner.completion_logprobs(trajectories)
            kl = learner.start_kl(trajectories)
            assert learner.export(tmp_path / str(num_workers) / "policy", ()) == ""
            published = _published(learner)
            results.append((updates, logprobs, kl, load_file(published.path)))
            assert published.policy_version == 4
    (one_updates, one_logprobs, one_kl, one), (two_updates, two_logprobs, two_kl, two) = results
    for name, tensor in one.items():
        assert_close(two[name], tensor, atol=1e-6, rtol=0)
    for first, second in zip(one_updates, two_updates, strict=True):
        timeless = {name: value for name, value in first.metrics.items() if not name.startswith("time/")}
        assert {name: second.metrics[name] for name in timeless} == pytest.approx(timeless, rel=1e-3, abs=1e-5)
    for first_row, second_row in zip(one_logprobs, two_logprobs, strict=True):
        assert second_row == pytest.approx(first_row, abs=1e-4)
    assert two_kl == pytest.approx(one_kl, abs=1e-4)
    assert (tmp_path / "2" / "policy" / "config.json").is_file()


@pytest.mark.usefixtures("local_ray")
def test_a_failing_rank_is_reported_to_the_caller(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, tmp_path: Path
) -> None:
    learner = _handle(tiny_model, ppo_config(), tmp_path)
    learner.start()
    with pytest.raises(RaywardError, match="every rollout of the step failed"):
        learner.submit(ScoredBatch(step=0, groups=()))
    with pytest.raises(RaywardError, match="every rollout of the step failed"):  # still the reason
        learner.submit(scored_batch())


@pytest.mark.usefixtures("local_ray")
def test_lost_ranks_go_on_from_the_newest_checkpoint(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, tmp_path: Path
) -> None:
    with _handle(tiny_model, ppo_config(num_workers=2, num_steps=3), tmp_path / "broken") as learner:
        assert learner.wait_until_ready() == 0
        learner.submit(scored_batch(step=0))
        assert learner.save() is None
        saved = learner.finish_saving()
        assert saved is not None
        assert (saved.step, saved.problem) == (1, "")
        learner.submit(scored_batch(step=1))
        kill_a_process("RayTrainWorker")
        with pytest.raises(LearnerRestartedError):
            learner.submit(scored_batch(step=2))
        assert learner.wait_until_ready() == 1
        for step in (1, 2):
            learner.submit(scored_batch(step=step))
        found = load_file(_published(learner).path)
    with _handle(tiny_model, ppo_config(num_workers=2, num_steps=3), tmp_path / "unbroken") as learner:
        for step in range(3):
            learner.submit(scored_batch(step=step))
        expected = load_file(_published(learner).path)
    for name, tensor in expected.items():
        assert_close(found[name], tensor, atol=0, rtol=0)


def kill_a_process(title: str) -> None:
    """The last one started of those whose title holds `title`."""
    found = [process for process in psutil.Process().children(recursive=True) if title in " ".join(process.cmdline())]
    max(found, key=lambda process: process.create_time()).kill()


@pytest.mark.faults
@pytest.mark.usefixtures("local_ray")
def test_what_ranks_run_in_is_started_anew(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, tmp_path: Path
) -> None:
    to_kill = ["ray::Mailbox", "ray::TrainController", "ray::ray train: learner"]
    num_restarts = 0
    with _handle(tiny_model, ppo_config(num_steps=6), tmp_path) as learner:
        num_done = learner.wait_until_ready()
        while num_done < 6:
            try:
                learner.submit(scored_batch(step=num_done))
                num_done += 1
                learner.save()
                if num_done % 2 and to_kill:
                    kill_a_process(to_kill.pop())
            except LearnerRestartedError:
                num_restarts += 1
                num_done = learner.wait_until_ready()
        published = learner.publish()
        reserved = [each for each in placement_group_table().values() if each["state"] != "REMOVED"]
    assert num_restarts == 3
    assert len(reserved) == 1  # those of the groups before are given back
    assert published.policy_version == 12  # two optimizer steps for each of the six, none of them twice


@pytest.mark.usefixtures("local_ray")
def test_no_command_follows_the_end(tiny_model: str, ppo_config: ConfigBuilder, tmp_path: Path) -> None:
    with _handle(tiny_model, ppo_config(), tmp_path) as learner:
        pass
    with pytest.raises(RaywardError, match="no call can follow"):
        learner.publish()


@pytest.mark.usefixtures("local_ray")
def test_a_model_that_does_not_load_is_reported_at_the_start(ppo_config: ConfigBuilder, tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="nowhere cannot be loaded"),
        _handle(str(tmp_path / "nowhere"), ppo_config(), tmp_path) as learner,
    ):
        learner.wait_until_ready()


@pytest.mark.usefixtures("local_ray")
def test_ranks_that_do_not_come_are_lost_by_their_deadline(tiny_model: str, ppo_config: ConfigBuilder, tmp_path: Path) -> None:
    config = ppo_config(start_deadline_s=0.5, max_restarts=1)  # Ray Train alone takes longer
    with (
        pytest.raises(ActorLostError, match="within 0.5 s: .* raise learner.workers.start_deadline_s"),
        _handle(tiny_model, config, tmp_path) as learner,
    ):
        wait_again(learner)
    reserved = [each for each in placement_group_table().values() if each["state"] != "REMOVED"]
    assert reserved == []


def wait_again(learner: PolicyLearnerHandle) -> None:
    with pytest.raises(LearnerRestartedError, match="the learner has not come: .* it has started again"):
        learner.wait_until_ready()
    learner.wait_until_ready()
