"""One engine in bfloat16 on a device, in a Ray actor: its log-probabilities against a learner's, and new weights from a file."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from actors.config import GPU_MEMORY_FRAC, GeneratorConfig
from actors.generation.remote import GeneratorActor
from actors.generation.rollout_pool import RolloutPool
from cluster.messages import Message
from cluster.types import Prompt, SamplingParameters, Task, TrajectoryGroup
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.settings.policy import PolicyLearnerConfig
from tests.gpu.devices import GIB
from tests.pools import pool_of

MAX_MISMATCH_NATS = 0.05  # a token, on average; the same bits in another order of sums give about 0.01
SAMPLING = SamplingParameters(temperature=1.0, top_p=1.0, max_completion_tokens=128, samples_per_prompt=8, seed=11)
SHARE = 0.4  # of the device, for the engine

pytestmark = [pytest.mark.cold_start, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", params=[1, 2], ids=["level 1", "level 2"])
def pool(request: pytest.FixtureRequest, local_ray: None, smollm2: str) -> Iterator[RolloutPool]:
    config = GeneratorConfig(num_cpus=0, num_gpus=SHARE, max_model_tokens=512, max_num_sequences=64, sleep_level=request.param)
    actor = GeneratorActor.options(num_cpus=0, num_gpus=SHARE).remote(smollm2, config)
    pool = pool_of(actor, max_num_sequences=64)
    pool.wait_until_ready()
    yield pool
    pool.shutdown()
    ray.kill(actor)


@pytest.fixture(scope="module")
def learner(pool: RolloutPool, smollm2: str, ppo_config: Callable[..., PolicyLearnerConfig]) -> PolicyLearner:
    """A new one for each engine, with the weights that the engine starts with."""
    start = StartingPoint(model_path=smollm2, temperature=1.0, max_completion_tokens=128, samples_per_prompt=8, seed=0)
    return PolicyLearner(start, ppo_config(num_gpus=1, compute_dtype="bfloat16"))


@pytest.fixture(scope="module")
def prompts(smollm2: str) -> list[Prompt]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    texts = ("The film begins with", "Three plus four is", "Once upon a time", "def main():", "Dear Sir or Madam,")
    tasks = [Task(task_id=text, messages=(Message(role="user", content=text),)) for text in texts]
    return [Prompt(task=task, text=task.task_id, token_ids=tuple(tokenizer.encode(task.task_id))) for task in tasks]


def mismatch(learner: PolicyLearner, groups: Sequence[TrajectoryGroup]) -> Any:
    """Absolute differences, a token."""
    engines = np.concatenate([each.rollout_logprobs for group in groups for each in group.tokens.fetch()])
    return np.abs(engines - np.concatenate(learner.completion_logprobs(groups)))


def collected(pool: RolloutPool, prompts: Sequence[Prompt]) -> list[TrajectoryGroup]:
    return [group for group in pool.collect(prompts, SAMPLING) if group is not None]


def test_log_probabilities_in_bfloat16_are_the_learners(
    pool: RolloutPool, learner: PolicyLearner, prompts: list[Prompt], record_property: Callable[[str, object], None]
) -> None:
    differences = mismatch(learner, collected(pool, prompts))
    record_property("mean", f"{differences.mean():.4f} nats a token")
    record_property("largest", f"{differences.max():.3f}")
    assert differences.mean() < MAX_MISMATCH_NATS


def test_new_weights_from_a_file_are_those_that_sample(
    pool: RolloutPool, learner: PolicyLearner, prompts: list[Prompt], tmp_path: Path
) -> None:
    generator = torch.Generator(device="cuda").manual_seed(1)
    with torch.no_grad():
        for parameter in learner._network.policy.parameters():
            noise = torch.randn(parameter.shape, generator=generator, device=parameter.device)
            parameter.add_(0.01 * parameter.abs().mean() * noise)
    old = collected(pool, prompts)
    pool.publish(learner.publish(tmp_path, "bfloat16"))
    assert mismatch(learner, collected(pool, prompts)).mean() < MAX_MISMATCH_NATS
    assert mismatch(learner, old).mean() > mismatch(learner, collected(pool, prompts)).mean()


def test_an_engine_that_slept_samples_from_the_weights_it_is_given(
    pool: RolloutPool,
    learner: PolicyLearner,
    prompts: list[Prompt],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    free = torch.cuda.mem_get_info()[0]
    pool.sleep()
    record_property("freed by sleep", f"{(torch.cuda.mem_get_info()[0] - free) / GIB:.1f} GiB")
    assert torch.cuda.mem_get_info()[0] - free > 0.5 * SHARE * torch.cuda.mem_get_info()[1] * GPU_MEMORY_FRAC
    pool.wake_weights()
    pool.publish(learner.publish(tmp_path, "bfloat16"))
    pool.wake_cache()
    assert mismatch(learner, collected(pool, prompts)).mean() < MAX_MISMATCH_NATS
