"""A real vLLM engine that samples with adapters which a learner publishes, against Hugging Face forwards in float32."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from actors.config import GeneratorConfig
from actors.generation.adapter_generator import AdapterSlots
from actors.generation.generator import INITIAL_CHECKSUM, HeldWeights
from actors.generation.remote import AdapterGeneratorActor
from actors.generation.rollout_pool import RolloutPool
from actors.sources.models import resolve_model
from actors.sources.tiny_model import byte_tokenizer
from cluster.errors import WeightMismatchError
from cluster.messages import Message
from cluster.types import AdapterFile, Prompt, SamplingParameters, Task, TrajectoryGroup

CONFIG = GeneratorConfig(dtype="float32", num_threads=1, max_model_tokens=96, max_num_sequences=16, kv_cache_gib=0.25)
SAMPLING = SamplingParameters(temperature=1.0, top_p=1.0, max_completion_tokens=16, samples_per_prompt=3, seed=11)
RANK = 8
PROBE = tuple(byte_tokenizer().encode("A film that never ends."))
TOLERANCE_NATS = 1e-4


@dataclasses.dataclass(frozen=True)
class Running:
    actor: Any
    pool: RolloutPool


@pytest.fixture(scope="module")
def running(local_ray: None) -> Iterator[Running]:
    slots = AdapterSlots(max_rank=RANK, num_adapters=2)
    actor = AdapterGeneratorActor.options(num_cpus=1).remote(resolve_model("tiny"), CONFIG, "finish", slots)
    pool = RolloutPool(lambda name: actor, num_replicas=1, max_num_sequences=16, supervision=None, note=print)
    pool.wait_until_ready()
    yield Running(actor, pool)
    pool.shutdown()


class Learner:
    """What publishes adapters, without what trains them."""

    def __init__(self, folder: Path) -> None:
        from learners.network.lora import add_adapter, fill_adapter
        from learners.network.models import load_policy
        from learners.settings.training import LoRAConfig

        self.policy = load_policy(resolve_model("tiny"))
        add_adapter(self.policy, LoRAConfig(rank=RANK, alpha=16), num_frozen_layers=0, compute_dtype=torch.float32)
        fill_adapter(self.policy, seed=0)
        self._folder = folder

    @torch.no_grad()
    def learn(self, seed: int) -> None:
        from learners.network.lora import adapter_tensors

        generator = torch.Generator().manual_seed(seed)
        for tensor in adapter_tensors(self.policy).values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))

    def publish(self, version: int) -> AdapterFile:
        from cluster.types import AdapterProbe
        from learners.network.lora import adapter_off
        from learners.weights.adapter import publish_adapter

        with adapter_off(self.policy):
            start_logprobs = self.logprobs(PROBE)
        probe = AdapterProbe(
            token_ids=PROBE, logprobs=self.logprobs(PROBE), start_logprobs=start_logprobs, max_mismatch=TOLERANCE_NATS
        )
        return publish_adapter(self.policy, resolve_model("tiny"), self._folder, policy_version=version, probe=probe)

    @torch.no_grad()
    def logprobs(self, token_ids: tuple[int, ...]) -> tuple[float, ...]:
        """Of each token but the first."""
        logits_TV = self.policy(torch.tensor([token_ids])).logits[0, :-1]
        return tuple(logits_TV.log_softmax(-1).gather(-1, torch.tensor(token_ids[1:])[:, None])[:, 0].tolist())


def prompt(text: str) -> Prompt:
    task = Task(task_id=text, messages=(Message(role="user", content=text),))
    return Prompt(task=task, text=text, token_ids=tuple(byte_tokenizer().encode(text)))


PROMPTS = [prompt(text) for text in ("A film that", "The plot, such as it is,", "Nobody")]


def collected(running: Running) -> list[TrajectoryGroup]:
    return [group for group in running.pool.collect(PROMPTS, SAMPLING) if group is not None]


def assert_samples_are_the_learners(groups: list[TrajectoryGroup], learner: Learner, *, version: int) -> None:
    assert {each for group in groups for sample in group.samples for each in sample.policy_versions} == {version}
    for segment in (segment for group in groups for tokens in group.tokens.fetch() for segment in tokens.segments):
        expected = learner.logprobs(tuple(segment.token_ids.tolist()))[-len(segment.rollout_logprobs) :]
        assert segment.rollout_logprobs == pytest.approx(expected, abs=TOLERANCE_NATS)


def test_the_engine_samples_as_the_learner_does_before_and_after_each_publication(running: Running, tmp_path: Path) -> None:
    learner = Learner(tmp_path)
    assert ray.get(running.actor.held_weights.remote()) == HeldWeights(policy_version=0, checksum=INITIAL_CHECKSUM)
    assert_samples_are_the_learners(collected(running), learner, version=0)
    before = learner.logprobs(PROBE)
    for version in range(4):  # of the first, B is still zero
        published = learner.publish(version)
        running.pool.publish(published)
        assert ray.get(running.actor.held_weights.remote()) == HeldWeights(policy_version=version, checksum=published.checksum)
        assert_samples_are_the_learners(collected(running), learner, version=version)
        learner.learn(seed=version)
    moved = [abs(now - start) for now, start in zip(learner.logprobs(PROBE), before, strict=True)]
    assert sum(moved) / len(moved) > 100 * TOLERANCE_NATS


def test_a_learner_that_disagrees_is_told_and_the_engine_goes_on_with_what_it_has(running: Running, tmp_path: Path) -> None:
    held = ray.get(running.actor.held_weights.remote())
    learner = Learner(tmp_path)
    learner.learn(seed=9)
    published = learner.publish(20)
    wrong = dataclasses.replace(published.probe, logprobs=tuple(each - 0.01 for each in published.probe.logprobs))
    with pytest.raises(WeightMismatchError, match=r"adapter of version 20: engine and learner disagree .* by 0\.01 nats"):
        running.pool.publish(dataclasses.replace(published, probe=wrong))
    assert ray.get(running.actor.held_weights.remote()) == held
    running.pool.publish(published)
    assert_samples_are_the_learners(collected(running), learner, version=20)
