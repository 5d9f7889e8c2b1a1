"""The learner's ranks behind the handle: a real Ray Train group on the tiny model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil
import pytest
from ray.util.placement_group import placement_group_table
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from cluster.errors import ActorLostError, DataError, LearnerRestartedError, RaywardError
from cluster.types import FloatArray, ScoredBatch, UpdateResult, WeightFile
from learners.policy.handle import LearnerFolders, PolicyLearnerHandle
from learners.policy.start import StartingPoint
from learners.ranks.mailbox import CheckpointPlan
from learners.settings.policy import PolicyLearnerConfig
from tests.records import without_the_first

ConfigBuilder = Callable[..., PolicyLearnerConfig]
BatchBuilder = Callable[..., ScoredBatch]
NUM_STEPS = 3


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


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeRun:
    """What one group was asked in turn. Several tests look at it, because each group starts for ten seconds."""

    updates: list[UpdateResult]
    logprobs: tuple[FloatArray, ...]
    kl: tuple[float, ...]
    policy_version: int
    weights: dict[str, Tensor]
    refusals: tuple[str, ...] = ()  # of calls at the end that cannot be answered


def _config(ppo_config: ConfigBuilder, num_workers: int, *, sharding: str = "none") -> PolicyLearnerConfig:
    return ppo_config(
        num_steps=NUM_STEPS,
        # The policy rests in the first step: with a decay it shows whether it does so on two ranks, too.
        critic={"kind": "own_model", "warmup_steps": 1},
        # An eps far above float32 rounding: Adam's quotient of two roundings would be a step of either sign.
        optimizer={"learning_rate": 1e-4, "weight_decay": 0.1, "eps": 1e-3},
        num_workers=num_workers,
        sharding=sharding,
    )


def _whole_run(learner: PolicyLearnerHandle, batches: list[ScoredBatch], folder: Path) -> WholeRun:
    assert "learner ranks cannot have their samples" in _refusal(partial(learner.submit, without_the_first(batches[0])))
    updates = [learner.submit(batch) for batch in batches]
    groups = batches[0].groups
    logprobs, kl = learner.completion_logprobs([scored.group for scored in groups]), learner.start_kl(groups)
    assert learner.export(folder / "policy", ()) == ""
    assert (folder / "policy" / "config.json").is_file()
    published = _published(learner)
    return WholeRun(
        updates=updates,
        logprobs=logprobs,
        kl=kl,
        policy_version=published.policy_version,
        weights=load_file(published.path),
    )


def _refusal(call: Callable[[], object]) -> str:
    with pytest.raises(RaywardError) as caught:
        call()
    return str(caught.value)


@pytest.fixture(scope="module")
def batches(scored_batch: BatchBuilder) -> list[ScoredBatch]:
    """Seven trajectories each: the last minibatch has three, and ranks get unequal shares."""
    return [scored_batch(7, step=step) for step in range(NUM_STEPS)]


@pytest.fixture(scope="module")
def one_rank(
    local_ray: None,
    tiny_model: str,
    ppo_config: ConfigBuilder,
    batches: list[ScoredBatch],
    tmp_path_factory: pytest.TempPathFactory,
) -> WholeRun:
    """Ends with a step that cannot be done, and one after it."""
    folder = tmp_path_factory.mktemp("one-rank")
    learner = _handle(tiny_model, _config(ppo_config, 1), folder)
    learner.start()
    run = _whole_run(learner, batches, folder)
    refused = (ScoredBatch(step=NUM_STEPS, groups=()), batches[0])
    return replace(run, refusals=tuple(_refusal(partial(learner.submit, batch)) for batch in refused))


@pytest.fixture(scope="module")
def two_ranks(
    local_ray: None,
    tiny_model: str,
    ppo_config: ConfigBuilder,
    batches: list[ScoredBatch],
    tmp_path_factory: pytest.TempPathFactory,
) -> WholeRun:
    """Ends as it should, and is asked once more."""
    folder = tmp_path_factory.mktemp("two-ranks")
    with _handle(tiny_model, _config(ppo_config, 2), folder) as learner:
        run = _whole_run(learner, batches, folder)
    return replace(run, refusals=(_refusal(learner.publish),))


def test_two_ranks_learn_what_one_rank_learns(one_rank: WholeRun, two_ranks: WholeRun) -> None:
    for name, tensor in one_rank.weights.items():
        assert_close(two_ranks.weights[name], tensor, atol=1e-6, rtol=0)
    for first, second in zip(one_rank.updates, two_ranks.updates, strict=True):
        timeless = {name: value for name, value in first.metrics.items() if not name.startswith("time/")}
        assert {name: second.metrics[name] for name in timeless} == pytest.approx(timeless, rel=1e-3, abs=1e-5)
    for first_row, second_row in zip(one_rank.logprobs, two_ranks.logprobs, strict=True):
        assert second_row == pytest.approx(first_row, abs=1e-4)
    assert two_ranks.kl == pytest.approx(one_rank.kl, abs=1e-4)
    assert one_rank.policy_version == two_ranks.policy_version == 2 * NUM_STEPS  # two minibatches a step


def test_a_failing_rank_is_reported_to_the_caller(one_rank: WholeRun) -> None:
    at_once, later = one_rank.refusals
    assert "every rollout of the step failed" in at_once
    assert "every rollout of the step failed" in later  # still the reason


def test_no_command_follows_the_end(two_ranks: WholeRun) -> None:
    (refusal,) = two_ranks.refusals
    assert "no call can follow" in refusal


@pytest.mark.parametrize(("sharding", "tolerance"), [("none", 0.0), ("full", 1e-6)])
def test_lost_ranks_go_on_from_the_newest_checkpoint(
    two_ranks: WholeRun,
    tiny_model: str,
    ppo_config: ConfigBuilder,
    batches: list[ScoredBatch],
    tmp_path: Path,
    sharding: str,
    tolerance: float,
) -> None:
    with _handle(tiny_model, _config(ppo_config, 2, sharding=sharding), tmp_path) as learner:
        assert learner.wait_until_ready() == 0
        learner.submit(batches[0])
        assert learner.save() is None
        saved = learner.finish_saving()
        assert saved is not None
        assert (saved.step, saved.problem) == (1, "")
        learner.submit(batches[1])
        kill_a_process("RayTrainWorker")
        with pytest.raises(LearnerRestartedError):
            learner.submit(batches[2])
        assert learner.wait_until_ready() == 1
        for step in (1, 2):
            learner.submit(batches[step])
        found = load_file(_published(learner).path)
    for name, tensor in two_ranks.weights.items():
        assert_close(found[name], tensor, atol=tolerance, rtol=0)


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
