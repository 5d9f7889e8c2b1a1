"""The stages of a run that learns a table from episodes. No Ray: one process does all of it."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from cluster.errors import RaywardError
from cluster.processes.watchdog import Pending
from cluster.storage.checkpoint import CheckpointFolder
from learners.environments.finite import Environment
from learners.environments.markov_model import MarkovModel, markov_model
from learners.environments.table_evaluator import Evaluator
from learners.evaluation.returns import AFTER, BEFORE
from learners.run.environment.stages import CHECKPOINTS, write_down
from learners.run.session import Session
from learners.settings.run import PlanningRunConfig, TabularRunConfig
from learners.tabular.planning import optimal_return
from learners.tabular.training import TableTraining

TABLES_NAME = "tables.safetensors"
REPORTS_PER_RUN = 100
EPISODE_GRACE_S = 5.0  # after Ctrl-C, for the episode in progress and its checkpoint


def learn_table(session: Session, config: TabularRunConfig, environment: Environment) -> None:
    """Evaluate the start, learn episode by episode, evaluate what was learned."""
    model = markov_model(environment)
    evaluator = build_evaluator(config, environment, model)
    training = TableTraining(environment, config.learner, seed=config.seed)
    if not (session.path / BEFORE).exists():
        evaluate(session, evaluator, training, BEFORE)
    run = _Run(session=session, config=config, training=training, model=model)
    run.restore()
    with session.stage("train"), session.watched(run.pending):
        run.go()
    evaluate(session, evaluator, training, AFTER)


def build_evaluator(
    config: TabularRunConfig | PlanningRunConfig, environment: Environment, model: MarkovModel | None
) -> Evaluator:
    """With the optimum beside, where the model is known."""
    gamma = config.learner.gamma
    return Evaluator(
        task=config.task,
        environment=environment,
        model=model,
        optimal_return=None if model is None else optimal_return(model, gamma=gamma),
        config=config.evaluation,
        gamma=gamma,
        seed=config.seed,
    )


def evaluate(session: Session, evaluator: Evaluator, training: TableTraining, file: Path) -> None:
    """As a stage: into the file, and the numbers into the summary."""
    with session.stage(f"evaluate {file.stem}"):
        write_down(session, evaluator.evaluate(training.agent.policy(), training.agent.state_values()), file)


@dataclass(kw_only=True)
class _Run:
    """Episodes, their metrics and checkpoints."""

    session: Session
    config: TabularRunConfig
    training: TableTraining
    model: MarkovModel | None

    def __post_init__(self) -> None:
        self._checkpoints = CheckpointFolder(self.session.path / CHECKPOINTS)
        self._facts = {
            "task": json.dumps(self.config.task.model_dump(mode="json"), sort_keys=True),
            "seed": str(self.config.seed),
        }
        self._facts["algorithm"] = self.config.learner.algorithm
        self._is_whole = True  # no episode is half learned
        self._began_s = time.monotonic()

    def pending(self) -> list[Pending]:
        return [Pending(whom=self.config.task.env, what=f"episode {self.training.num_done}", since_s=self._began_s)]

    def restore(self) -> None:
        """From the newest checkpoint, if there is one; what was recorded after it is dropped."""
        checkpoint = self._checkpoints.newest_intact()
        num_done = 0
        if checkpoint is not None:
            checkpoint.check_facts(self._facts)
            num_done = checkpoint.manifest.step
            self.training.restore(load_file(checkpoint.path / TABLES_NAME), num_done=num_done)
        if self.session.metrics.last_step("") > num_done:
            self.session.metrics.discard(lambda line: line["step"] > num_done, from_step=num_done + 1)

    def go(self) -> None:
        """All episodes that are still to do. On an interrupt the episodes done are kept, if there is time."""
        try:
            while self.training.num_done < self.config.learner.num_episodes:
                with self.session.interrupts.deferred(EPISODE_GRACE_S):
                    self._is_whole, self._began_s = False, time.monotonic()
                    self._run_episode()
                    self._is_whole = True
        except KeyboardInterrupt:
            if self._is_whole:
                self._save_on_the_way_out()
            raise

    def _run_episode(self) -> None:
        training, num_episodes = self.training, self.config.learner.num_episodes
        training.run_episode()
        done = training.num_done
        if done * REPORTS_PER_RUN // num_episodes > (done - 1) * REPORTS_PER_RUN // num_episodes:
            metrics = training.report()
            if self.model is not None:
                metrics["episode/expected_return"] = self.model.expected_return(
                    training.agent.policy(), gamma=self.config.learner.gamma
                )
            self.session.metrics.log(done, metrics)
            self.session.view.step(done, num_episodes, metrics)
        if done % self.config.checkpoint.every_num_episodes == 0 or done == num_episodes:
            self._save()

    def _save(self) -> None:
        state = {name: np.ascontiguousarray(array) for name, array in self.training.state().items()}

        def write_files(folder: Path) -> None:
            save_file(state, folder / TABLES_NAME)

        done = self.training.num_done
        self._checkpoints.write(done, policy_version=done, facts=self._facts, write_files=write_files)
        self._checkpoints.prune(keep=self.config.checkpoint.keep)

    def _save_on_the_way_out(self) -> None:
        try:
            self._save()
        except (RaywardError, OSError) as error:
            self.session.view.note(f"no checkpoint on the way out: {error}")
