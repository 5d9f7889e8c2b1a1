"""The stages that align a policy: roles started, evaluated, trained step by step, evaluated again, exported."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

from actors.rewards import REWARD_FUNCTIONS
from cluster.errors import LearnerRestartedError, SamplesLostError
from cluster.seeding import derive_seed
from cluster.storage.ledger import TrajectoryLedger
from cluster.storage.ledger_writer import LedgerWriter
from cluster.types import Prompt, SamplingParameters
from learners.evaluation.draws import Evaluator
from learners.evaluation.results import EvaluationResult, evaluate_samples, write_samples
from learners.report.page import ReportInTheMaking
from learners.run.composition import Roles, check_logprob_contract, start_roles
from learners.run.policy_exports import PolicyExports
from learners.run.prompt_loading import RunPrompts
from learners.run.session import Session
from learners.run.sizing.scaling import Scaling, build_scaling
from learners.settings.policy import GROUP_ESTIMATORS
from learners.settings.run import PolicyRunConfig
from learners.steps.async_driver import AsyncDriver
from learners.steps.collection import Collector, DynamicSampling, GreedyBaseline, PlainCollector
from learners.steps.driver import Driver, Records
from learners.steps.lookahead import Lookahead
from learners.steps.oversampling import Oversampling
from learners.steps.prompt_schedule import PromptSchedule
from learners.steps.shared_driver import SharedDriver

NUM_CONTRACT_PROMPTS = 8
BEFORE, AFTER = Path("evaluation") / "before.json", Path("evaluation") / "after.json"
POLICY_STAGES = ("start", "evaluate before", "train", "evaluate after", "export")


def align_policy(session: Session, config: PolicyRunConfig, prompts: RunPrompts, report: ReportInTheMaking) -> None:
    """One policy-gradient method on `config.task` against `config.scorers`, evaluated before and after on held-out prompts.

    Begins the `report` before the roles are stopped.
    """
    (session.path / "policies").mkdir(exist_ok=True)  # now, for an endpoint that waits for the first
    if prompts.note:
        session.view.note(prompts.note)
    with ExitStack() as stack:
        with session.stage("start"):
            roles = start_roles(stack, session, config, prompts.model_path, prompts.contract)
            stack.enter_context(session.watched(roles.pending))
            _until_ranks_are_kept(session, partial(_connect_and_check, session, roles, prompts, config))
        evaluator = Evaluator(
            prompts=prompts.held_out,
            rollouts=roles.rollouts,
            scoring=roles.scoring,
            learner=roles.learner_between_steps,
            judges={judge.function: REWARD_FUNCTIONS[judge.function] for judge in config.evaluation.judges},
            sampling=_sampling(config, config.evaluation.samples_per_prompt, "evaluation"),
        )
        if not (session.path / BEFORE).exists():
            _until_ranks_are_kept(session, partial(_evaluate, session, config, evaluator, BEFORE, num_steps_done=0))
        driver = _driver(session, config, roles, prompts.train)
        scaling = build_scaling(session.path, roles, config, note=session.view.note)
        exports = PolicyExports(session, config, roles.learner_between_steps, prompts)
        while True:  # until the learner keeps its ranks from the last step to the export
            with session.stage("train"):
                version = _run_steps(session, config, driver, evaluator, exports, scaling)
            try:
                _evaluate(session, config, evaluator, AFTER, num_steps_done=config.learner.num_steps)
                with session.stage("export"):
                    exports.last(version)
            except LearnerRestartedError as error:
                session.interrupts.check()
                session.view.note(str(error))
            else:
                report.begin(session.path)
                return


def _until_ranks_are_kept(session: Session, action: Callable[[], None]) -> None:
    """Do it, and do it again where the learner's ranks, or samples, are lost meanwhile; the group says when it gives up.

    For what comes before the first step: ranks come back with the weights that they had, those of the start or of the
    checkpoint that the run goes on from.
    """
    while True:
        try:
            return action()
        except (LearnerRestartedError, SamplesLostError) as error:
            session.interrupts.check()
            session.view.note(str(error))


def _connect_and_check(session: Session, roles: Roles, prompts: RunPrompts, config: PolicyRunConfig) -> None:
    roles.wait_until_ready(config, note=session.view.note)
    check_logprob_contract(roles, prompts.held_out[:NUM_CONTRACT_PROMPTS], _sampling(config, 1, "contract"), config)


def _driver(session: Session, config: PolicyRunConfig, roles: Roles, prompts: Sequence[Prompt]) -> Driver:
    schedule = PromptSchedule(prompts, prompts_per_step=config.learner.prompts_per_step, seed=config.seed)
    ledger = LedgerWriter(TrajectoryLedger(session.path / "trajectories"))
    drivers = {"asynchronous": AsyncDriver, "shared": SharedDriver, "separate": Driver}
    return drivers["asynchronous" if config.asynchronous is not None else config.placement](
        schedule=schedule,
        collector=_collector(config, roles, schedule, ledger),
        generators=roles.generators,
        learner=roles.learner,
        records=Records(
            ledger=ledger,
            metrics=session.metrics,
            failed_batches=session.path / "failed_batches",
            note=session.view.note,
        ),
        save_every=config.checkpoint.every_num_steps,
        max_unscored_frac=config.max_unscored_frac,
        interrupts=session.interrupts,
    )


def _run_steps(
    session: Session,
    config: PolicyRunConfig,
    driver: Driver,
    evaluator: Evaluator,
    exports: PolicyExports,
    scaling: Scaling,
) -> int:
    """The steps that are still to do; returns the policy version that they end with."""
    num_steps, every = config.learner.num_steps, config.evaluation.every_num_steps

    def on_step(step: int, metrics: Mapping[str, float]) -> None:
        num_done = step + 1
        session.view.step(num_done, num_steps, metrics)
        exports.after_step(num_done, int(metrics["policy/version"]))
        scaling.adjust()
        if every and num_done % every == 0 and num_done < num_steps:  # the last is evaluated anyway
            _log_evaluation(session, num_done, evaluate_samples(evaluator.run(), config.evaluation.judges))

    return driver.run(num_steps, on_step=on_step)


def _collector(config: PolicyRunConfig, roles: Roles, schedule: PromptSchedule, ledger: LedgerWriter) -> Collector:
    """The way to scored groups that the method asks for."""
    sampling = _sampling(config, config.sampling.samples_per_prompt, "rollout")
    min_rewards = 2 if config.learner.advantage.estimator in GROUP_ESTIMATORS else 1
    if config.asynchronous is not None:
        return Lookahead(
            roles.rollouts,
            roles.scoring,
            sampling,
            schedule,
            num_steps=config.learner.num_steps,
            max_staleness=config.asynchronous.max_staleness,
            min_rewards=min_rewards,
        )
    if config.extra_prompts_per_step:
        return Oversampling(
            roles.rollouts,
            roles.scoring,
            sampling,
            schedule,
            extra_prompts=config.extra_prompts_per_step,
            min_rewards=min_rewards,
        )
    collector: Collector = PlainCollector(roles.rollouts, roles.scoring, sampling, min_rewards=min_rewards)
    if config.learner.advantage.estimator == "remax":
        collector = GreedyBaseline(roles.rollouts, roles.scoring, sampling)
    if config.learner.group_filter.enabled:
        collector = DynamicSampling(collector, schedule, ledger, max_rounds=config.learner.group_filter.max_rounds)
    return collector


def _evaluate(
    session: Session, config: PolicyRunConfig, evaluator: Evaluator, samples_file: Path, *, num_steps_done: int
) -> None:
    """Evaluate, keep the samples in `samples_file`, and put the averages into the summary under its name."""
    moment = samples_file.stem
    with session.stage(f"evaluate {moment}"):
        samples = evaluator.run()
        write_samples(session.path / samples_file, samples)
        result = evaluate_samples(samples, config.evaluation.judges)
        session.directory.write_summary({moment: asdict(result)})
        _log_evaluation(session, num_steps_done, result)


def _log_evaluation(session: Session, num_steps_done: int, result: EvaluationResult) -> None:
    """Held-out points of the curve, at the step whose rollouts the same policy samples."""
    session.metrics.log(
        num_steps_done,
        {"evaluation/score_mean": result.score_mean, "evaluation/kl_nats_per_completion": result.kl_nats_per_completion},
        stage="evaluation",
    )


def _sampling(config: PolicyRunConfig, samples_per_prompt: int, purpose: str) -> SamplingParameters:
    return SamplingParameters(
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        max_completion_tokens=config.sampling.max_completion_tokens,
        samples_per_prompt=samples_per_prompt,
        seed=derive_seed(config.seed, purpose),
    )
