"""A real vLLM engine in a real Ray actor, against Hugging Face forwards in float32. One engine serves all tests."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from actors.config import GeneratorConfig
from actors.generation.generator import INITIAL_CHECKSUM, HeldWeights
from actors.generation.remote import GeneratorActor
from actors.generation.rollout_pool import RolloutPool
from actors.sources.models import resolve_model
from actors.sources.tiny_model import byte_tokenizer
from cluster.errors import DataError, WeightMismatchError
from cluster.messages import Message
from cluster.processes.hosts.folder import this_node
from cluster.processes.pool import ActorPool
from cluster.storage.weight_file import seal_weights
from cluster.types import Completion, Prompt, SamplingParameters, Task, TrajectoryGroup, WeightFile
from tests.pools import pool_of
from tests.records import arrived

MAX_MODEL_TOKENS = 96
UNFINISHED = "\ufffd"  # what bytes that are no character decode to; the engine holds back those at the end
TOLERANCE_NATS = 1e-4
CONFIG = GeneratorConfig(
    dtype="float32", num_threads=1, max_model_tokens=MAX_MODEL_TOKENS, max_num_sequences=16, kv_cache_gib=0.25
)
SAMPLING = SamplingParameters(temperature=1.0, top_p=1.0, max_completion_tokens=24, samples_per_prompt=3, seed=11)


@dataclasses.dataclass(frozen=True)
class Fixture:
    actor: Any
    pool: RolloutPool
    folder: str


@pytest.fixture(scope="module")
def running(local_ray: None) -> Iterator[Fixture]:
    folder = resolve_model("tiny")
    actor = GeneratorActor.options(num_cpus=1).remote(folder, CONFIG)
    pool = pool_of(actor, max_num_sequences=CONFIG.max_num_sequences)
    pool.wait_until_ready()
    yield Fixture(actor, pool, folder)
    pool.shutdown()
    ray.kill(actor)


def _prompt(text: str) -> Prompt:
    task = Task(task_id=text, messages=(Message(role="user", content=text),))
    return Prompt(task=task, text=text, token_ids=tuple(byte_tokenizer().encode(text)))


PROMPTS = [_prompt(text) for text in ("A film that", "The plot, such as it is,", "Nobody", "I left before the end because")]


def _policy(folder: str, *, noise: float = 0.0) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return policy


def _published(policy: torch.nn.Module, version: int, path: Path) -> WeightFile:
    from safetensors.torch import save_file

    partial = path.with_suffix(".partial")
    save_file({name: parameter.detach().contiguous() for name, parameter in policy.named_parameters()}, partial)
    return seal_weights(partial, path, policy_version=version, node_id=this_node())


@torch.no_grad()
def _reference_logprobs(
    policy: torch.nn.Module, token_ids: tuple[int, ...], num_prompt_tokens: int, temperature: float = 1.0
) -> list:
    logits_TV = policy(torch.tensor([token_ids])).logits[0, num_prompt_tokens - 1 : -1] / temperature
    chosen_T = torch.tensor(token_ids[num_prompt_tokens:])
    return logits_TV.log_softmax(-1).gather(-1, chosen_T[:, None])[:, 0].tolist()


def _assert_logprobs_are_the_policys(groups: list[TrajectoryGroup], policy: torch.nn.Module, temperature: float = 1.0) -> None:
    for segment in (segment for group in groups for tokens in group.tokens.fetch() for segment in tokens.segments):
        num_prompt_tokens = len(segment.token_ids) - len(segment.rollout_logprobs)
        expected = _reference_logprobs(policy, tuple(segment.token_ids.tolist()), num_prompt_tokens, temperature)
        assert segment.rollout_logprobs == pytest.approx(expected, abs=TOLERANCE_NATS)


def _groups_of(running: Fixture, prompts: list[Prompt], sampling: SamplingParameters) -> list[TrajectoryGroup]:
    """In the order of the prompts."""
    groups = {group.task_id: group for group in running.pool.collect(prompts, sampling) if group is not None}
    return [groups[prompt.task.task_id] for prompt in prompts]


def _collect(running: Fixture, sampling: SamplingParameters = SAMPLING) -> list[TrajectoryGroup]:
    return _groups_of(running, PROMPTS, sampling)


def _tokens(groups: list[TrajectoryGroup]) -> list[tuple[int, ...]]:
    return [tuple(completion.token_ids.tolist()) for completion in _completions(groups)]


def _completions(groups: list[TrajectoryGroup]) -> list[Completion]:
    return [trajectory.completion for group in groups for trajectory in group.texts.fetch().trajectories]


def _versions(groups: list[TrajectoryGroup]) -> set[int]:
    return {version for group in groups for sample in group.samples for version in sample.policy_versions}


def _held(running: Fixture) -> HeldWeights:
    return ray.get(running.actor.held_weights.remote())


def test_a_new_engine_holds_version_zero(running: Fixture) -> None:
    assert ray.get(running.actor.ready.remote()) == 0
    assert _held(running) == HeldWeights(policy_version=0, checksum=INITIAL_CHECKSUM)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rollout_logprobs_match_a_hugging_face_forward(running: Fixture, temperature: float) -> None:
    groups = _collect(running, dataclasses.replace(SAMPLING, temperature=temperature))
    _assert_logprobs_are_the_policys(groups, _policy(running.folder), temperature)
    assert _versions(groups) == {0}


def test_greedy_logprobs_are_finite_and_the_samples_agree(running: Fixture) -> None:
    groups = _collect(running, dataclasses.replace(SAMPLING, temperature=0.0))
    _assert_logprobs_are_the_policys(groups, _policy(running.folder))
    assert all(len(set(_tokens([group]))) == 1 for group in groups)


def test_samples_differ_and_a_seed_repeats_them(running: Fixture) -> None:
    first, again = _collect(running), _collect(running)
    assert all(len(set(_tokens([group]))) == SAMPLING.samples_per_prompt for group in first)
    assert _tokens(first) == _tokens(again)
    assert _tokens(_collect(running, dataclasses.replace(SAMPLING, seed=12))) != _tokens(first)


def test_a_completion_ends_with_the_end_token_or_at_the_limit(running: Fixture) -> None:
    tokenizer = byte_tokenizer()
    many = dataclasses.replace(SAMPLING, samples_per_prompt=64, max_completion_tokens=64)
    [group] = _groups_of(running, PROMPTS[:1], many)
    completions = _completions([group])
    for completion in completions:
        is_ended = completion.token_ids[-1] == tokenizer.eos_token_id
        assert completion.finish_reason == ("stop" if is_ended else "length")
        assert is_ended or len(completion.token_ids) == 64
        assert "<|" not in completion.text
        whole = tokenizer.decode([*PROMPTS[0].token_ids, *completion.token_ids.tolist()], skip_special_tokens=True)
        assert (PROMPTS[0].text + completion.text).rstrip(UNFINISHED) == whole.rstrip(UNFINISHED)
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}


def test_a_short_group_arrives_before_a_long_one(running: Fixture) -> None:
    """Both are asked for at once, through the pool's own dispatch."""
    pool = ActorPool({"generator-0": running.actor})

    def call(actor: Any, limit: int) -> ray.ObjectRef:
        return actor.generate.remote(PROMPTS[0], dataclasses.replace(SAMPLING, max_completion_tokens=limit))

    assert [limit for limit, _, _ in arrived(pool.map_unordered(call, [64, 1], max_in_flight=2))] == [1, 64]


def test_progress_moves_while_one_call_runs_and_rests_with_the_engine(running: Fixture) -> None:
    before = ray.get(running.actor.progress.remote())
    request = running.actor.generate.remote(PROMPTS[0], dataclasses.replace(SAMPLING, max_completion_tokens=64))
    seen = []
    while not ray.wait([request], timeout=0)[0]:
        seen.append(ray.get(running.actor.progress.remote()))
    after = ray.get(running.actor.progress.remote())
    assert after >= before + 64  # a step a token, and more than one sample a step
    assert any(before < number < after for number in seen)
    assert ray.get(running.actor.progress.remote()) == after


def test_a_prompt_that_does_not_fit_names_its_task(running: Fixture) -> None:
    prompt = dataclasses.replace(PROMPTS[2], token_ids=(65,) * MAX_MODEL_TOKENS)
    with pytest.raises(DataError, match=f"task 'Nobody': {MAX_MODEL_TOKENS} prompt tokens"):
        list(running.pool.collect([prompt], SAMPLING))


@pytest.mark.parametrize(
    ("token_ids", "reason"),
    [
        ((65, 10_000), "VLLMValidationError"),  # out of vocabulary: refused
        ((65, "x"), "TypeError"),  # nothing that vLLM expects: an EngineGenerateError
    ],
)
def test_a_prompt_that_fails_alone_leaves_the_engine_to_the_others(
    running: Fixture, token_ids: tuple[Any, ...], reason: str
) -> None:
    good = _tokens(_collect(running))
    bad = dataclasses.replace(_prompt("bad"), token_ids=token_ids)
    failed, *groups = _groups_of(running, [bad, *PROMPTS], SAMPLING)
    assert (failed.texts.fetch().prompt, failed.samples) == (bad, ())
    assert [reason in failed.failures[index] for index in range(SAMPLING.samples_per_prompt)] == [True] * 3
    assert _tokens(groups) == good


def test_refused_weights_leave_the_old_ones_serving(running: Fixture, tmp_path: Path) -> None:
    held, tokens = _held(running), _tokens(_collect(running))
    changed = _published(_policy(running.folder, noise=0.1), 7, tmp_path / "changed.safetensors")
    content = Path(changed.path).read_bytes()
    Path(changed.path).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(WeightMismatchError, match=f"version 7 was published with {changed.checksum}"):
        running.pool.publish(changed)

    part = torch.nn.Module()
    part.register_parameter("stray", torch.nn.Parameter(torch.zeros(3)))
    with pytest.raises(WeightMismatchError, match="does not hold this model's tensors"):
        running.pool.publish(_published(part, 7, tmp_path / "part.safetensors"))

    with pytest.raises(WeightMismatchError, match="cannot be read"):
        running.pool.publish(dataclasses.replace(changed, path=str(tmp_path / "absent.safetensors")))

    assert _held(running) == held
    assert _tokens(_collect(running)) == tokens


def test_published_weights_are_the_ones_sampled_from(running: Fixture, tmp_path: Path) -> None:
    before = _policy(running.folder)
    for version in (1, 2):
        after = _policy(running.folder, noise=0.05 * version)
        weights = _published(after, version, tmp_path / f"{version}.safetensors")
        running.pool.publish(weights)
        assert _held(running) == HeldWeights(policy_version=version, checksum=weights.checksum)

        groups = _collect(running)
        _assert_logprobs_are_the_policys(groups, after)
        assert _versions(groups) == {version}

        token_ids = tuple(byte_tokenizer().encode("The plot, such as it is, never thickens."))
        new, old = (torch.tensor(_reference_logprobs(policy, token_ids, 5)) for policy in (after, before))
        assert (new - old).abs().mean() > 100 * TOLERANCE_NATS  # the change is no rounding


def test_running_requests_finish_on_the_old_weights(running: Fixture, tmp_path: Path) -> None:
    version = _held(running).policy_version
    long = dataclasses.replace(SAMPLING, max_completion_tokens=64)
    requests = [running.actor.generate.remote(prompt, long) for prompt in PROMPTS]
    running.pool.publish(_published(_policy(running.folder), version + 1, tmp_path / "next.safetensors"))
    versions = {version for group in ray.get(requests) for sample in group.numbers.samples for version in sample.policy_versions}
    assert versions <= {version, version + 1}
    assert _versions(_collect(running)) == {version + 1}
