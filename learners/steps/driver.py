"""The control loop: roll out, score, update, publish; synchronous, so every trajectory is sampled by the newest weights."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cluster.errors import LearnerRestartedError, RaywardError, SamplesLostError, WeightsLostError
from cluster.processes.interrupts import Interrupts
from cluster.storage.ledger import SampledGroups, TrajectoryLedger
from cluster.storage.ledger_writer import LedgerWriter
from cluster.storage.metrics import MetricsLog, StageClock
from cluster.types import PublishedWeights, SaveReport, ScoredBatch, ScoredGroup, UpdateResult
from learners.steps.collection import Collected, Collector, for_the_ledger
from learners.steps.prompt_schedule import PromptSchedule

MAX_FAILED_SAVES = 3  # in a row
MAX_LOST_ROUNDS = 5  # of one step, each with a node or more
MAX_LOST_PUBLICATIONS = 5  # in a row
MAX_SHOWN_PROBLEMS = 5
MAX_SKIPPED_STEPS = 5  # optimizer steps in a row
# After Ctrl-C, of the ten seconds in which a run ends: for the update at work, and for its checkpoint.
UPDATE_GRACE_S, SAVE_GRACE_S = 4.0, 3.0


class Generators(Protocol):
    """Whoever needs the newest weights."""

    def publish(self, weights: PublishedWeights) -> None: ...


class Learner(Protocol):
    """The learner's process group, seen from the driver."""

    def submit(self, batch: ScoredBatch, meanwhile: Callable[[], object] | None = None) -> UpdateResult: ...

    def publish(self) -> PublishedWeights: ...

    def wait_until_ready(self) -> int: ...

    def save(self) -> SaveReport | None: ...

    def finish_saving(self) -> SaveReport | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Where a run writes down what happened."""

    ledger: LedgerWriter
    metrics: MetricsLog
    failed_batches: Path  # where a batch is kept that ended the run
    note: Callable[[str], None]  # one line to the people who watch

    def go_back_to(self, num_steps_done: int) -> None:
        """Forget the steps after so many: their training is lost, and they are done again."""
        self.ledger.discard_from(num_steps_done)
        self.metrics.discard(lambda line: _is_later(line, num_steps_done), from_step=num_steps_done)


def _is_later(line: Mapping[str, Any], num_steps_done: int) -> bool:
    """Whether a line of metrics.jsonl was measured on weights that came of more steps."""
    match line.get("stage"):
        case None:
            return line["step"] >= num_steps_done
        case "evaluation" | "checkpoint":  # their step counts steps done
            return line["step"] > num_steps_done
    return False


class Driver:
    """Runs the steps of one policy-gradient run."""

    def __init__(
        self,
        *,
        schedule: PromptSchedule,
        collector: Collector,
        generators: Generators,
        learner: Learner,
        records: Records,
        save_every: int,
        max_unscored_frac: float,
        interrupts: Interrupts,
    ) -> None:
        """`save_every`: steps from one checkpoint to the next. `max_unscored_frac`: of a step; above it the run ends."""
        self._schedule = schedule
        self._collector = collector
        self._generators = generators
        self._learner = learner
        self._records = records
        self._save_every = save_every
        self._max_unscored_frac = max_unscored_frac
        self._interrupts = interrupts
        self._num_failed_saves = 0  # in a row
        self._is_recorded = False  # whether the records are as far as the learner

    def run(self, num_steps: int, *, on_step: Callable[[int, Mapping[str, float]], None]) -> int:
        """Run the steps that the learner has not done; `on_step(step, metrics)` is called after each. Returns the policy version.

        Where the learner's ranks are lost and come back with an older checkpoint, the steps after it are run again. On return the
        last step's checkpoint is on disk; on an interrupt that of the last step done, if there is time.
        """
        try:
            return self._run(num_steps, on_step)
        except KeyboardInterrupt:
            self._save_on_the_way_out()
            raise
        except BaseException:
            self._write_the_ledger_on_the_way_out()
            raise

    def _run(self, num_steps: int, on_step: Callable[[int, Mapping[str, float]], None]) -> int:
        step, version = self._go_on()
        while True:
            try:
                if step == num_steps:
                    self._note_save(self._learner.finish_saving())
                    return version
                metrics = self.run_step(step)
                step, version = step + 1, int(metrics["policy/version"])
                on_step(step - 1, metrics)
                if step % self._save_every == 0 or step == num_steps:
                    self._note_save(self._save())
            except LearnerRestartedError as error:
                self._interrupts.check()
                lost_at = step
                step, version = self._go_on()
                self._records.note(f"{error}: back from step {lost_at} to {step}")

    def _save_on_the_way_out(self) -> None:
        """A checkpoint of the steps done, unless the interrupt came in the midst of what cannot be cut in two."""
        if not self._is_recorded:
            return
        try:
            with self._interrupts.deferred(SAVE_GRACE_S):
                self._note_save(self._save())
                self._note_save(self._learner.finish_saving())
        except RaywardError as error:
            self._records.note(f"no checkpoint on the way out: {error}")

    def _write_the_ledger_on_the_way_out(self) -> None:
        """Of the newest step, which may still be on its way. What ended the run says more than a failure to write it."""
        try:
            self._records.ledger.finish()
        except Exception as error:  # noqa: BLE001 - a full disk, say
            self._records.note(f"the ledger lacks the newest step: {error}")

    def _save(self) -> SaveReport | None:
        """What a run goes on from is never ahead of its ledger."""
        self._records.ledger.finish()
        return self._learner.save()

    def _go_on(self) -> tuple[int, int]:
        """(steps done, policy version) of the learner, once records and generators are where it is."""
        self._is_recorded = False
        while True:
            try:
                step = self._learner.wait_until_ready()
                weights = publish_newest(self._learner, self._generators, note=self._records.note)
            except LearnerRestartedError:
                continue  # lost again; the group says when it gives up
            self._records.go_back_to(step)
            self._is_recorded = True
            return step, weights.policy_version

    def _note_save(self, report: SaveReport | None) -> None:
        """Write down how a checkpoint ended. A full disk may pass, so training goes on; but not for ever without checkpoints."""
        if report is None:
            return
        self._records.metrics.log(
            report.step,
            {"checkpoint/write_s": report.seconds, "checkpoint/failed": float(bool(report.problem))},
            stage="checkpoint",
        )
        if not report.problem:
            self._num_failed_saves = 0
            return
        self._num_failed_saves += 1
        problem = f"the checkpoint of step {report.step} could not be written: {report.problem}"
        if self._num_failed_saves == MAX_FAILED_SAVES:
            raise RaywardError(f"{problem}; that was the {MAX_FAILED_SAVES}rd in a row; make room and resume the run")
        self._records.note(f"{problem}; training goes on, and the older checkpoints are as they were")

    def run_step(self, step: int) -> Mapping[str, float]:
        """One round; returns its metrics. The generators hold the new weights when it returns.

        Samples that are lost with a node before the weights have changed are drawn again: a step's seeds are its own, so they are
        the same where the weights are.
        """
        num_lost_rounds = 0
        while True:
            try:
                return self._round(step, num_lost_rounds)
            except SamplesLostError as error:
                self._interrupts.check()
                num_lost_rounds += 1
                if num_lost_rounds == MAX_LOST_ROUNDS:
                    raise
                self._is_recorded = True  # the learner is where it was
                self._records.note(f"step {step}: {error}; they are sampled again")
                self._forget_samples()

    def _forget_samples(self) -> None:
        """Whatever was sampled for this step and later ones."""

    def _round(self, step: int, num_lost_rounds: int) -> Mapping[str, float]:
        clock = StageClock()
        prompts = self._schedule.prompts_of(step)
        with clock.stage("rollout"):
            collected = self._collector.collect(step, prompts)
            sampled = SampledGroups(
                trained=for_the_ledger(collected.groups, num_earlier_rounds=num_lost_rounds),
                left_out=for_the_ledger(collected.left_out, num_earlier_rounds=num_lost_rounds),
                cut=collected.cut,
            )
        missing = self._checked_shares(step, collected)
        batch = ScoredBatch(step=step, groups=collected.groups)
        with self._interrupts.deferred(UPDATE_GRACE_S):
            self._is_recorded = False
            with clock.stage("learn"):
                update = self._learn(batch)
            self._check_numbers(step, sampled.trained, update)
            with clock.stage("publish"):
                publish_newest(self._learner, self._generators, note=self._records.note)
            self._records.ledger.begin(step, sampled)
            metrics = {
                **_rollout_metrics(collected, seconds=self._generating_s(clock.wall_s)),
                **collected.metrics,
                **update.metrics,
                **{f"time/{stage}_s": seconds for stage, seconds in clock.wall_s.items()},
                "policy/version": float(update.policy_version),
                **missing,
            }
            self._records.metrics.log(step, metrics)
            self._is_recorded = True
        return metrics

    def _generating_s(self, wall_s: Mapping[str, float]) -> float:
        """In which a step's tokens come. `wall_s`: of its stages."""
        return wall_s["rollout"]

    def _learn(self, batch: ScoredBatch) -> UpdateResult:
        return self._learner.submit(batch)

    def _check_numbers(self, step: int, trained: tuple[ScoredGroup, ...], update: UpdateResult) -> None:
        """Raise where no optimizer step has been finite for long: the weights are still good, and the batch is kept."""
        num_skipped = update.metrics.get("optim/skipped_in_a_row", 0.0)
        if num_skipped >= MAX_SKIPPED_STEPS:
            TrajectoryLedger(self._records.failed_batches).record(step, SampledGroups(trained=trained))
            raise RaywardError(
                f"step {step}: loss or gradient was not finite in {num_skipped:.0f} optimizer steps in a row; the weights "
                f"are as they were before, and the batch is in {self._records.failed_batches}; correct the reward, or lower the "
                "learning rate, and resume the run"
            )

    def _checked_shares(self, step: int, collected: Collected) -> dict[str, float]:
        """Which shares of the step's trajectories failed in the engine, and had no score, as metrics.

        Raises where both together are more than the limit, or where nothing is left to learn from.
        """
        groups = collected.groups + collected.left_out
        named = [(scored, "sample") for scored in groups] + [(each.greedy, "greedy sample") for each in groups if each.greedy]
        failed = [place for scored, kind in named for place in _places(scored, kind, scored.group.failures)]
        unscored = [place for scored, kind in named for place in _places(scored, kind, scored.problems)]
        num_samples = sum(scored.group.num_samples for scored, _ in named)
        problems = _each_once(failed + unscored)
        share = (len(failed) + len(unscored)) / num_samples
        if share > self._max_unscored_frac or not collected.groups:
            shown = problems[:MAX_SHOWN_PROBLEMS] + ["..."] * (len(problems) > MAX_SHOWN_PROBLEMS)
            limit = f"more than max_unscored_frac={self._max_unscored_frac:g}"
            what = limit if collected.groups else "and no group has enough scores to learn from"
            culprits = " and ".join(["the generator"] * bool(failed) + ["the scorer"] * bool(unscored))
            raise RaywardError(
                "\n".join(
                    [
                        f"step {step}: {share:.0%} of the trajectories have no score, {what}; "
                        f"correct {culprits} and resume the run",
                        *shown,
                    ]
                )
            )
        if problems:
            num_left_out = len(failed) + len(unscored)
            self._records.note(f"step {step}: {num_left_out} trajectories without a score are left out; first, {problems[0]}")
        return {"score/unscored_frac": len(unscored) / num_samples, "rollout/failed_frac": len(failed) / num_samples}


def publish_newest(learner: Learner, generators: Generators, *, note: Callable[[str], None]) -> PublishedWeights:
    """Returns once the generators hold the learner's weights. Weights that are lost on the way are published again.

    Raises `LearnerRestartedError` where the learner's ranks were lost with them.
    """
    for num_lost in itertools.count(1):
        weights = learner.publish()
        try:
            generators.publish(weights)
            break
        except WeightsLostError as error:
            if num_lost == MAX_LOST_PUBLICATIONS:
                raise
            note(f"{error}; they are published again")
    return weights


def _places(scored: ScoredGroup, kind: str, problems: Mapping[int, str]) -> list[tuple[str, str]]:
    """(which trajectory, its problem). `problems`: by sample."""
    task_id = scored.group.task_id
    return [(f"task {task_id!r}, {kind} {sample_index}", problem) for sample_index, problem in problems.items()]


def _each_once(problems: Sequence[tuple[str, str]]) -> list[str]:
    """One line a problem, with the first trajectory that has it and how many others do."""
    places: dict[str, list[str]] = {}
    for place, problem in problems:
        places.setdefault(problem, []).append(place)
    return [
        f"{found[0]}" + (f" and {len(found) - 1} more" if len(found) > 1 else "") + f": {problem}"
        for problem, found in places.items()
    ]


def _rollout_metrics(collected: Collected, *, seconds: float) -> dict[str, float]:
    """Of everything that was generated: throughput. Of what was sampled: the share cut, and the mean score. Of what is trained
    on: each scorer's mean score."""
    sampled = collected.groups + collected.left_out
    greedy = [scored.greedy for scored in sampled if scored.greedy]
    samples, greedy_samples = ([sample for scored in groups for sample in scored.group.samples] for groups in (sampled, greedy))
    num_tokens = sum(sample.num_tokens for sample in [*samples, *greedy_samples])
    rewards = [reward for scored in collected.groups for reward in scored.rewards]
    scores = {
        f"score/{name}_mean": float(np.mean([reward.breakdown[name] for reward in rewards])) for name in rewards[0].breakdown
    }
    return {
        "rollout/tokens_per_s": num_tokens / seconds,
        "rollout/truncated_frac": float(np.mean([sample.finish_reason == "length" for sample in samples])),
        **scores,
        "score/sampled_mean": _mean_score(sampled),
        **({"score/greedy_mean": _mean_score(greedy)} if greedy else {}),
    }


def _mean_score(groups: Sequence[ScoredGroup]) -> float:
    return float(np.mean([reward.total for scored in groups for reward in scored.rewards]))
