"""The stages of a policy run with fakes for its roles: ranks that are lost outside of a step do not end the run."""

import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from cluster.display.view import build_view
from cluster.errors import BatchLostError, LearnerRestartedError, RaywardError
from cluster.messages import Message
from cluster.processes.interrupts import Interrupts
from cluster.storage.ledger import read_ledger
from cluster.storage.metrics import MetricsLog
from cluster.storage.run_directory import RunDirectory, read_summary
from cluster.storage.serving_contract import ContractText
from cluster.types import (
    FloatArray,
    Prompt,
    PublishedWeights,
    Reward,
    SamplingParameters,
    ScoredBatch,
    ScoredGroup,
    SentWeights,
    Task,
    TrajectoryGroup,
    UpdateResult,
)
from learners.run import policy_stage
from learners.run.composition import Roles
from learners.run.policy_stage import POLICY_STAGES, align_policy
from learners.run.prompt_loading import RunPrompts
from learners.run.session import Session
from learners.settings.run import PolicyRunConfig, load_run_config
from tests.records import completion, group_of

CONFIG = Path(policy_stage.__file__).parents[2] / "configs" / "train" / "tiny.yaml"
OVERRIDES = ["learner.num_steps=2", "learner.prompts_per_step=2", "learner.minibatch_size=4", "evaluation.every_num_steps=1"]


def _prompt(index: int) -> Prompt:
    task = Task(task_id=f"task-{index}", messages=(Message(role="user", content="go"),))
    return Prompt(task=task, text="go", token_ids=(1,))


class Rollouts:
    """One completion of one token, with the log-probability that the learner gives it."""

    def __init__(self) -> None:
        self.version = 0

    def wait_until_ready(self) -> None: ...

    def num_replicas(self, kind: str) -> int:
        return 1

    def num_coming(self, kind: str) -> int:
        return 0

    def resize(self, kind: str, number: int) -> None:
        raise AssertionError("the run has as many as it may have")

    def pending(self) -> list[Any]:
        return []

    def publish(self, weights: PublishedWeights) -> None:
        self.version = weights.policy_version

    def collect(self, prompts: Sequence[Prompt], sampling: SamplingParameters) -> Generator[TrajectoryGroup, None, None]:
        for prompt in prompts:
            yield group_of(prompt, {0: completion(1, text="x")}, policy_version=self.version)


class Scorers:
    def wait_until_ready(self) -> None: ...

    def num_replicas(self, name: str) -> int:
        return 1

    def num_coming(self, name: str) -> int:
        return 0

    def resize(self, name: str, number: int) -> None:
        raise AssertionError("the run has as many as it may have")

    def pending(self) -> list[Any]:
        return []

    def score_stream(self, groups: Iterable[TrajectoryGroup | None]) -> Iterator[ScoredGroup]:
        for group in groups:
            assert group is not None
            yield ScoredGroup(group=group, rewards=(Reward(total=1.0, breakdown={"length": 1.0}),))


class Learner:
    """Loses its ranks once at the n-th call of one method, and comes back without the steps that are not saved."""

    def __init__(self, lost_in: str, at_call: int) -> None:
        self._lost_in, self._calls_to_go = lost_in, at_call
        self._num_done = self._num_saved = 0
        self.is_disk_full = False

    def pending(self) -> list[Any]:
        return []

    def wait_until_ready(self) -> int:
        self._count("wait_until_ready")
        return self._num_done

    def completion_logprobs(self, groups: Sequence[TrajectoryGroup]) -> tuple[FloatArray, ...]:
        self._count("completion_logprobs")
        return tuple(tokens.rollout_logprobs for group in groups for tokens in group.tokens.fetch())

    def start_kl(self, groups: Sequence[ScoredGroup]) -> tuple[float, ...]:
        self._count("start_kl")
        return (0.0,) * sum(len(scored.samples) for scored in groups)

    def publish(self) -> PublishedWeights:
        return SentWeights(policy_version=self._num_done, checksum="0")

    def submit(self, batch: ScoredBatch) -> UpdateResult:
        self._num_done = batch.step + 1
        return UpdateResult(policy_version=self._num_done, metrics={})

    def save(self) -> None:
        self._num_saved = self._num_done

    def finish_saving(self) -> None: ...

    def export(self, folder: Path, texts: Sequence[ContractText]) -> str:
        self._count("export")
        if self.is_disk_full:
            return "no space is left"
        folder.mkdir(parents=True)
        (folder / "texts").write_text(json.dumps([text.text for text in texts]))
        return ""

    def _count(self, method: str) -> None:
        self._calls_to_go -= method == self._lost_in
        if self._calls_to_go == 0:
            self._calls_to_go = -1
            self._num_done = self._num_saved
            raise LearnerRestartedError("the ranks were lost")


def _align(folder: Path, monkeypatch: pytest.MonkeyPatch, learner: Learner, overrides: Sequence[str] = ()) -> Session:
    config = load_run_config(CONFIG, [*OVERRIDES, *overrides])
    assert isinstance(config, PolicyRunConfig)
    roles = Roles(rollouts=Rollouts(), scoring=Scorers(), learner=learner)  # type: ignore[arg-type]
    monkeypatch.setattr(policy_stage, "start_roles", lambda *given: roles)
    prompts = RunPrompts(
        model_path="tiny",
        train=tuple(_prompt(index) for index in range(6)),
        held_out=tuple(_prompt(index) for index in range(6, 10)),
        contract=(ContractText(text="go on", token_ids=(1, 2)),),
        note="",
    )
    with (
        RunDirectory.create(folder, "run") as directory,
        build_view(POLICY_STAGES, directory.path, Console(quiet=True)) as view,
        MetricsLog(directory.path / "metrics.jsonl", directory.path / "tensorboard") as metrics,
    ):
        session = Session(directory, view, metrics, Interrupts(), SimpleNamespace(is_local=True), stall_s=600.0)  # type: ignore[arg-type]
        align_policy(session, config, prompts, SimpleNamespace(begin=lambda path: None))  # type: ignore[arg-type]
    return session


@pytest.mark.parametrize(
    ("lost_in", "at_call"),
    [
        ("wait_until_ready", 1),
        ("completion_logprobs", 1),  # the contract of log-probabilities
        ("start_kl", 1),  # the evaluation before
        ("start_kl", 2),  # the one after the first step
        ("start_kl", 3),  # the evaluation after
        ("export", 1),
    ],
)
def test_ranks_lost_outside_of_a_step_do_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost_in: str, at_call: int
) -> None:
    path = _align(tmp_path, monkeypatch, Learner(lost_in, at_call)).path
    assert [entry.step for entry in read_ledger(path / "trajectories")] == [0, 0, 1, 1]
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "stage" not in line] == [0, 1]
    assert {line["step"] for line in lines if line.get("stage") == "evaluation"} == {0, 1, 2}
    assert (path / "policies" / "v000002").is_dir()
    assert "after" in json.loads((path / "summary.json").read_text())


class LearnerWithoutSamples(Learner):
    """Keeps its ranks, but cannot have the samples of that call."""

    def _count(self, method: str) -> None:
        self._calls_to_go -= method == self._lost_in
        if self._calls_to_go == 0:
            self._calls_to_go = -1
            raise BatchLostError("1 of 1 learner ranks cannot have their samples any more")


@pytest.mark.parametrize(("lost_in", "at_call"), [("completion_logprobs", 1), ("start_kl", 1), ("start_kl", 2), ("start_kl", 3)])
def test_samples_lost_outside_of_a_step_are_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost_in: str, at_call: int
) -> None:
    path = _align(tmp_path, monkeypatch, LearnerWithoutSamples(lost_in, at_call)).path
    assert [entry.step for entry in read_ledger(path / "trajectories")] == [0, 0, 1, 1]
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("stage") == "evaluation"] == [0, 1, 2]


NO_LOSS = ("export", -1)


@pytest.mark.parametrize(
    ("overrides", "versions"),
    [
        ([], [5]),
        (["export.every_num_steps=2"], [2, 4, 5]),
        (["export.every_num_steps=1"], [3, 4, 5]),
        (["export.every_num_steps=1", "export.keep=2"], [4, 5]),
    ],
)
def test_policies_are_exported_on_the_way_and_the_newest_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], versions: list[int]
) -> None:
    path = _align(tmp_path, monkeypatch, Learner(*NO_LOSS), ["learner.num_steps=5", *overrides]).path
    assert sorted(folder.name for folder in (path / "policies").iterdir()) == [f"v{version:06d}" for version in versions]
    summary = read_summary(path)
    assert (summary["exported_versions"], summary["policy_version"]) == (versions, 5)
    assert json.loads((path / "policies" / "v000005" / "texts").read_text()) == ["go on"]


def test_extra_prompts_are_asked_and_what_was_cut_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _align(tmp_path, monkeypatch, Learner(*NO_LOSS), ["extra_prompts_per_step=3"]).path
    entries = list(read_ledger(path / "trajectories"))
    assert [sum(entry.outcome == outcome for entry in entries) for outcome in ("trained", "cut")] == [
        4,
        2 * 3 * 2,
    ]  # steps, prompts, samples
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["rollout/cut_prompts"] for line in lines if "stage" not in line] == [3, 3]


def test_ranks_lost_in_an_export_on_the_way_do_their_step_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _align(tmp_path, monkeypatch, Learner("export", 1), ["export.every_num_steps=1"]).path
    assert read_summary(path)["exported_versions"] == [1, 2]


def test_training_goes_on_without_an_export_but_does_not_end_without_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner(*NO_LOSS)
    learner.is_disk_full = True
    with pytest.raises(RaywardError, match="no space is left"):
        _align(tmp_path, monkeypatch, learner, ["export.every_num_steps=1"])
    assert [entry.step for entry in read_ledger(tmp_path / "run" / "trajectories")] == [0, 0, 1, 1]
    assert "policy_version" not in read_summary(tmp_path / "run")
