"""The trajectory ledger: what every step was trained on, one JSON line a trajectory, one file a step.

A step's file is whole or absent, and no (step, task, sample) is in it twice: training on each trajectory exactly once can be
checked from these files alone.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from cluster.errors import DataError
from cluster.storage.atomic_file import write_atomically
from cluster.types import CutGroup, FinishReason, Prompt, ScoredGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One trajectory that was sampled for training. Produced by `TrajectoryLedger`, consumed by reports and by checks."""

    step: int
    task_id: str
    sample_index: int
    stretches: list[list[int]]
    """(tokens, policy version of the weights that sampled them), in order; none where nothing was sampled."""
    attempt: int  # 1: the first generator that was asked delivered it
    outcome: Literal["trained", "baseline", "unscored", "failed", "left_out", "cut"]
    """baseline: a greedy completion whose score is the baseline of its prompt's samples. unscored: no scorer's fault made it a
    zero; failed: the engine gave no completion. `problem` says what happened. left_out: the step did not train on its group, for
    want of rewards or of contrast. cut: taken back before its group was complete, for others were first."""
    finish_reason: FinishReason | None  # None where it failed or was cut
    completion_tokens: int
    reward: float | None  # None where it is unscored, failed or was cut
    breakdown: dict[str, float]  # scorer name -> unweighted score
    problem: str = ""
    prompt: str
    completion: str
    is_greedy: bool = False  # the most probable completion, beside those that were sampled

    @property
    def key(self) -> tuple[int, str, int, bool]:
        return (self.step, self.task_id, self.sample_index, self.is_greedy)

    @property
    def name(self) -> str:
        """For people, within its step."""
        return f"task {self.task_id!r} {'greedy ' * self.is_greedy}sample {self.sample_index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledGroups:
    """What a step sampled. Produced by the driver, consumed by the ledger."""

    trained: tuple[ScoredGroup, ...]
    left_out: tuple[ScoredGroup, ...] = ()  # not trained on
    cut: tuple[CutGroup, ...] = ()


class TrajectoryLedger:
    """Writer of a run's ledger. Keeps nothing in memory: what is on disk decides, also after a restart."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def record(self, step: int, groups: SampledGroups) -> None:
        """Add trajectories to the step's file. Raises `DataError`, and writes nothing, if one is there already."""
        path = self._path(step)
        entries = self.entries_of(step)
        entries += [entry for scored in groups.trained for entry in _entries(step, scored, "trained")]
        entries += [entry for scored in groups.left_out for entry in _entries(step, scored, "left_out")]
        entries += [entry for group in groups.cut for entry in _cut_entries(step, group)]
        seen: set[tuple[int, str, int, bool]] = set()
        for entry in entries:
            if entry.key in seen:
                raise DataError(f"{path}: step {step} already holds {entry.name}; a trajectory is trained on once")
            seen.add(entry.key)
        write_atomically(path, "".join(json.dumps(asdict(entry), allow_nan=False) + "\n" for entry in entries))

    def entries_of(self, step: int) -> list[LedgerEntry]:
        """What a step's file holds; nothing where there is none."""
        path = self._path(step)
        return list(_read_file(path)) if path.exists() else []

    def discard_from(self, step: int) -> None:
        """Remove this step and all later ones: what they trained is given up, and they are done again."""
        for path in self._directory.glob("step-*.jsonl"):
            if int(path.stem.removeprefix("step-")) >= step:
                path.unlink()

    def _path(self, step: int) -> Path:
        return self._directory / f"step-{step:06d}.jsonl"


def num_recorded_steps(directory: Path) -> int:
    """How many steps have a file, whole or not."""
    return sum(1 for _ in directory.glob("step-*.jsonl"))


def read_ledger(directory: Path) -> Iterator[LedgerEntry]:
    """All entries in order of step. Raises `DataError` with file and line for one that is broken."""
    for path in sorted(directory.glob("step-*.jsonl"), key=lambda path: (len(path.name), path.name)):
        yield from _read_file(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerAudit:
    """What a ledger says about its run. Produced by `audit_ledger`, consumed by `rayward show --ledger` and by tests."""

    num_steps: int
    num_trained: int
    num_baselines: int
    num_unscored: int
    num_failed: int
    num_left_out: int
    num_cut: int
    num_retried: int  # trajectories that took more than one attempt
    digest: str
    """sha256 of what was trained on, baselines included; equal for runs that trained on the same text with the same rewards, in
    any order."""
    problems: tuple[str, ...]


def audit_ledger(directory: Path, *, max_staleness: int = 0) -> LedgerAudit:
    """Recompute from the files alone what was trained on, and check that nothing is missing or double.

    `max_staleness`: versions that the tokens of one step may lie apart; of a synchronous run they have one version.
    """
    problems: list[str] = []
    steps: list[int] = []
    seen: set[tuple[int, str, int, bool]] = set()
    versions: dict[int, set[int]] = {}
    outcomes: Counter[str] = Counter()
    num_retried = 0
    trained: list[str] = []
    for entry in read_ledger(directory):
        if entry.key in seen:
            problems.append(f"step {entry.step}: {entry.name} is there twice")
        seen.add(entry.key)
        if entry.step not in versions:
            steps.append(entry.step)
        versions.setdefault(entry.step, set()).update(version for _, version in entry.stretches)
        outcomes[entry.outcome] += 1
        num_retried += entry.attempt > 1
        if entry.outcome in ("trained", "baseline"):
            trained.append(json.dumps([*entry.key, entry.stretches, entry.completion, entry.reward]))
    problems += [f"step {step} is missing" for step in sorted(set(range(max(steps, default=-1) + 1)) - set(steps))]
    place = {version: index for index, version in enumerate(sorted(set().union(*versions.values())))}
    problems += [
        f"step {step}: sampled by policy versions further apart than {max_staleness}: {sorted(found)}"
        for step, found in versions.items()
        if found and place[max(found)] - place[min(found)] > max_staleness
    ]
    return LedgerAudit(
        num_steps=len(steps),
        num_trained=outcomes["trained"],
        num_baselines=outcomes["baseline"],
        num_unscored=outcomes["unscored"],
        num_failed=outcomes["failed"],
        num_left_out=outcomes["left_out"],
        num_cut=outcomes["cut"],
        num_retried=num_retried,
        digest=hashlib.sha256("\n".join(sorted(trained)).encode()).hexdigest(),
        problems=tuple(problems),
    )


def _entries(
    step: int, scored: ScoredGroup, outcome: Literal["trained", "baseline", "left_out"], *, is_greedy: bool = False
) -> Iterator[LedgerEntry]:
    """`outcome`: of trajectories that have a reward."""
    if scored.greedy is not None:
        yield from _entries(step, scored.greedy, "baseline" if outcome == "trained" else outcome, is_greedy=True)
    group, rewards = scored.group, iter(scored.rewards)
    texts = group.texts.fetch()
    for sample, trajectory in zip(group.samples, texts.trajectories, strict=True):
        problem = scored.problems.get(sample.sample_index, "")
        reward = None if problem else next(rewards)
        yield LedgerEntry(
            step=step,
            task_id=group.task_id,
            sample_index=sample.sample_index,
            stretches=[[stretch.num_tokens, stretch.policy_version] for stretch in sample.stretches],
            attempt=group.attempt,
            outcome=outcome if reward else "unscored",
            finish_reason=sample.finish_reason,
            completion_tokens=sample.num_tokens,
            reward=reward.total if reward else None,
            breakdown=dict(reward.breakdown) if reward else {},
            problem=problem,
            prompt=texts.prompt.text,
            completion=trajectory.completion.text,
            is_greedy=is_greedy,
        )
    for sample_index, problem in group.failures.items():
        failed = _without_completion(step, texts.prompt, sample_index, "failed", attempt=group.attempt)
        yield replace(failed, problem=problem, is_greedy=is_greedy)


def _cut_entries(step: int, group: CutGroup) -> Iterator[LedgerEntry]:
    for sample_index in range(group.num_samples):
        yield _without_completion(step, group.prompt, sample_index, "cut")


def _without_completion(
    step: int, prompt: Prompt, sample_index: int, outcome: Literal["failed", "cut"], *, attempt: int = 1
) -> LedgerEntry:
    return LedgerEntry(
        step=step,
        task_id=prompt.task.task_id,
        sample_index=sample_index,
        stretches=[],
        attempt=attempt,
        outcome=outcome,
        finish_reason=None,
        completion_tokens=0,
        reward=None,
        breakdown={},
        prompt=prompt.text,
        completion="",
    )


def _read_file(path: Path) -> Iterator[LedgerEntry]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield LedgerEntry(**json.loads(line.decode("utf-8")))
            except (ValueError, TypeError) as error:
                raise DataError(f"{path}:{number}: not a ledger entry: {error}") from error
