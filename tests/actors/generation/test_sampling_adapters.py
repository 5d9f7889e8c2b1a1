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
from tests.pools import pool_of

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
    pool = pool_of(actor, max_num_sequences=16)
    pool.wait_until_ready()
    yield Running(actor, pool)
    pool.shutdown()
    ray.kill(actor)


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
        from learners.network.models import PolicyWithCritic
        from learners.network.trunk import ForwardSettings
        from learners.policy.probe import adapter_probe
        from learners.weights.adapter import publish_adapter

        settings = ForwardSettings(compute_dtype=torch.float32, temperature=1.0, chunk_tokens=64)
        network = PolicyWithCritic(self.policy, None, settings, has_critic=False, num_frozen_layers=0)
        probe = adapter_probe(network, PROBE, settings, max_mismatch=TOLERANCE_NATS)
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
    lower = tuple({token: number - 0.01 for token, number in each.items()} for each in published.probe.logprobs)
    wrong = dataclasses.replace(published.probe, logprobs=lower)
    with pytest.raises(WeightMismatchError, match=r"adapter of version 20: engine and learner disagree .* by 0\.01 nats"):
        running.pool.publish(dataclasses.replace(published, probe=wrong))
    assert ray.get(running.actor.held_weights.remote()) == held
    running.pool.publish(published)
    assert_samples_are_the_learners(collected(running), learner, version=20)


def test_an_adapter_may_come_while_completions_are_in_progress(running: Running, tmp_path: Path) -> None:
    """They finish with the adapter that they began with, beside what checks the new one, in one batch of the engine."""
    learner, long = Learner(tmp_path), dataclasses.replace(SAMPLING, max_completion_tokens=64)
    running.pool.publish(learner.publish(30))
    early = [running.actor.generate.remote(each, long) for each in PROMPTS]
    progress = ray.get(running.actor.progress.remote())
    while ray.get(running.actor.progress.remote()) == progress:
        pass
    start = {name: parameter.clone() for name, parameter in learner.policy.named_parameters()}
    learner.learn(seed=1)
    running.pool.publish(learner.publish(31))
    late = collected(running)
    assert_samples_are_the_learners(late, learner, version=31)
    for numbers, _, tokens in ray.get(early):
        assert {version for sample in numbers.samples for version in sample.policy_versions} == {30}
        segments = [segment for trajectory in tokens for segment in trajectory.segments]
        assert len(segments) == SAMPLING.samples_per_prompt
        with torch.no_grad():
            now = {name: parameter.clone() for name, parameter in learner.policy.named_parameters()}
            learner.policy.load_state_dict(start, strict=False)
            for segment in segments:
                expected = learner.logprobs(tuple(segment.token_ids.tolist()))[-len(segment.rollout_logprobs) :]
                assert segment.rollout_logprobs == pytest.approx(expected, abs=TOLERANCE_NATS)
            learner.policy.load_state_dict(now, strict=False)
