"""Requests that do not run to their end as they began, on a real engine: new weights overtake them, or nobody waits any more."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from actors.config import GeneratorConfig
from actors.generation.generator import Generated
from actors.generation.remote import GeneratorActor
from actors.generation.rollout_pool import RolloutPool
from actors.sources.models import resolve_model
from actors.sources.tiny_model import byte_tokenizer
from cluster.messages import Message
from cluster.processes.hosts.folder import this_node
from cluster.storage.weight_file import seal_weights
from cluster.types import Prompt, SamplingParameters, Task
from tests.pools import pool_of

CONFIG = GeneratorConfig(dtype="float32", num_threads=1, max_model_tokens=512, max_num_sequences=8, kv_cache_gib=0.25)
SAMPLING = SamplingParameters(temperature=1.0, top_p=1.0, max_completion_tokens=400, samples_per_prompt=4, seed=3)
TEXT = "A film that"
PROMPT = Prompt(
    task=Task(task_id="t", messages=(Message(role="user", content=TEXT),)),
    text=TEXT,
    token_ids=tuple(byte_tokenizer().encode(TEXT)),
)
TOLERANCE_NATS = 1e-4
NUM_PUBLICATIONS = 3


@pytest.fixture(scope="module")
def generator(local_ray: None) -> Iterator[Any]:
    actor = GeneratorActor.options(num_cpus=1).remote(resolve_model("tiny"), CONFIG, "keep")
    ray.get(actor.ready.remote())
    yield actor
    ray.get(actor.shutdown.remote())
    ray.kill(actor)


@torch.no_grad()
def _policies() -> list[torch.nn.Module]:
    """By version; each a little further from the start, and none likely to end a completion early."""
    from transformers import AutoModelForCausalLM

    policies = [
        AutoModelForCausalLM.from_pretrained(resolve_model("tiny"), dtype=torch.float32) for _ in range(NUM_PUBLICATIONS + 1)
    ]
    generator = torch.Generator().manual_seed(1)
    for version, policy in enumerate(policies):
        for parameter in policy.parameters():
            parameter.add_(0.03 * version * torch.randn(parameter.shape, generator=generator))
    return policies


def _publish(pool: RolloutPool, policy: torch.nn.Module, version: int, folder: Path) -> None:
    from safetensors.torch import save_file

    partial = folder / f"{version}.partial"
    save_file({name: parameter.detach().contiguous() for name, parameter in policy.named_parameters()}, partial)
    pool.publish(seal_weights(partial, folder / f"{version}.safetensors", policy_version=version, node_id=this_node()))


def test_a_kept_completion_goes_on_under_each_version_and_has_its_log_probabilities(generator: Any, tmp_path: Path) -> None:
    pool = pool_of(generator, max_num_sequences=8)
    policies = _policies()
    request = generator.generate.remote(PROMPT, SAMPLING)
    for version in range(1, NUM_PUBLICATIONS + 1):
        begun = ray.get(generator.progress.remote())
        while ray.get(generator.progress.remote()) < begun + 20 and not ray.wait([request], timeout=0)[0]:
            pass  # some tokens under each version
        _publish(pool, policies[version], version, tmp_path)
    generated: Generated = ray.get(request)
    assert dict(generated.numbers.failures) == {}
    mixed = [sample for sample in generated.numbers.samples if len(sample.policy_versions) > 1]
    assert mixed, "every completion ended before the first publication"
    for tokens in generated.tokens:
        (segment,) = tokens.segments
        num_prompt_tokens = len(PROMPT.token_ids)
        token_ids = torch.tensor(segment.token_ids.copy(), dtype=torch.int64)
        begin = 0
        for stretch in segment.stretches:
            with torch.no_grad():
                logits = policies[stretch.policy_version](token_ids[None]).logits[0, num_prompt_tokens - 1 : -1]
            expected = logits.log_softmax(-1).gather(-1, token_ids[num_prompt_tokens:, None])[:, 0]
            part = slice(begin, begin + stretch.num_tokens)
            # Given all tokens before, those of older weights included: their part of the cache was computed anew.
            assert segment.rollout_logprobs[part] == pytest.approx(expected[part].numpy(), abs=TOLERANCE_NATS)
            begin += stretch.num_tokens
    versions = [stretch.policy_version for stretch in mixed[0].stretches]
    assert versions == sorted(versions)
    later = ray.get(generator.generate.remote(PROMPT, dataclasses.replace(SAMPLING, max_completion_tokens=4)))
    assert {version for sample in later.numbers.samples for version in sample.policy_versions} == {NUM_PUBLICATIONS}


def test_an_engine_stops_working_on_what_nobody_waits_for(generator: Any) -> None:
    pool = pool_of(generator, max_num_sequences=8)
    greedy = dataclasses.replace(SAMPLING, temperature=0.0, samples_per_prompt=1)
    [whole] = [group for group in pool.collect([PROMPT], greedy) if group is not None]
    assert whole.samples[0].num_tokens == 400  # so each of the eight below, being the same, takes 400 steps
    begun = ray.get(generator.progress.remote())
    prompts = [dataclasses.replace(PROMPT, task=dataclasses.replace(PROMPT.task, task_id=f"t{index}")) for index in range(8)]
    groups = pool.collect(prompts, greedy)
    while next(groups) is None and ray.get(generator.progress.remote()) < begun + 5:
        pass
    groups.close()
    begun = ray.get(generator.progress.remote())
    ray.get(generator.generate.remote(PROMPT, dataclasses.replace(greedy, max_completion_tokens=2)))
    assert ray.get(generator.progress.remote()) - begun < 100  # while the eight run, it has no place in the engine
