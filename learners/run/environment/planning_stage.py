"""The stages of a run that plans with the environment's own model. No Ray, and no checkpoint on the way: it takes seconds."""

from pathlib import Path

from safetensors.numpy import save_file

from cluster.errors import ConfigError
from cluster.storage.checkpoint import CheckpointFolder
from learners.environments.finite import Environment
from learners.environments.markov_model import MarkovModel, markov_model
from learners.evaluation.returns import AFTER, BEFORE
from learners.run.environment.stages import CHECKPOINTS, write_down
from learners.run.environment.tabular_stage import TABLES_NAME, build_evaluator
from learners.run.session import Session
from learners.settings.run import PlanningRunConfig
from learners.tabular.planning import Sweep, first_actions, plan

ALL_REPORTED = 100  # of the first sweeps each is reported, of the next as many every second, and so on


def model_to_plan_with(config: PlanningRunConfig, environment: Environment) -> MarkovModel:
    """Raises `ConfigError` where the environment tells none."""
    model = markov_model(environment)
    if model is None:
        raise ConfigError(
            f"learner.algorithm={config.learner.algorithm} plans with a model, and task.env={config.task.env} has none (a table "
            "`P` of transitions that fits in memory); use a method that learns from episodes, for example q_learning"
        )
    return model


def plan_table_of_values(session: Session, config: PlanningRunConfig, environment: Environment, model: MarkovModel) -> None:
    """Evaluate the policy of first actions, plan, evaluate the policy found."""
    evaluator = build_evaluator(config, environment, model)
    with session.stage("evaluate before"):
        policy_SA = first_actions(model)
        before = evaluator.evaluate(policy_SA, model.policy_values(policy_SA, gamma=config.learner.gamma))
        write_down(session, before, BEFORE)
    session.metrics.discard(lambda line: True, from_step=1)  # of an earlier process of the run, which was not through
    with session.stage("train"):
        last, num_sweeps = _sweep(session, config, model)
        _save(session, last, num_sweeps, config)
    with session.stage("evaluate after"):
        write_down(session, evaluator.evaluate(last.policy_SA, last.values_S), AFTER)


def _sweep(session: Session, config: PlanningRunConfig, model: MarkovModel) -> tuple[Sweep, int]:
    number, found = 0, None
    for number, found in enumerate(plan(model, config.learner), start=1):
        if found.is_last or number % (1 + number // ALL_REPORTED) == 0:
            session.metrics.log(number, found.metrics)
            session.view.step(number, number + found.max_left, found.metrics)
    assert found is not None, "max_sweeps is at least 1"
    if not found.is_last:
        session.view.note(f"not done after learner.max_sweeps={config.learner.max_sweeps} sweeps: the result is an approximation")
    return found, number


def _save(session: Session, last: Sweep, num_sweeps: int, config: PlanningRunConfig) -> None:
    def write_files(folder: Path) -> None:
        save_file({"state_values": last.values_S, "policy": last.policy_SA}, folder / TABLES_NAME)

    CheckpointFolder(session.path / CHECKPOINTS).write(
        num_sweeps, policy_version=num_sweeps, facts={"algorithm": config.learner.algorithm}, write_files=write_files
    )
