"""A driver among fakes that record what it asks of them, and in which order."""

import signal
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import LearnerRestartedError
from cluster.messages import Message
from cluster.processes.interrupts import Interrupts
from cluster.storage.ledger import TrajectoryLedger
from cluster.storage.ledger_writer import LedgerWriter
from cluster.storage.metrics import MetricsLog
from cluster.types import (
    Completion,
    Prompt,
    PublishedWeights,
    Reward,
    SamplingParameters,
    SaveReport,
    ScoredBatch,
    ScoredGroup,
    SentWeights,
    Task,
    TrajectoryGroup,
    UpdateResult,
)
from learners.steps.collection import DynamicSampling, GreedyBaseline, PlainCollector
from learners.steps.driver import Driver, Records
from learners.steps.prompt_schedule import PromptSchedule
from tests.records import completion, group_of

SAMPLING = SamplingParameters(temperature=1.0, top_p=1.0, max_completion_tokens=4, samples_per_prompt=2, seed=5)


def prompt(index: int) -> Prompt:
    task = Task(task_id=f"task-{index}", messages=(Message(role="user", content="go"),))
    return Prompt(task=task, text=f"go {index}", token_ids=(index + 1,))


class RecordingRollouts:
    """Answers each prompt with completions of 3 tokens, one of two cut short; the last prompt finishes first if asked."""

    def __init__(self, calls: list[str], *, last_first: bool = False, failed: Collection[tuple[int, int]] = ()) -> None:
        """`failed`: (task, sample) for which the engine has no completion."""
        self._calls = calls
        self._last_first = last_first
        self._failed = failed
        self.samplings: list[SamplingParameters] = []
        self.version = 0

    def collect_each(
        self, requests: Sequence[tuple[Prompt, SamplingParameters]]
    ) -> Iterator[tuple[SamplingParameters, TrajectoryGroup]]:
        for each, sampling in requests:
            yield from ((sampling, group) for group in self.collect([each], sampling))

    def collect(self, prompts: Sequence[Prompt], sampling: SamplingParameters) -> Generator[TrajectoryGroup, None, None]:
        self._calls.append(f"collect at version {self.version}")
        self.samplings.append(sampling)
        for each in reversed(prompts) if self._last_first else prompts:
            task, samples = int(each.task.task_id.split("-")[1]), range(sampling.samples_per_prompt)
            yield group_of(
                each,
                {index: self._completion(each, index) for index in samples if (task, index) not in self._failed},
                policy_version=self.version,
                failures={index: "its request failed" for index in samples if (task, index) in self._failed},
            )

    def publish(self, weights: PublishedWeights) -> None:
        self.version = weights.policy_version
        self._calls.append(f"generators take version {weights.policy_version}")

    def _completion(self, each: Prompt, index: int) -> Completion:
        return completion(7, 8, 9, text=f"{each.text} answer {index}", finish_reason="length" if index else "stop")


class RecordingScoring:
    """Scores a trajectory by its task and sample: task 3, sample 1 is 3.1. `unscored`: (task, sample) that have no score."""

    def __init__(self, unscored: Collection[tuple[int, int]] = ()) -> None:
        self._unscored = unscored

    def score_stream(self, groups: Iterable[TrajectoryGroup | None]) -> Iterator[ScoredGroup | None]:
        for group in groups:
            if group is None:
                yield None
                continue
            task = int(group.task_id.split("-")[1])
            scores = {each.sample_index: task + each.sample_index / 10 for each in group.samples}
            problems = {sample: "the judge fell asleep" for sample in scores if (task, sample) in self._unscored}
            rewards = (
                Reward(total=score, breakdown={"length": score}) for sample, score in scores.items() if sample not in problems
            )
            yield ScoredGroup(group=group, rewards=tuple(rewards), problems=problems)


class RecordingLearner:
    """Two optimizer steps an update. At the first submission of a step in `lost_at` its ranks go back to what was saved."""

    def __init__(
        self, calls: list[str], *, lost_at: Sequence[int] = (), num_steps_saved: int = 0, problem: str = "", skips: bool = False
    ) -> None:
        self._calls = calls
        self._still_lost_at = list(lost_at)
        self._num_steps_done = self._num_steps_saved = num_steps_saved
        self._problem = problem
        self._skips = skips
        self._saving: SaveReport | None = None
        self.batches: list[ScoredBatch] = []

    def wait_until_ready(self) -> int:
        return self._num_steps_done

    def save(self) -> SaveReport | None:
        self._calls.append(f"save after {self._num_steps_done}")
        before = self.finish_saving()
        self._saving = SaveReport(step=self._num_steps_done, seconds=0.5, problem=self._problem)
        self._num_steps_saved = self._num_steps_done
        return before

    def finish_saving(self) -> SaveReport | None:
        saving, self._saving = self._saving, None
        return saving

    def submit(self, batch: ScoredBatch, meanwhile: Callable[[], object] | None = None) -> UpdateResult:
        if batch.step in self._still_lost_at:
            self._still_lost_at.remove(batch.step)
            self._num_steps_done = self._num_steps_saved
            raise LearnerRestartedError("the ranks were lost")
        self._calls.append(f"submit step {batch.step}")
        self.batches.append(batch)
        self._num_steps_done = batch.step + 1
        skipped = 2.0 * len(self.batches) if self._skips else 0.0
        return UpdateResult(policy_version=self._version, metrics={"policy/loss": 0.5, "optim/skipped_in_a_row": skipped})

    def publish(self) -> PublishedWeights:
        self._calls.append(f"learner publishes version {self._version}")
        return SentWeights(policy_version=self._version, checksum="0")

    @property
    def _version(self) -> int:
        return 2 * self._num_steps_done


class Calls(list[str]):
    """What happened, in order. At the call `interrupt_at` Ctrl-C is pressed."""

    def __init__(self, interrupts: Interrupts, interrupt_at: str) -> None:
        super().__init__()
        self._interrupts = interrupts
        self._interrupt_at = interrupt_at

    def append(self, call: str) -> None:
        super().append(call)
        if call == self._interrupt_at:
            self._interrupts.on_signal(signal.SIGINT, None)


class Loop:
    """A driver among fakes, with everything they recorded."""

    def __init__(
        self,
        folder: Path,
        *,
        last_first: bool = False,
        num_prompts: int = 6,
        unscored: Collection[tuple[int, int]] = (),
        failed: Collection[tuple[int, int]] = (),
        max_unscored_frac: float = 0.2,
        min_rewards: int = 1,
        interrupt_at: str = "",
        resamples: bool = False,
        with_greedy: bool = False,
        **learner: Any,
    ) -> None:
        interrupts = Interrupts()
        self.calls = Calls(interrupts, interrupt_at)
        self.notes: list[str] = []
        self.rollouts = RecordingRollouts(self.calls, last_first=last_first, failed=failed)
        self.learner = RecordingLearner(self.calls, **learner)
        self.folder = folder
        self._log = MetricsLog(folder / "metrics.jsonl", folder / "tensorboard")
        schedule = PromptSchedule([prompt(index) for index in range(num_prompts)], prompts_per_step=3, seed=1)
        ledger = LedgerWriter(TrajectoryLedger(folder / "trajectories"))
        self.scoring = RecordingScoring(unscored)
        plain = PlainCollector(self.rollouts, self.scoring, SAMPLING, min_rewards=min_rewards)
        self._driver = Driver(
            schedule=schedule,
            collector=GreedyBaseline(self.rollouts, self.scoring, SAMPLING)
            if with_greedy
            else DynamicSampling(plain, schedule, ledger, max_rounds=1)
            if resamples
            else plain,
            generators=self.rollouts,
            learner=self.learner,
            records=Records(
                ledger=ledger,
                metrics=self._log,
                failed_batches=folder / "failed_batches",
                note=self.notes.append,
            ),
            save_every=2,
            max_unscored_frac=max_unscored_frac,
            interrupts=interrupts,
        )

    def run(self, num_steps: int) -> list[tuple[int, Mapping[str, float]]]:
        seen: list[tuple[int, Mapping[str, float]]] = []
        with self._log:
            self._driver.run(num_steps, on_step=lambda step, metrics: seen.append((step, metrics)))
        return seen
