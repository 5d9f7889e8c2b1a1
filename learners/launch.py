"""The composition root of a run: the one place where tasks, generators, scorers and learners meet."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from actors.config import GeneratorConfig
from actors.fetching import announced
from actors.model_source import model_digest, resolve_model
from actors.movie_reviews_source import RatedSnippet, human_agreement, load_movie_reviews, preference_pairs, split_movie_reviews
from actors.remote import DeviceFedGeneratorActor, GeneratorActor
from actors.rendering import load_tokenizer, render_prompts
from actors.reward_head import encode_texts
from actors.rewards import REWARD_FUNCTIONS
from actors.rollout import RolloutPool
from actors.scoring import Scoring, build_scoring
from actors.tasks import build_task_sets
from cluster.atomic_file import write_atomically
from cluster.errors import ConfigError, LearnerRestartedError
from cluster.ledger import TrajectoryLedger
from cluster.run_directory import RunDirectory, find_run
from cluster.seeding import derive_seed
from cluster.types import Prompt, SamplingParameters
from learners.collection import Collector, DynamicSampling, GreedyBaseline, PlainCollector
from learners.config import (
    PolicyRunConfig,
    QuickstartConfig,
    RewardModelRunConfig,
    TrainingRunConfig,
    load_resolved_config,
)
from learners.driver import Driver, Records
from learners.evaluation import EvaluationResult, evaluate_samples
from learners.evaluator import Evaluator
from learners.learner_config import RewardModelLearnerConfig
from learners.mailbox import CheckpointPlan, GeneratorLink, StartingPoint
from learners.plan import role_requests
from learners.policy_config import GROUP_ESTIMATORS
from learners.prompt_schedule import PromptSchedule
from learners.report import write_report
from learners.reward_model import ComparedTexts, RatedTexts, RewardModelJob, train_reward_model
from learners.session import Session, open_session
from learners.train_handle import LearnerFolders, LearnerHandle

SHARED_MEMORY = Path("/dev/shm")
NUM_CONTRACT_PROMPTS = 8
GENERATOR_ACTORS = {"shm": GeneratorActor, "nccl": DeviceFedGeneratorActor, "ipc": DeviceFedGeneratorActor}
REWARD_MODEL_STAGE = "reward model"
BEFORE, AFTER = Path("evaluation") / "before.json", Path("evaluation") / "after.json"
POLICY_STAGES = ("start", "evaluate before", "train", "evaluate after", "export")


def run_quickstart(config: QuickstartConfig, *, resumed: RunDirectory | None = None) -> Path:
    """A reward model from people's judgements, then a policy aligned against it. Returns the run directory.

    `resumed`: an earlier run of the same configuration to go on with.
    """
    policy_run = config.policy_run()
    stages = (REWARD_MODEL_STAGE, *POLICY_STAGES)
    with open_session(config, stages=stages, requests=role_requests(policy_run), resumed=resumed) as session:
        reward_model = learn_reward_model(session, config.model, config.reward_model, seed=config.seed)
        scorer = config.scorer.model_copy(update={"model": str(reward_model)})
        align_policy(session, policy_run.model_copy(update={"scorers": (scorer,)}))
    return _reported(session.path)


def run_training(config: TrainingRunConfig, *, resumed: RunDirectory | None = None) -> Path:
    """One learner. Returns the run directory. `resumed`: an earlier run of the same configuration to go on with."""
    if isinstance(config, RewardModelRunConfig):
        stages: tuple[str, ...] = (REWARD_MODEL_STAGE,)
        with open_session(config, stages=stages, requests=role_requests(config), resumed=resumed) as session:
            learn_reward_model(session, config.model, config.learner, seed=config.seed)
    else:
        with open_session(config, stages=POLICY_STAGES, requests=role_requests(config), resumed=resumed) as session:
            align_policy(session, config)
    return _reported(session.path)


def resume_run(run: Path, overrides: Sequence[str], *, fresh: bool) -> Path:
    """Go on with a run where it stopped; `fresh`: from step 0 again, what there was set aside. Returns the run directory.

    `overrides` become part of the run's configuration, for example another number of workers. Raises `CannotResumeError` for
    a run that is complete, or whose checkpoints are all damaged.
    """
    path = find_run(run)
    config = load_resolved_config(path, overrides)
    resumed = RunDirectory.open(path)
    if fresh:
        resumed.set_aside()
    resumed.write_config(config.model_dump(mode="json"))
    if isinstance(config, QuickstartConfig):
        return run_quickstart(config, resumed=resumed)
    return run_training(config, resumed=resumed)


def learn_reward_model(session: Session, model: str, config: RewardModelLearnerConfig, *, seed: int) -> Path:
    """A reward model from the movie-review judgements; returns its folder inside the run directory."""
    start_model = resolve_model(model)
    folder = session.path / "reward_model"
    if folder.exists():  # a resumed run; the folder appears whole or not at all
        return folder
    with session.stage(REWARD_MODEL_STAGE):
        snippets = split_movie_reviews(load_movie_reviews())
        pairs = preference_pairs(
            snippets.held_out,
            min_gap=config.min_rating_gap,
            num_pairs=config.num_eval_pairs,
            seed=derive_seed(seed, "held-out pairs"),
        )
        tokenizer = load_tokenizer(start_model)

        def encode(snippets: Sequence[RatedSnippet]) -> tuple[tuple[int, ...], ...]:
            return tuple(encode_texts(tokenizer, [snippet.text for snippet in snippets], max_tokens=config.max_tokens))

        job = RewardModelJob(
            model_path=start_model,
            train=RatedTexts(
                token_ids=encode(snippets.train),
                ratings=tuple(snippet.mean_rating for snippet in snippets.train),
            ),
            held_out=ComparedTexts(token_ids=encode(snippets.held_out), pairs=tuple(pairs)),
            config=config,
            seed=seed,
            output_dir=folder,
            checkpoints=CheckpointPlan(
                directory=(session.path / "reward_model_checkpoints").absolute(),
                keep=1,
                facts={"model": model_digest(start_model), "seed": str(seed)},
            ),
        )

        num_steps_seen = session.metrics.last_step("reward_model")

        def on_step(step: int, num_steps: int, metrics: Mapping[str, float]) -> None:
            nonlocal num_steps_seen
            if step <= num_steps_seen:  # lost ranks went on from a checkpoint
                session.metrics.discard(lambda line: line.get("stage") == "reward_model" and line["step"] >= step, from_step=step)
            num_steps_seen = step
            session.metrics.log(step, metrics, stage="reward_model")
            session.view.step(step, num_steps, metrics)

        result = train_reward_model(job, storage_path=session.path / "logs" / "ray_train", on_step=on_step)
        agreement = human_agreement(
            snippets.held_out,
            min_gap=config.min_rating_gap,
            num_pairs=config.num_eval_pairs,
            seed=derive_seed(seed, "human agreement"),
        )
        shutil.rmtree(job.checkpoints.directory, ignore_errors=True)  # the reward model itself is on disk, whole
        session.directory.write_summary({"reward_model": {**asdict(result), "human_agreement": agreement}})
        session.view.note(f"reward model: {result.accuracy:.3f} of held-out pairs right; one human rater: {agreement:.3f}")
    return folder


def align_policy(session: Session, config: PolicyRunConfig) -> None:
    """One policy-gradient method on `config.task` against `config.scorers`, evaluated before and after on held-out prompts."""
    start_policy = resolve_model(config.model)
    with ExitStack() as stack:
        with session.stage("start"):
            parts = _start_parts(stack, session, config, start_policy)
            # Meanwhile: the import of transformers alone takes seconds.
            train_prompts, held_out_prompts = _render_prompts(session, config, start_policy)
            parts.wait_until_ready(config.generator)
            check_logprob_contract(parts, held_out_prompts[:NUM_CONTRACT_PROMPTS], config)
        evaluator = Evaluator(
            prompts=held_out_prompts,
            rollouts=parts.rollouts,
            scoring=parts.scoring,
            learner=parts.learner,
            second_judge=REWARD_FUNCTIONS["vader"],
            sampling=_sampling(config, config.evaluation.samples_per_prompt, "evaluation"),
        )
        if not (session.path / BEFORE).exists():
            _evaluate(session, evaluator, BEFORE, num_steps_done=0)
        driver = _driver(session, config, parts, train_prompts)
        while True:  # until the learner keeps its ranks from the last step to the export
            with session.stage("train"):
                version = _run_steps(session, config, driver, evaluator)
            try:
                _evaluate(session, evaluator, AFTER, num_steps_done=config.learner.num_steps)
                with session.stage("export"):
                    _export(session, parts.learner, version)
            except LearnerRestartedError as error:
                session.view.note(str(error))
            else:
                return


def check_logprob_contract(parts: "Parts", prompts: Sequence[Prompt], config: PolicyRunConfig) -> None:
    """Raise `ConfigError` where engine and learner disagree about the probability of the engine's own samples."""
    trajectories = [
        trajectory
        for group in parts.rollouts.collect(prompts, _sampling(config, 1, "contract"))
        for trajectory in group.trajectories
    ]
    learner_logprobs = parts.learner.completion_logprobs(trajectories)
    differences = [
        abs(ours - theirs)
        for trajectory, logprobs in zip(trajectories, learner_logprobs, strict=True)
        for ours, theirs in zip(logprobs, trajectory.completion.rollout_logprobs, strict=True)
    ]
    mean = sum(differences) / len(differences)
    if not mean <= config.learner.mismatch.max_logprob_mismatch:
        raise ConfigError(
            f"engine and learner disagree about log-probabilities by {mean:.3f} nats a token on average, more than "
            f"learner.mismatch.max_logprob_mismatch={config.learner.mismatch.max_logprob_mismatch:g}; compare generator.dtype="
            f"{config.generator.dtype} with learner.workers.compute_dtype={config.learner.workers.compute_dtype}, "
            f"sampling.temperature={config.sampling.temperature:g}, sampling.top_p={config.sampling.top_p:g}, and the model"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The running roles of one policy run."""

    rollouts: RolloutPool
    scoring: Scoring
    learner: LearnerHandle

    def wait_until_ready(self, config: GeneratorConfig) -> None:
        """Return when every role answers and weights can reach the generators."""
        self.rollouts.wait_until_ready()
        self.scoring.wait_until_ready()
        num_steps_done = self.learner.wait_until_ready()
        if config.weight_transfer != "shm":
            self.learner.connect(
                GeneratorLink(
                    backend=config.weight_transfer,
                    generators=tuple(self.rollouts.actors.values()),
                    workers_per_generator=config.tensor_parallel_size,
                    dtype=config.dtype,
                )
            )
        if num_steps_done:  # the generators hold the start's weights, the learner those of its checkpoint
            self.rollouts.publish(self.learner.publish())


def _start_parts(stack: ExitStack, session: Session, config: PolicyRunConfig, start_policy: str) -> Parts:
    """Start all roles, which then load side by side; `stack` ends them."""
    rollouts = _start_generators(start_policy, config, note=session.view.note)
    stack.callback(rollouts.shutdown)
    scoring = build_scoring(
        config.scorers,
        prompt_format=config.task.prompt_format,
        supervision=config.supervision,
        note=session.view.note,
    )
    weights_dir = Path(tempfile.mkdtemp(prefix="rayward-", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None))
    stack.callback(shutil.rmtree, weights_dir, ignore_errors=True)
    learner = stack.enter_context(
        LearnerHandle(
            StartingPoint(
                model_path=start_policy,
                temperature=config.sampling.temperature,
                max_completion_tokens=config.sampling.max_completion_tokens,
                seed=config.seed,
            ),
            config.learner,
            LearnerFolders(
                storage=session.path / "logs" / "ray_train", weights=weights_dir, weights_dtype=config.generator.dtype
            ),
            CheckpointPlan(
                directory=(session.path / "checkpoints").absolute(),
                keep=config.checkpoint.keep,
                facts={"model": model_digest(start_policy), "seed": str(config.seed)},
            ),
        )
    )
    return Parts(rollouts=rollouts, scoring=scoring, learner=learner)


def _start_generators(model_path: str, config: PolicyRunConfig, *, note: Callable[[str], None]) -> RolloutPool:
    generator = config.generator
    actor = GENERATOR_ACTORS[generator.weight_transfer].options(num_cpus=generator.num_cpus, num_gpus=generator.num_gpus)

    return RolloutPool(
        lambda name: actor.remote(model_path, generator),
        num_replicas=generator.num_replicas,
        max_num_sequences=generator.max_num_sequences,
        # A replacement cannot join a link over devices: there, a lost generator ends the run, to be resumed.
        supervision=config.supervision if generator.weight_transfer == "shm" else None,
        note=note,
    )


def _render_prompts(session: Session, config: PolicyRunConfig, start_policy: str) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
    """Prompts to train on, and those to evaluate on. Raises `ConfigError` where there are too few."""
    tokenizer = load_tokenizer(start_policy)
    train_tasks, held_out_tasks = build_task_sets(config.task)
    train = render_prompts(train_tasks, tokenizer, task_config=config.task)
    held_out = render_prompts(held_out_tasks, tokenizer, task_config=config.task)
    if train.num_dropped + held_out.num_dropped:
        session.view.note(f"left out {train.num_dropped + held_out.num_dropped} prompts that were too long")
    problems = [
        f"{key}={wanted} is more than the {len(found)} {kind} prompts of task.kind={config.task.kind}; lower it"
        for key, wanted, kind, found in (
            ("learner.prompts_per_step", config.learner.prompts_per_step, "training", train.prompts),
            ("evaluation.num_prompts", config.evaluation.num_prompts, "held-out", held_out.prompts),
        )
        if wanted > len(found)
    ]
    if problems:
        raise ConfigError(problems)
    return train.prompts, held_out.prompts[: config.evaluation.num_prompts]


def _driver(session: Session, config: PolicyRunConfig, parts: Parts, prompts: Sequence[Prompt]) -> Driver:
    schedule = PromptSchedule(prompts, prompts_per_step=config.learner.prompts_per_step, seed=config.seed)
    return Driver(
        schedule=schedule,
        collector=_collector(config, parts, schedule),
        generators=parts.rollouts,
        learner=parts.learner,
        records=Records(
            ledger=TrajectoryLedger(session.path / "trajectories"),
            metrics=session.metrics,
            failed_batches=session.path / "failed_batches",
            note=session.view.note,
        ),
        save_every=config.checkpoint.every_num_steps,
        max_unscored_frac=config.supervision.max_unscored_frac,
    )


def _run_steps(session: Session, config: PolicyRunConfig, driver: Driver, evaluator: Evaluator) -> int:
    """The steps that are still to do; returns the policy version that they end with."""
    num_steps, every = config.learner.num_steps, config.evaluation.every_num_steps

    def on_step(step: int, metrics: Mapping[str, float]) -> None:
        num_done = step + 1
        session.view.step(num_done, num_steps, metrics)
        if every and num_done % every == 0 and num_done < num_steps:  # the last is evaluated anyway
            _log_evaluation(session, num_done, evaluate_samples(evaluator.run()))

    return driver.run(num_steps, on_step=on_step)


def _collector(config: PolicyRunConfig, parts: Parts, schedule: PromptSchedule) -> Collector:
    """The way to scored groups that the method asks for."""
    sampling = _sampling(config, config.sampling.samples_per_prompt, "rollout")
    min_rewards = 2 if config.learner.advantage.estimator in GROUP_ESTIMATORS else 1
    collector: Collector = PlainCollector(parts.rollouts, parts.scoring, sampling, min_rewards=min_rewards)
    if config.learner.advantage.estimator == "remax":
        greedy = replace(sampling, temperature=0.0, samples_per_prompt=1)
        collector = GreedyBaseline(collector, PlainCollector(parts.rollouts, parts.scoring, greedy))
    if config.learner.group_filter.enabled:
        collector = DynamicSampling(collector, schedule, max_rounds=config.learner.group_filter.max_rounds)
    return collector


def _reported(run: Path) -> Path:
    """Written when the run is over, so that the report says how it ended."""
    with announced("writing the report"):
        write_report(run)
    return run


def _export(session: Session, learner: LearnerHandle, version: int) -> None:
    folder = session.path / "policies" / f"v{version:06d}"
    if not folder.exists():  # a run killed after its export has it already, whole
        learner.export(folder)
    session.directory.write_summary({"policy_version": version})


def _evaluate(session: Session, evaluator: Evaluator, samples_file: Path, *, num_steps_done: int) -> None:
    """Evaluate, keep the samples in `samples_file`, and put the averages into the summary under its name."""
    moment = samples_file.stem
    with session.stage(f"evaluate {moment}"):
        samples = evaluator.run()
        write_atomically(session.path / samples_file, json.dumps([asdict(sample) for sample in samples], indent=1))
        result = evaluate_samples(samples)
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
