"""Small batches on the tiny model."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from actors.sources.models import resolve_model
from cluster.messages import Message
from cluster.processes.object_store import HeldObject
from cluster.types import (
    GroupTexts,
    Prompt,
    Reward,
    Sample,
    ScoredBatch,
    ScoredGroup,
    Task,
    TrajectoryGroup,
    TrajectoryTokens,
    sample_of,
)
from learners.settings.policy import PolicyLearnerConfig
from learners.settings.training import WorkerConfig
from tests.records import single_turn

BatchBuilder = Callable[..., ScoredBatch]
NUM_THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))  # `make test-numeric` asks for one and for two


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where models are looked for by name; a test puts its own there."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("RAYWARD_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def tiny_model() -> str:
    return resolve_model("tiny")


@pytest.fixture(scope="session")
def ppo_config() -> Callable[..., PolicyLearnerConfig]:
    """A float32 configuration; keyword arguments replace fields, also those of `workers`."""

    def build(**fields: object) -> PolicyLearnerConfig:
        workers = {"num_threads": NUM_THREADS, "compute_dtype": "float32", "num_cpus": 0.5}
        workers |= {name: fields.pop(name) for name in list(fields) if name in WorkerConfig.model_fields}
        optimizer = {"learning_rate": 1e-4} | {name: fields.pop(name) for name in list(fields) if name == "learning_rate"}
        values = {"num_steps": 2, "prompts_per_step": 8, "minibatch_size": 4, "workers": workers, "optimizer": optimizer} | fields
        return PolicyLearnerConfig.model_validate(values)

    return build


@pytest.fixture(scope="session")
def scored_batch() -> BatchBuilder:
    """`num_trajectories` with random tokens, lengths and scores, in groups of `group_size`; every third completion is cut."""

    def build(num_trajectories: int = 8, *, step: int = 0, scores: list[float] | None = None, group_size: int = 1) -> ScoredBatch:
        generator = np.random.default_rng(step)
        scored = []
        for index in range(num_trajectories):
            score = float(generator.normal()) if scores is None else scores[index]
            scored.append((*_tokens(generator, index), Reward(total=score, breakdown={})))
        groups = []
        for first in range(0, num_trajectories, group_size):
            samples, tokens, rewards = zip(*scored[first : first + group_size], strict=True)
            baseline = ScoredGroup(
                group=_group(first, samples[:1], tokens[:1]), rewards=(Reward(total=0.1 * first, breakdown={}),)
            )
            groups.append(ScoredGroup(group=_group(first, samples, tokens), rewards=rewards, greedy=baseline))
        return ScoredBatch(step=step, groups=tuple(groups))

    return build


def _tokens(generator: np.random.Generator, index: int) -> tuple[Sample, TrajectoryTokens]:
    prompt_length, completion_length = int(generator.integers(1, 5)), int(generator.integers(1, 9))
    prompt, chosen = (generator.integers(0, 250, size).tolist() for size in (prompt_length, completion_length))
    tokens = single_turn(prompt, chosen, logprobs=[-5.5] * completion_length)
    return sample_of(index, tokens, "length" if index % 3 == 0 else "stop"), tokens


def _group(number: int, samples: tuple[Sample, ...], tokens: tuple[TrajectoryTokens, ...]) -> TrajectoryGroup:
    task = Task(task_id=f"task-{number}", messages=(Message(role="user", content="text"),))
    texts = GroupTexts(prompt=Prompt(task=task, text="text", token_ids=(1,)), trajectories=())  # no learner reads them
    return TrajectoryGroup(task_id=task.task_id, samples=samples, texts=HeldObject(texts), tokens=HeldObject(tokens))
