"""The loop that does not wait: who may work on what, and that the records are those of a loop that waits."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from cluster.errors import LearnerRestartedError, SamplesLostError
from cluster.messages import Message
from cluster.processes.interrupts import Interrupts
from cluster.storage.ledger import TrajectoryLedger, audit_ledger, read_ledger
from cluster.storage.ledger_writer import LedgerWriter
from cluster.storage.metrics import MetricsLog
from cluster.types import (
    Prompt,
    PublishedWeights,
    Reward,
    Sample,
    SamplingParameters,
    SaveReport,
    ScoredBatch,
    ScoredGroup,
    SentWeights,
    Stretch,
    Task,
    TrajectoryGroup,
    UpdateResult,
)
from learners.steps.async_driver import AsyncDriver, staleness_metrics
from learners.steps.driver import Records
from learners.steps.lookahead import Lookahead
from learners.steps.prompt_schedule import PromptSchedule
from tests.records import completion, group_of

SAMPLING = SamplingParameters(temperature=1.0, top_p=1.0, max_completion_tokens=4, samples_per_prompt=1, seed=5)
PROMPTS_PER_STEP, NUM_STEPS = 2, 4


def _prompt(index: int) -> Prompt:
    task = Task(task_id=f"task-{index}", messages=(Message(role="user", content="go"),))
    return Prompt(task=task, text="go", token_ids=(1,))


class Engines:
    """Take up to `width` requests, and finish the newest or oldest at each look; a completion has the version that began it."""

    def __init__(self, calls: list[str], *, width: int, newest_first: bool) -> None:
        self._calls = calls
        self._width = width
        self._newest_first = newest_first
        self.version = 0

    def publish(self, weights: PublishedWeights) -> None:
        self.version = weights.policy_version
        self._calls.append(f"publish {self.version}")

    def collect_as_asked(
        self, requests: Iterable[tuple[Prompt, SamplingParameters] | None], *, largest_group: int
    ) -> Iterator[tuple[SamplingParameters, TrajectoryGroup] | None]:
        to_come = iter(requests)
        running: deque[tuple[Prompt, SamplingParameters, int]] = deque()
        while True:
            while len(running) < self._width and (request := next(to_come, None)) is not None:
                self._calls.append(f"ask {request[0].task.task_id}")
                running.append((*request, self.version))
            if not running:
                yield None
                continue
            prompt, sampling, version = running.pop() if self._newest_first else running.popleft()
            self._calls.append(f"sampled {prompt.task.task_id}")
            yield sampling, group_of(prompt, {0: completion(7, text=f"{sampling.seed}")}, policy_version=version)


class Scorer:
    """`lost_at`: a group, counted from 0, with which its node is lost."""

    def __init__(self, lost_at: int | None = None) -> None:
        self._lost_at = lost_at
        self._num_groups = 0

    def score_stream(self, groups: Iterable[TrajectoryGroup | None]) -> Iterator[ScoredGroup | None]:
        for group in groups:
            self._num_groups += group is not None
            if self._num_groups - 1 == self._lost_at:
                self._lost_at = None
                raise SamplesLostError("samples are lost")
            yield None if group is None else ScoredGroup(group=group, rewards=(Reward(total=1.0, breakdown={"one": 1.0}),))


class Ranks:
    """One optimizer step an update, during which the driver may look after the others `num_looks` times."""

    def __init__(self, calls: list[str], *, num_looks: int, lost_at: int | None = None) -> None:
        self._calls = calls
        self._num_looks = num_looks
        self._lost_at = lost_at
        self._num_done = self._num_saved = 0
        self.batches: list[ScoredBatch] = []

    def wait_until_ready(self) -> int:
        return self._num_done

    def publish(self) -> PublishedWeights:
        return SentWeights(policy_version=self._num_done, checksum="0")

    def submit(self, batch: ScoredBatch, meanwhile: Callable[[], object] | None = None) -> UpdateResult:
        assert meanwhile is not None
        self._calls.append(f"learn {batch.step}")
        for _ in range(self._num_looks):
            meanwhile()
        if batch.step == self._lost_at:
            self._lost_at, self._num_done = None, self._num_saved
            raise LearnerRestartedError("the ranks were lost")
        self.batches.append(batch)
        self._num_done = batch.step + 1
        return UpdateResult(policy_version=self._num_done, metrics={})

    def save(self) -> SaveReport | None:
        self._num_saved = self._num_done
        return None

    def finish_saving(self) -> SaveReport | None:
        return None


class Loop:
    def __init__(
        self,
        folder: Path,
        *,
        max_staleness: int,
        width: int = 2,
        newest_first: bool = True,
        lost_at: int | None = None,
        samples_lost_at: int | None = None,
    ) -> None:
        self.calls: list[str] = []
        self.folder = folder
        self.ranks = Ranks(self.calls, num_looks=4, lost_at=lost_at)
        engines = Engines(self.calls, width=width, newest_first=newest_first)
        schedule = PromptSchedule([_prompt(index) for index in range(8)], prompts_per_step=PROMPTS_PER_STEP, seed=0)
        self._log = MetricsLog(folder / "metrics.jsonl", folder / "tensorboard")
        self._driver = AsyncDriver(
            collector=Lookahead(
                engines, Scorer(samples_lost_at), SAMPLING, schedule, num_steps=NUM_STEPS, max_staleness=max_staleness
            ),
            schedule=schedule,
            generators=engines,
            learner=self.ranks,
            records=Records(
                ledger=LedgerWriter(TrajectoryLedger(folder / "trajectories")),
                metrics=self._log,
                failed_batches=folder / "failed",
                note=self.calls.append,
            ),
            save_every=2,
            max_unscored_frac=0.2,
            interrupts=Interrupts(),
        )

    def run(self) -> list[Mapping[str, float]]:
        seen: list[Mapping[str, float]] = []
        with self._log:
            self._driver.run(NUM_STEPS, on_step=lambda step, metrics: seen.append(metrics))
        return seen

    def asked_before(self, call: str) -> int:
        return sum(each.startswith("ask") for each in self.calls[: self.calls.index(call)])


def test_without_staleness_nothing_is_asked_ahead_and_every_token_is_of_the_newest_weights(tmp_path: Path) -> None:
    loop = Loop(tmp_path, max_staleness=0)
    metrics = loop.run()
    assert [loop.asked_before(f"publish {version}") for version in range(1, 5)] == [2, 4, 6, 8]
    assert [line["rollout/staleness_max"] for line in metrics] == [0.0] * 4
    assert audit_ledger(tmp_path / "trajectories").problems == ()


@pytest.mark.parametrize("max_staleness", [1, 2])
def test_so_many_steps_are_asked_ahead_and_no_token_is_older(tmp_path: Path, max_staleness: int) -> None:
    loop = Loop(tmp_path, max_staleness=max_staleness, width=8)
    metrics = loop.run()
    expected = [min(8, PROMPTS_PER_STEP * (max_staleness + 1 + step)) for step in range(4)]
    assert [loop.asked_before(f"publish {version}") for version in range(1, 5)] == expected
    assert max(line["rollout/staleness_max"] for line in metrics) == max_staleness
    assert audit_ledger(tmp_path / "trajectories", max_staleness=max_staleness).problems == ()


def test_generators_work_while_the_learner_does(tmp_path: Path) -> None:
    loop = Loop(tmp_path, max_staleness=1, newest_first=False)
    loop.run()
    during = loop.calls[loop.calls.index("learn 0") : loop.calls.index("publish 1")]
    assert sum(call.startswith("sampled") for call in during) == 2


def test_tokens_come_all_the_time_and_not_only_while_they_are_waited_for(tmp_path: Path) -> None:
    for line in Loop(tmp_path, max_staleness=2, width=8).run():
        seconds = sum(line[f"time/{stage}_s"] for stage in ("rollout", "learn", "publish"))
        assert line["rollout/tokens_per_s"] == pytest.approx(PROMPTS_PER_STEP / seconds)  # a token each


def test_each_step_trains_on_its_own_prompts_in_their_order_whoever_came_first(tmp_path: Path) -> None:
    waiting, ahead = Loop(tmp_path / "0", max_staleness=0, width=1), Loop(tmp_path / "2", max_staleness=2, width=5)
    waiting.run()
    ahead.run()
    texts = [
        [(entry.step, entry.task_id, entry.completion) for entry in read_ledger(loop.folder / "trajectories")]
        for loop in (waiting, ahead)
    ]
    assert texts[0] == texts[1]  # the text is the seed: what is sampled does not depend on when


def test_lost_ranks_ask_again_for_what_was_in_the_making_and_train_on_each_trajectory_once(tmp_path: Path) -> None:
    clean, broken = Loop(tmp_path / "clean", max_staleness=1), Loop(tmp_path / "broken", max_staleness=1, lost_at=3)
    clean.run()
    broken.run()
    assert "the ranks were lost: back from step 3 to 2" in broken.calls
    found = [
        [(entry.step, entry.task_id, entry.completion) for entry in read_ledger(loop.folder / "trajectories")]
        for loop in (clean, broken)
    ]
    assert found[0] == found[1]
    assert audit_ledger(tmp_path / "broken" / "trajectories", max_staleness=1).problems == ()
    # Nothing that older or lost weights had in the making is used after the ranks came back.
    again = broken.calls[broken.calls.index("the ranks were lost: back from step 3 to 2") :]
    assert [call for call in again if call.startswith("ask")] == [f"ask {each.group.task_id}" for each in _groups(clean, 2, 3)]


@pytest.mark.parametrize("samples_lost_at", range(8))
def test_samples_that_are_lost_meanwhile_are_asked_again_and_each_step_is_learned_once(
    tmp_path: Path, samples_lost_at: int
) -> None:
    clean = Loop(tmp_path / "clean", max_staleness=1)
    broken = Loop(tmp_path / "broken", max_staleness=1, samples_lost_at=samples_lost_at)
    clean.run()
    broken.run()
    (note,) = [call for call in broken.calls if "lost" in call]
    assert note.endswith(": samples are lost; they are sampled again")
    assert [call for call in broken.calls if call.startswith("learn")] == [f"learn {step}" for step in range(NUM_STEPS)]
    found = [
        [(entry.step, entry.task_id, entry.completion) for entry in read_ledger(loop.folder / "trajectories")]
        for loop in (clean, broken)
    ]
    assert found[0] == found[1]
    assert audit_ledger(tmp_path / "broken" / "trajectories", max_staleness=1).problems == ()


def _groups(loop: Loop, *steps: int) -> list[ScoredGroup]:
    return [scored for step in steps for scored in loop.ranks.batches[step].groups]


def test_staleness_is_counted_in_publications_and_by_token() -> None:
    def sample(*stretches: tuple[int, int]) -> Sample:
        return Sample(
            sample_index=0,
            num_tokens=sum(num_tokens for num_tokens, _ in stretches),
            segment_lengths=(9,),
            stretches=tuple(Stretch(num_tokens=num_tokens, policy_version=version) for num_tokens, version in stretches),
            finish_reason="stop",
        )

    # Three publications, of two optimizer steps each.
    assert staleness_metrics([sample((2, 0), (1, 2)), sample((3, 4))], [0, 2, 4]) == {
        "rollout/staleness_mean": pytest.approx((2 * 2 + 1 * 1) / 6),
        "rollout/staleness_max": 2.0,
        "rollout/mixed_versions_frac": 0.5,
    }
