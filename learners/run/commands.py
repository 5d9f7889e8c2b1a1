"""The commands that run learners: which stages a run has, new, resumed or from step 0 again."""

import logging
from collections.abc import Sequence
from pathlib import Path

from actors.config import RewardModelScorerConfig
from actors.sources.fetching import announced
from cluster.errors import CannotResumeError
from cluster.storage.checkpoint import CheckpointFolder
from cluster.storage.ledger import num_recorded_steps
from cluster.storage.run_directory import (
    POLICY_CHECKPOINTS,
    REWARD_MODEL_CHECKPOINTS,
    REWARD_MODEL_FOLDER,
    RunDirectory,
    find_run,
)
from cluster.storage.run_lock import RunLock
from learners.report.page import ReportInTheMaking
from learners.run.plan import role_requests
from learners.run.prompt_loading import prompts_meanwhile
from learners.run.session import open_session
from learners.settings.run import (
    PlanningRunConfig,
    PolicyRunConfig,
    PretrainingRunConfig,
    QuickstartConfig,
    RewardModelRunConfig,
    RLlibRunConfig,
    TabularRunConfig,
    TokenRunConfig,
    TrainingRunConfig,
    load_resolved_config,
)

logger = logging.getLogger(__name__)

CHECKPOINT_FOLDERS = (POLICY_CHECKPOINTS, REWARD_MODEL_CHECKPOINTS)


def run_quickstart(config: QuickstartConfig, *, resumed: RunDirectory | None = None) -> Path:
    """A reward model from people's judgements, then a policy aligned against it. Returns the run directory.

    `resumed`: an earlier run of the same configuration to go on with.
    """
    from learners.run.policy_stage import POLICY_STAGES, align_policy
    from learners.run.reward_model_stage import REWARD_MODEL_STAGE, learn_reward_model

    policy_run = config.policy_run()
    report = ReportInTheMaking()
    stages = (REWARD_MODEL_STAGE, *POLICY_STAGES)
    with (
        prompts_meanwhile(policy_run) as rendering,
        open_session(config, stages=stages, requests=role_requests(policy_run), resumed=resumed) as session,
    ):
        prompts = rendering.result()  # now: it may be what is wrong, and a reward model takes minutes
        reward_model = learn_reward_model(session, config.model, config.reward_model, seed=config.seed)
        align_policy(session, _judged_by(policy_run, reward_model), prompts, report)
    return _reported(session.path, report)


def run_training(config: TrainingRunConfig, *, resumed: RunDirectory | None = None) -> Path:
    """One learner. Returns the run directory. `resumed`: an earlier run of the same configuration to go on with."""
    report = ReportInTheMaking()
    if isinstance(config, PretrainingRunConfig):
        return _reported(_run_pretraining(config, resumed), report)
    if isinstance(config, TokenRunConfig):
        return _reported(_run_with_tokens(config, resumed), report)
    if isinstance(config, RLlibRunConfig):
        return _reported(_run_with_rllib(config, resumed), report)
    if isinstance(config, PlanningRunConfig | TabularRunConfig):
        return _reported(_run_in_environment(config, resumed), report)
    if isinstance(config, RewardModelRunConfig):
        return _reported(_run_reward_model(config, resumed), report)
    return _reported(_run_policy(config, resumed, report), report)


def _run_policy(config: PolicyRunConfig, resumed: RunDirectory | None, report: ReportInTheMaking) -> Path:
    from learners.run.policy_stage import POLICY_STAGES, align_policy  # with all roles, which other runs need not wait for

    with (
        prompts_meanwhile(config) as rendering,
        open_session(config, stages=POLICY_STAGES, requests=role_requests(config), resumed=resumed) as session,
    ):
        align_policy(session, config, rendering.result(), report)
    return session.path


def _run_reward_model(config: RewardModelRunConfig, resumed: RunDirectory | None) -> Path:
    from learners.run.reward_model_stage import REWARD_MODEL_STAGE, learn_reward_model

    with open_session(config, stages=(REWARD_MODEL_STAGE,), requests=role_requests(config), resumed=resumed) as session:
        learn_reward_model(session, config.model, config.learner, seed=config.seed)
    return session.path


def _run_pretraining(config: PretrainingRunConfig, resumed: RunDirectory | None) -> Path:
    """The text is read first, so that whatever is wrong with it is told before there is a run directory."""
    from learners.run.language_model.pretraining_stage import LANGUAGE_MODEL_STAGES, pretrain_language_model, read_text

    text = read_text(config)
    with open_session(config, stages=LANGUAGE_MODEL_STAGES, requests=role_requests(config), resumed=resumed) as session:
        pretrain_language_model(session, config, text)
    return session.path


def _run_in_environment(config: PlanningRunConfig | TabularRunConfig, resumed: RunDirectory | None) -> Path:
    """The environment is made first, so that whatever is wrong with it is told before there is a run directory."""
    from learners.environments.finite import build_environment  # with Gymnasium, which other runs need not wait for
    from learners.run.environment.planning_stage import model_to_plan_with, plan_table_of_values
    from learners.run.environment.stages import ENVIRONMENT_STAGES
    from learners.run.environment.tabular_stage import learn_table

    environment = build_environment(config.task)
    model = model_to_plan_with(config, environment) if isinstance(config, PlanningRunConfig) else None
    with open_session(config, stages=ENVIRONMENT_STAGES, requests=role_requests(config), resumed=resumed) as session:
        if isinstance(config, TabularRunConfig):
            learn_table(session, config, environment)
        else:
            assert model is not None, "planning has one"
            plan_table_of_values(session, config, environment, model)
    return session.path


def _run_with_rllib(config: RLlibRunConfig, resumed: RunDirectory | None) -> Path:
    """Environment and settings are looked at first, so that whatever is wrong with them is told before Ray starts."""
    from learners.rllib.configuration import algorithm_config  # with RLlib, which other runs need not wait for
    from learners.run.environment.rllib_stage import GymnasiumWorld, learn_with_rllib
    from learners.run.environment.stages import ENVIRONMENT_STAGES

    world = GymnasiumWorld(config)
    algorithm = algorithm_config(config.learner, world.example)
    with open_session(config, stages=ENVIRONMENT_STAGES, requests=role_requests(config), resumed=resumed) as session:
        learn_with_rllib(session, config, algorithm, world)
    return session.path


def _run_with_tokens(config: TokenRunConfig, resumed: RunDirectory | None) -> Path:
    """Model, prompts and settings are looked at first, so that whatever is wrong with them is told before Ray starts."""
    from learners.rllib.configuration import algorithm_config  # with RLlib, which other runs need not wait for
    from learners.run.environment.rllib_stage import learn_with_rllib
    from learners.run.language_model.pretraining_stage import LANGUAGE_MODEL_STAGES
    from learners.run.language_model.token_stage import TokenWorld

    world = TokenWorld(config)
    algorithm = algorithm_config(config.learner, world.example, module_spec=world.module_spec)
    with open_session(config, stages=LANGUAGE_MODEL_STAGES, requests=role_requests(config), resumed=resumed) as session:
        learn_with_rllib(session, config, algorithm, world)
    return session.path


def resume_run(run: Path, overrides: Sequence[str], *, fresh: bool) -> Path:
    """Go on with a run where it stopped; `fresh`: from step 0 again, what there was set aside. Returns the run directory.

    `overrides` become part of the run's configuration, for example another number of workers. Raises `CannotResumeError` for
    a run that is complete, or whose checkpoints are all damaged or gone; then nothing is touched.
    """
    path = find_run(run)
    config = load_resolved_config(path, overrides)
    RunLock(path).release()  # a run that lives is refused first: it may be writing the checkpoints that are looked at next
    if not fresh:
        _check_checkpoints(path, config)  # now, and not after a minute in the learner's ranks
    resumed = RunDirectory.open(path)
    if fresh:
        resumed.set_aside()
    resumed.write_config(config.model_dump(mode="json"))
    if isinstance(config, QuickstartConfig):
        return run_quickstart(config, resumed=resumed)
    return run_training(config, resumed=resumed)


def _judged_by(config: PolicyRunConfig, reward_model: Path) -> PolicyRunConfig:
    """With the trained folder in the place of the name that stands for it."""
    scorers = tuple(
        scorer.model_copy(update={"model": str(reward_model)})
        if isinstance(scorer, RewardModelScorerConfig) and scorer.model == REWARD_MODEL_FOLDER
        else scorer
        for scorer in config.scorers
    )
    return config.model_copy(update={"scorers": scorers})


def _check_checkpoints(run: Path, config: QuickstartConfig | TrainingRunConfig) -> None:
    """Raise `CannotResumeError` where going on would begin again at step 0 and drop the records of steps that were done.

    A run killed before its first checkpoint rightly begins again; the steps that it may have done until then are few: the first
    checkpoint is on disk before the second is begun.
    """
    newest = {name: CheckpointFolder(run / name).newest_intact() for name in CHECKPOINT_FOLDERS}
    num_steps = num_recorded_steps(run / "trajectories")
    if not isinstance(config, PolicyRunConfig | QuickstartConfig) or newest[POLICY_CHECKPOINTS] is not None or not num_steps:
        return
    policy = config.policy if isinstance(config, QuickstartConfig) else config
    every = policy.checkpoint.every_num_steps
    if num_steps > 2 * every:
        raise CannotResumeError(
            f"{run} has records of {num_steps} steps, a checkpoint was due every {every}, and {run / POLICY_CHECKPOINTS} holds "
            "none; put the folder back, or resume with --fresh to start again from step 0"
        )
    logger.info("%s stopped before its first checkpoint; its %d steps are done again", run, num_steps)


def _reported(run: Path, report: ReportInTheMaking) -> Path:
    """Written when the run is over, so that the report says how it ended."""
    with announced("writing the report"):
        report.finish(run)
    return run
