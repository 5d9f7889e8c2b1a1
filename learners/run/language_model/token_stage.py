"""A language model of one's own in the token environment: its prompts and reward, what it is worth, and where it ends."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from actors.generation.rendering import load_tokenizer, render_prompts
from actors.rewards import REWARD_FUNCTIONS
from actors.sources.models import model_digest, resolve_model
from actors.tasks import build_task_sets
from cluster.errors import ConfigError
from cluster.seeding import derive_seed
from cluster.storage.policy_folders import copy_tokenizer, new_folder
from cluster.storage.run_directory import LANGUAGE_MODEL_FOLDER
from cluster.types import Completion, Prompt, Trajectory
from learners.environments.token import TokenEnvironment, TokenEnvironments
from learners.evaluation.results import EvaluatedCompletion, evaluate_samples, write_samples
from learners.language_models.files import load_language_model, write_language_model
from learners.language_models.language_model import LanguageModel
from learners.language_models.sampling import completion_divergence, sample
from learners.rllib.environment import MakeEnvironment, SideBySide
from learners.rllib.language_model import language_model_spec
from learners.rllib.recorded import RecordedEpisodes
from learners.rllib.training import RLlibTraining
from learners.run.language_model.scoring import DeskJudge, scoring_desk
from learners.run.session import Session
from learners.settings.language_model.tokens import TokenRunConfig


class TokenWorld:
    """Implements `World`. Raises `ConfigError` or `DataError` where model, prompts and settings do not fit."""

    def __init__(self, config: TokenRunConfig) -> None:
        self._config = config
        self._folder = Path(resolve_model(config.model))
        self._start = load_language_model(self._folder)
        self._tokenizer = load_tokenizer(str(self._folder))
        train, held_out = (
            render_prompts(tasks, self._tokenizer, task_config=config.task.prompts).prompts
            for tasks in build_task_sets(config.task.prompts)
        )
        _check(config, self._start, train, held_out)
        self._held_out = held_out[: config.evaluation.num_prompts]
        self.recorded: RecordedEpisodes | None = None
        self.facts: Mapping[str, str] = {"model": model_digest(str(self._folder))}
        self._make = functools.partial(
            TokenEnvironment,
            train,
            decode=functools.partial(self._tokenizer.decode, skip_special_tokens=True),
            tokens=Discrete(self._start.vocabulary.size),
            end_id=self._start.vocabulary.end_id,
            padding_id=self._start.vocabulary.padding_id,
            max_completion_tokens=config.task.max_completion_tokens,
        )
        self.example: gymnasium.Env[Any, Any] = self._make(_nobody)
        self._judge: DeskJudge  # while `environments` is open

    @contextmanager
    def environments(self, note: Callable[[str], None]) -> Iterator[MakeEnvironment]:
        with scoring_desk(self._config, note) as self._judge:
            yield SideBySide(functools.partial(TokenEnvironments, self._make, judge=self._judge))

    def notes(self) -> Sequence[str]:
        return self._judge.notes()

    @property
    def module_spec(self) -> RLModuleSpec:
        """The network of policy and value."""
        return language_model_spec(self._folder)

    def before(self, session: Session, training: RLlibTraining) -> None:
        """Evaluate the start, unless that is done."""
        if not (session.path / "evaluation" / "before.json").exists():
            self._evaluate(session, training.module().language_model, "before")

    def on_the_way(self, training: RLlibTraining, *, last_step: int) -> Mapping[str, float]:
        return {}

    def state(self) -> Mapping[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass

    def after(self, session: Session, training: RLlibTraining) -> None:
        """Evaluate what was learned, and write it as a folder."""
        learned, folder = training.module().language_model, session.path / LANGUAGE_MODEL_FOLDER
        self._evaluate(session, learned, "after")
        with session.stage("export"):
            if not folder.exists():  # else an earlier process of the run was here
                with new_folder(folder) as draft:
                    write_language_model(learned, draft)
                    copy_tokenizer(self._folder, draft)

    def _evaluate(self, session: Session, policy: LanguageModel, moment: str) -> None:
        """Samples of the policy on held-out prompts, with seeds that are the same before and after."""
        evaluation = self._config.evaluation
        with session.stage(f"evaluate {moment}"):
            prompts = [prompt for prompt in self._held_out for _ in range(evaluation.samples_per_prompt)]
            token_ids = [prompt.token_ids for prompt in prompts]
            completions = sample(
                policy,
                token_ids,
                max_tokens=self._config.task.max_completion_tokens,
                temperature=1.0,
                seed=derive_seed(self._config.seed, "evaluation samples"),
            )
            kl_B, start_logprob_B = completion_divergence(policy, self._start, token_ids, completions)
            trajectories = [self._trajectory(*each) for each in zip(prompts, completions, strict=True)]
            scores = self._judge(trajectories)
            samples = [self._evaluated(*each) for each in zip(trajectories, scores, kl_B.tolist(), strict=True)]
            write_samples(session.path / "evaluation" / f"{moment}.json", samples)
            perplexity = math.exp(-float(start_logprob_B.sum()) / sum(map(len, completions)))
            found = {**asdict(evaluate_samples(samples, evaluation.judges)), "perplexity_under_start": perplexity}
            session.directory.write_summary({moment: found})

    def _trajectory(self, prompt: Prompt, completion: Sequence[int]) -> Trajectory:
        return Trajectory(
            prompt=prompt,
            sample_index=0,
            completion=Completion(
                token_ids=np.array(completion, dtype=np.int32),
                text=self._tokenizer.decode(completion, skip_special_tokens=True),
                finish_reason="stop" if completion[-1] == self._start.vocabulary.end_id else "length",
            ),
        )

    def _evaluated(self, trajectory: Trajectory, score: float, kl_nats: float) -> EvaluatedCompletion:
        return EvaluatedCompletion(
            prompt=trajectory.prompt.text,
            completion=trajectory.completion.text,
            score=score,
            judgements={judge.function: REWARD_FUNCTIONS[judge.function](trajectory) for judge in self._config.evaluation.judges},
            num_tokens=len(trajectory.completion.token_ids),
            kl_nats=kl_nats,
        )


def _nobody(trajectories: Sequence[Trajectory]) -> Sequence[float]:
    raise AssertionError("the example is looked at, not played")


def _check(config: TokenRunConfig, model: LanguageModel, train: Sequence[Prompt], held_out: Sequence[Prompt]) -> None:
    problems = []
    longest = max(len(prompt.token_ids) for prompt in (*train, *held_out)) + config.task.max_completion_tokens
    if model.max_tokens is not None and longest > model.max_tokens:
        problems.append(
            f"task.max_completion_tokens={config.task.max_completion_tokens} makes texts of up to {longest} tokens, and the "
            f"model reads {model.max_tokens}; lower it, or give shorter prompts"
        )
    if config.evaluation.num_prompts > len(held_out):
        problems.append(
            f"evaluation.num_prompts={config.evaluation.num_prompts} is more than the {len(held_out)} held-out prompts of "
            f"task.prompts.kind={config.task.prompts.kind}; lower it"
        )
    if problems:
        raise ConfigError(problems)
