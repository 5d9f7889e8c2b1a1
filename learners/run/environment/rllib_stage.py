"""The stages of a run that learns with one of RLlib's algorithms. Env runners and learners are Ray actors, if there are any."""

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
from ray.exceptions import RayError
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from safetensors.numpy import load_file, save_file

from cluster.errors import RaywardError
from cluster.processes.losses import Outcome, failure_of, outcome_of, reason_of
from cluster.processes.watchdog import Pending
from cluster.seeding import derive_seed
from cluster.storage.checkpoint import CheckpointFolder
from learners.environments.making import make_environment
from learners.environments.recorded import RecordedEpisode, write_episodes
from learners.environments.rollouts import evaluate_by_episodes, returns_of_episodes
from learners.evaluation.returns import AFTER, BEFORE, episodes_file
from learners.rllib.configuration import observation_connector
from learners.rllib.environment import MakeEnvironment
from learners.rllib.greedy import GreedyPolicy
from learners.rllib.plain_state import join, split
from learners.rllib.recorded import RecordedEpisodes, load_recorded
from learners.rllib.training import RLlibTraining
from learners.run.environment.stages import CHECKPOINTS, write_down
from learners.run.session import Session
from learners.run.threads import torch_threads
from learners.settings.environments.rllib import RLlibRecordedConfig
from learners.settings.language_model.tokens import TokenRunConfig
from learners.settings.run import RLlibRunConfig

ARRAYS_NAME, STATE_NAME = "rllib.safetensors", "rllib.json"
ITERATION_GRACE_S = 5.0  # after Ctrl-C, for the iteration in progress


class World(Protocol):
    """What a run learns in, and how it is judged there."""

    example: gymnasium.Env[Any, Any]  # to look at
    facts: Mapping[str, str]  # what a checkpoint goes on from, besides the settings
    recorded: RecordedEpisodes | None  # what it learns from where it steps no environment

    def environments(self, note: Callable[[str], None]) -> AbstractContextManager[MakeEnvironment]:
        """What makes environments, in any process. Inside, whatever they need is at work. `note`: told what that waits for."""

    def notes(self) -> Sequence[str]:
        """What people should know of it, since the last call."""

    def before(self, session: Session, training: RLlibTraining) -> None:
        """Evaluate the start, unless that is done."""

    def on_the_way(self, training: RLlibTraining, *, last_step: int) -> Mapping[str, float]:
        """Evaluate, if it is time after the iteration that began at `last_step`; as metrics."""

    def after(self, session: Session, training: RLlibTraining) -> None:
        """Evaluate what was learned, and keep what is to be kept."""

    def state(self) -> Mapping[str, Any]:
        """What `after` depends on besides the training: for a checkpoint, as `RLlibTraining.state`."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back there; an empty one is the start of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestPolicy:
    """Of those that were evaluated on the way."""

    env_step: int
    return_mean: float
    weights: dict[str, Any]  # as `RLlibTraining.weights`


class GymnasiumWorld:
    """Implements `World`. Raises `ConfigError` where the environment cannot be made."""

    def __init__(self, config: RLlibRunConfig) -> None:
        self._config = config
        self.example: gymnasium.Env[Any, Any] = make_environment(config.task)
        self._is_flat = observation_connector(self.example.observation_space) is not None
        self.facts: Mapping[str, str] = {}
        self.recorded = (
            load_recorded(config.learner.input_, self.example, is_flat=self._is_flat)
            if isinstance(config.learner, RLlibRecordedConfig)
            else None
        )
        self._best: BestPolicy | None = None

    def environments(self, note: Callable[[str], None]) -> AbstractContextManager[MakeEnvironment]:
        return nullcontext(functools.partial(make_environment, self._config.task))

    def notes(self) -> Sequence[str]:
        return ()

    def before(self, session: Session, training: RLlibTraining) -> None:
        if not (session.path / BEFORE).exists():
            self._evaluate(session, self._policy(training), BEFORE)

    def on_the_way(self, training: RLlibTraining, *, last_step: int) -> Mapping[str, float]:
        evaluation, step = self._config.evaluation, training.num_env_steps
        every = evaluation.every_num_env_steps
        if every == 0 or step // every == last_step // every:
            return {}
        returns = returns_of_episodes(
            self._make,
            self._policy(training),
            [derive_seed(self._config.seed, "interim environment", number) for number in range(evaluation.num_interim_episodes)],
            max_steps=evaluation.max_episode_steps,
        )
        mean = float(np.mean(returns))
        if evaluation.keep == "best" and (self._best is None or mean >= self._best.return_mean):
            self._best = BestPolicy(env_step=step, return_mean=mean, weights=training.weights())
        return {"episode/evaluated_return_mean": mean, "episode/evaluated_return_std": float(np.std(returns))}

    def after(self, session: Session, training: RLlibTraining) -> None:
        best = self._best
        if best is not None:
            found = f"{best.return_mean:.4g} over {self._config.evaluation.num_interim_episodes} episodes"
            session.view.note(f"the policy of environment step {best.env_step:,} is kept, the best on the way: {found}")
            session.directory.write_summary({"best": {"env_step": best.env_step, "return_mean": best.return_mean}})
        self._evaluate(session, self._policy(training, None if best is None else best.weights), AFTER)

    def state(self) -> Mapping[str, Any]:
        return {} if self._best is None else {"best": asdict(self._best)}

    def restore(self, state: Mapping[str, Any]) -> None:
        is_wanted = self._config.evaluation.keep == "best" and "best" in state  # a resume may have changed the setting
        self._best = BestPolicy(**state["best"]) if is_wanted else None

    def _make(self, render_mode: str | None) -> gymnasium.Env[Any, Any]:
        return make_environment(self._config.task, render_mode=render_mode)

    def _policy(self, training: RLlibTraining, weights: Mapping[str, Any] | None = None) -> GreedyPolicy:
        return training.policy(self.example, is_flat=self._is_flat, weights=weights)

    def _evaluate(self, session: Session, policy: GreedyPolicy, file: Path) -> None:
        """As a stage: into the file, and the numbers into the summary."""
        episodes: list[RecordedEpisode] = []
        with session.stage(f"evaluate {file.stem}"):
            found = evaluate_by_episodes(
                self._make,
                policy,
                self._config.evaluation,
                seed=self._config.seed,
                record=episodes.append if self._config.evaluation.record_episodes else None,
            )
            if episodes:
                write_episodes(session.path / episodes_file(file), episodes)
            write_down(session, found, file)


def learn_with_rllib(session: Session, config: RLlibRunConfig | TokenRunConfig, algorithm: AlgorithmConfig, world: World) -> None:
    """Evaluate the start, learn iteration by iteration, evaluate what was learned."""
    with torch_threads(config.learner.num_threads), world.environments(session.view.note) as make:
        run = _Run(session=session, config=config, algorithm=algorithm, world=world, make=make)
        try:
            world.before(session, run.training)
            run.restore()
            with session.stage("train"), session.watched(run.pending):
                run.go()
            world.after(session, run.training)
        finally:
            run.training.stop()


@dataclass(kw_only=True)
class _Run:
    """Iterations, their metrics and checkpoints."""

    session: Session
    config: RLlibRunConfig | TokenRunConfig
    algorithm: AlgorithmConfig
    world: World
    make: MakeEnvironment

    def __post_init__(self) -> None:
        self._checkpoints = CheckpointFolder(self.session.path / CHECKPOINTS)
        self._facts = {
            "task": json.dumps(self.config.task.model_dump(mode="json"), sort_keys=True),
            "seed": str(self.config.seed),
            "algorithm": self.config.learner.algorithm,
            "network": json.dumps(self.config.learner.network.model_dump(mode="json"), sort_keys=True),
            **self.world.facts,
        }
        self._num_restarts = 0
        self._began_s = time.monotonic()
        self.training = self._build()

    def pending(self) -> list[Pending]:
        what = f"iteration from environment step {self._last_step}"
        return [Pending(whom=self.config.task.env, what=what, since_s=self._began_s)]

    def restore(self) -> None:
        """From the newest checkpoint, if there is one; what was recorded after it is dropped."""
        checkpoint = self._checkpoints.newest_intact()
        if checkpoint is not None:
            checkpoint.check_facts(self._facts)
            state = json.loads((checkpoint.path / STATE_NAME).read_text(encoding="utf-8"))
            found = join(load_file(checkpoint.path / ARRAYS_NAME), state)
            self.training.restore(found)
            self.world.restore(found.get("world", {}))
        else:
            self.world.restore({})
        self._last_step = self._saved_step = self.training.num_env_steps
        if self.session.metrics.last_step("") > self._last_step:
            self.session.metrics.discard(lambda line: line["step"] > self._last_step, from_step=self._last_step + 1)

    def go(self) -> None:
        """All iterations that are still to do; lost learners are replaced, and go back to the newest checkpoint."""
        while self._last_step < self.config.learner.num_env_steps:
            try:
                with self.session.interrupts.deferred(ITERATION_GRACE_S):
                    self._began_s = time.monotonic()
                    self._run_iteration()
            except RayError as error:
                self._replace(error)

    def _run_iteration(self) -> None:
        metrics = self.training.iterate()
        for note in self.world.notes():
            self.session.view.note(note)
        step, num_env_steps = self.training.num_env_steps, self.config.learner.num_env_steps
        seconds = time.monotonic() - self._began_s
        metrics["rollout/env_steps_per_s"] = (step - self._last_step) / seconds
        metrics |= self.world.on_the_way(self.training, last_step=self._last_step)
        self._last_step = step
        self.session.metrics.log(step, metrics)
        self.session.view.step(min(step, num_env_steps), num_env_steps, metrics)
        if step - self._saved_step >= self.config.checkpoint.every_num_env_steps or step >= num_env_steps:
            self._save()

    def _save(self) -> None:
        arrays, rest = split(self.training.state() | {"world": self.world.state()})

        def write_files(folder: Path) -> None:
            save_file(arrays, folder / ARRAYS_NAME)
            (folder / STATE_NAME).write_text(json.dumps(rest, allow_nan=False), encoding="utf-8")

        self._checkpoints.write(self._last_step, policy_version=self._last_step, facts=self._facts, write_files=write_files)
        self._checkpoints.prune(keep=self.config.checkpoint.keep)
        self._saved_step = self._last_step
        self.training.reseed()

    def _replace(self, error: RayError) -> None:
        """Start all processes anew where one of the learners is lost; RLlib itself restarts none. One that cannot be reached, as
        when its node goes, may or may not have learned from the batch."""
        if outcome_of(error) is Outcome.FAILED:
            raise failure_of("RLlib's learner", error)
        self._num_restarts += 1
        if self._num_restarts > self.config.learner.max_restarts:
            raise RaywardError(
                f"a learner was lost {self._num_restarts} times ({reason_of(error)}), more than learner.max_restarts="
                f"{self.config.learner.max_restarts}; correct the cause, then resume the run"
            ) from error
        self.training.stop()
        self.training = self._build()
        self.restore()
        self.session.view.note(
            f"a learner was lost ({reason_of(error)}); all were replaced and go on from environment step {self._last_step}"
        )

    def _build(self) -> RLlibTraining:
        return RLlibTraining(self.algorithm, self.make, seed=self.config.seed, recorded=self.world.recorded)
