"""Throughput of a run in which one completion in eight takes ten times as long as the others, by how the loop waits for it.

Run: python -m tests.benchmarks.long_tail [--learner-s 1] [--steps 12] [--json]. Driver, collectors, generator pool, scorer pool,
ledger and Ray are those of a run. The engines are slow ones: Ray actors that sleep for each token and decode as many
completions at a time as they have places. The learner sleeps as well. So little is computed that what else the machine does
counts little.

The ratio is that of trajectories a second to the synchronous loop. What is cut is not counted as a trajectory.
"""

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray

from actors.config import BuiltInFunctionScorerConfig, SupervisionConfig
from actors.generation.generator import Generated, GroupNumbers, HeldWeights
from actors.generation.rollout_pool import GeneratorKind, RolloutPool
from actors.scoring.stage import ScorerPools, build_scorer_pools
from cluster.messages import Message
from cluster.processes.interrupts import Interrupts
from cluster.processes.reservations.seats import Seats
from cluster.processes.runtime import ray_session
from cluster.processes.supervision import PROGRESS_GROUP
from cluster.seeding import derive_seed
from cluster.storage.ledger import TrajectoryLedger, audit_ledger
from cluster.storage.ledger_writer import LedgerWriter
from cluster.storage.metrics import MetricsLog
from cluster.types import (
    Prompt,
    PublishedWeights,
    SamplingParameters,
    SaveReport,
    ScoredBatch,
    SentWeights,
    Task,
    UpdateResult,
)
from learners.steps.async_driver import AsyncDriver
from learners.steps.collection import Collector, PlainCollector
from learners.steps.driver import Driver, Records
from learners.steps.lookahead import Lookahead
from learners.steps.oversampling import Oversampling
from learners.steps.prompt_schedule import PromptSchedule
from tests.records import completion, group_of

NUM_GENERATORS, NUM_PLACES = 2, 64  # engines, and completions that one decodes at a time
PROMPTS_PER_STEP, SAMPLES_PER_PROMPT = 8, 4
SHORT_TOKENS, LONG_FACTOR, LONG_SHARE = 8, 10, 1 / 8
TOKEN_S = 0.025
EXTRA_PROMPTS = 8
MAX_STALENESS = (1, 4)
SAMPLING = SamplingParameters(
    temperature=1.0,
    top_p=1.0,
    max_completion_tokens=LONG_FACTOR * SHORT_TOKENS,
    samples_per_prompt=SAMPLES_PER_PROMPT,
    seed=0,
)


class SlowEngine:
    """Implements `Generator`. How long a completion is follows from its seed, as with a real one."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(NUM_PLACES)
        self._version = 0
        self._num_tokens = 0

    async def ready(self) -> int:
        return self._version

    async def progress(self) -> int:
        return self._num_tokens

    async def load_weights(self, weights: PublishedWeights) -> int:
        self._version = weights.policy_version
        return self._version

    async def held_weights(self) -> HeldWeights:
        return HeldWeights(policy_version=self._version, checksum="0")

    async def shutdown(self) -> None: ...

    async def generate(self, prompt: Prompt, sampling: SamplingParameters) -> Generated:
        version = self._version
        completions = await asyncio.gather(*(self._decode(prompt, sampling.seed, index) for index in range(SAMPLES_PER_PROMPT)))
        group = group_of(prompt, dict(enumerate(completions)), policy_version=version)
        return Generated(
            numbers=GroupNumbers(samples=group.samples, failures={}), texts=group.texts.fetch(), tokens=group.tokens.fetch()
        )

    async def _decode(self, prompt: Prompt, seed: int, index: int) -> Any:
        draw = np.random.default_rng(derive_seed(seed, prompt.task.task_id, index)).random()
        num_tokens = SHORT_TOKENS * (LONG_FACTOR if draw < LONG_SHARE else 1)
        async with self._places:
            for _ in range(num_tokens):
                await asyncio.sleep(TOKEN_S)
                self._num_tokens += 1
        return completion(*range(1, num_tokens + 1))


class SleepingLearner:
    """Takes so long for an update, and nothing for the rest."""

    def __init__(self, update_s: float) -> None:
        self._update_s = update_s
        self._version = 0

    def wait_until_ready(self) -> int:
        return self._version

    def submit(self, batch: ScoredBatch, meanwhile: Callable[[], object] | None = None) -> UpdateResult:
        over = time.monotonic() + self._update_s
        while meanwhile is not None and time.monotonic() < over:
            meanwhile()
        time.sleep(max(0.0, over - time.monotonic()))
        self._version += 1
        return UpdateResult(policy_version=self._version, metrics={})

    def publish(self) -> PublishedWeights:
        return SentWeights(policy_version=self._version, checksum="0")

    def save(self) -> SaveReport | None:
        return None

    def finish_saving(self) -> SaveReport | None:
        return None


def _prompt(index: int) -> Prompt:
    task = Task(task_id=f"task-{index}", messages=(Message(role="user", content="go"),))
    return Prompt(task=task, text="go", token_ids=(1,))


def _measured(way: str, rollouts: RolloutPool, scoring: ScorerPools, *, update_s: float, num_steps: int) -> dict[str, float]:
    """One run; its first step is not counted, for nothing was asked ahead of it."""
    schedule = PromptSchedule([_prompt(index) for index in range(64)], prompts_per_step=PROMPTS_PER_STEP, seed=0)
    kind, _, number = way.partition(" ")
    collector: Collector
    match kind:
        case "staleness":
            collector = Lookahead(rollouts, scoring, SAMPLING, schedule, num_steps=num_steps, max_staleness=int(number))
        case "extra":
            collector = Oversampling(rollouts, scoring, SAMPLING, schedule, extra_prompts=int(number))
        case _:
            collector = PlainCollector(rollouts, scoring, SAMPLING)
    ended_s: list[float] = []
    lines: list[dict[str, float]] = []

    def on_step(step: int, metrics: Any) -> None:
        ended_s.append(time.monotonic())
        lines.append(dict(metrics))

    with TemporaryDirectory() as folder, MetricsLog(Path(folder) / "metrics.jsonl", Path(folder) / "tensorboard") as metrics:
        ledger = Path(folder) / "trajectories"
        driver = (AsyncDriver if kind == "staleness" else Driver)(
            schedule=schedule,
            collector=collector,
            generators=rollouts,
            learner=SleepingLearner(update_s),
            records=Records(
                ledger=LedgerWriter(TrajectoryLedger(ledger)),
                metrics=metrics,
                failed_batches=Path(folder) / "failed",
                note=print,
            ),
            save_every=num_steps,
            max_unscored_frac=0.0,
            interrupts=Interrupts(),
        )
        driver.run(num_steps, on_step=on_step)
        audit = audit_ledger(ledger, max_staleness=int(number) if kind == "staleness" else 0)
    assert audit.problems == (), audit.problems
    seconds = (ended_s[-1] - ended_s[0]) / (num_steps - 1)
    cut = sum(line.get("rollout/cut_prompts", 0.0) for line in lines) / num_steps
    trained = audit.num_trained / num_steps
    return {
        "step_s": seconds,
        "trajectories_per_s": trained / seconds,
        "staleness_mean": float(np.mean([line.get("rollout/staleness_mean", 0.0) for line in lines])),
        "cut_prompts": cut,
    }


def measure(*, updates_s: Sequence[float], num_steps: int) -> dict[str, dict[str, dict[str, float]]]:
    """By seconds of an update, and by way."""
    ways = ["synchronous", f"extra {EXTRA_PROMPTS}", *(f"staleness {bound}" for bound in MAX_STALENESS)]
    engine = ray.remote(max_concurrency=512, concurrency_groups={PROGRESS_GROUP: 1})(SlowEngine)
    supervision = SupervisionConfig()
    found: dict[str, dict[str, dict[str, float]]] = {}
    with ray_session(num_cpus=2, include_dashboard=False):
        scoring = build_scorer_pools(
            [BuiltInFunctionScorerConfig(function="length")],
            prompt_format="plain",
            supervision=supervision,
            seats=Seats(print),
            note=print,
        )
        scoring.wait_until_ready()
        for update_s, way in itertools.product(updates_s, ways):
            kind = GeneratorKind(
                start=lambda name: engine.options(num_cpus=0).remote(),
                num_replicas=NUM_GENERATORS,
                max_num_sequences=NUM_PLACES,
            )
            rollouts = RolloutPool([kind], supervision=supervision, note=print)
            rollouts.wait_until_ready()
            found.setdefault(f"{update_s:g}", {})[way] = _measured(way, rollouts, scoring, update_s=update_s, num_steps=num_steps)
            for actor in rollouts.actors.values():
                ray.kill(actor)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learner-s", type=float, nargs="+", default=[1.0, 2.0], help="of one update")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(updates_s=arguments.learner_s, num_steps=arguments.steps)
    if arguments.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    longest_s = TOKEN_S * LONG_FACTOR * SHORT_TOKENS
    lines = [f"the longest completion takes {longest_s:g} s, the others {longest_s / LONG_FACTOR:g} s"]
    for update_s, ways in found.items():
        for way, values in ways.items():
            ratio = values["trajectories_per_s"] / ways["synchronous"]["trajectories_per_s"]
            lines.append(
                f"update {update_s} s, {way}: {values['step_s']:.2f} s a step, {ratio:.2f} times the synchronous throughput, "
                f"staleness {values['staleness_mean']:.1f}, {values['cut_prompts']:.1f} prompts cut a step"
            )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
