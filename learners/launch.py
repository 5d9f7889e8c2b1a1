"""The composition root of a run: the one place where tasks, generators, scorers and learners meet."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from actors.model_source import resolve_model
from actors.movie_reviews_source import human_agreement, load_movie_reviews, preference_pairs, split_movie_reviews
from cluster.config import StrictConfig
from learners.config import PPORunConfig, QuickstartConfig, RewardModelLearnerConfig, RewardModelRunConfig, TrainingRunConfig
from learners.plan import role_requests
from learners.report import write_report
from learners.session import Session, open_session

REWARD_MODEL_STAGE = "reward model"
POLICY_STAGES = ("start", "evaluate before", "ppo", "evaluate after", "report")


def run_quickstart(config: QuickstartConfig) -> Path:
    """A reward model from people's judgements, then a policy aligned against it. Returns the run directory."""
    policy_run = config.policy_run()
    with open_session(config, stages=(REWARD_MODEL_STAGE, *POLICY_STAGES), requests=role_requests(policy_run)) as session:
        reward_model = learn_reward_model(session, config.model, config.reward_model, seed=config.seed)
        scorer = config.scorer.model_copy(update={"model": str(reward_model)})
        align_policy(session, policy_run.model_copy(update={"scorers": (scorer,)}))
    return session.path


def run_training(config: TrainingRunConfig) -> Path:
    """One learner. Returns the run directory."""
    if isinstance(config, RewardModelRunConfig):
        with open_session(config, stages=(REWARD_MODEL_STAGE, "report"), requests=role_requests(config)) as session:
            learn_reward_model(session, config.model, config.learner, seed=config.seed)
            with session.stage("report"):
                write_report(session.path)
        return session.path
    with open_session(config, stages=POLICY_STAGES, requests=role_requests(config)) as session:
        align_policy(session, config)
    return session.path


def align_policy(session: Session, config: PPORunConfig) -> None:
    """PPO on `config.task` against `config.scorers`, evaluated before and after on held-out prompts."""
    start_policy = resolve_model(config.model)
    train_prompts, held_out_prompts = _prompts(session, config, start_policy)
    with ExitStack() as stack:
        with session.stage("start"):
            parts = _start(stack, session, config, start_policy)
            _check_logprob_contract(parts, held_out_prompts[: config.evaluation.num_prompts], config)
        evaluator = Evaluator(
            prompts=held_out_prompts[: config.evaluation.num_prompts],
            rollouts=parts.rollouts,
            scoring=parts.scoring,
            learner=parts.learner,
            second_judge=REWARD_FUNCTIONS["vader"],
            sampling=_sampling(config, config.evaluation.samples_per_prompt, derive_seed(config.seed, "evaluation")),
        )
        _evaluate(session, evaluator, "before")
        with session.stage("ppo"):
            _train(session, config, parts, train_prompts)
        _evaluate(session, evaluator, "after")
        with session.stage("report"):
            parts.learner.export(session.path / "policies")
            write_report(session.path)
