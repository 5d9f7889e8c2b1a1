"""Which attention kernel runs, as torch's profiler sees it."""

import pytest
from torch.profiler import ProfilerActivity, profile

from actors.attention import MAX_PLAIN_TOKENS
from actors.scoring.reward_head import last_token_scores, start_reward_model
from actors.sources.models import resolve_model
from cluster.messages import Message
from cluster.types import Prompt, Task
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.settings.policy import PolicyLearnerConfig
from tests.records import completion, group_of

FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"


@pytest.mark.parametrize(("num_tokens", "uses_flash"), [(MAX_PLAIN_TOKENS, False), (MAX_PLAIN_TOKENS + 1, True)])
def test_a_reward_model_uses_plain_products_for_short_texts_only(num_tokens: int, uses_flash: bool) -> None:
    model = start_reward_model(resolve_model("tiny"), dtype="float32", num_layers=1)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        last_token_scores(model, [(1, 2), (1,) * num_tokens])
    assert (FLASH in {event.key for event in seen.key_averages()}) == uses_flash


@pytest.mark.parametrize(("num_tokens", "uses_flash"), [(MAX_PLAIN_TOKENS, False), (MAX_PLAIN_TOKENS + 1, True)])
def test_a_policy_uses_plain_products_for_short_sequences_only(num_tokens: int, uses_flash: bool) -> None:
    config = PolicyLearnerConfig(num_steps=1, prompts_per_step=1, minibatch_size=1)
    learner = PolicyLearner(
        StartingPoint(model_path=resolve_model("tiny"), temperature=1.0, max_completion_tokens=4, samples_per_prompt=1, seed=0),
        config,
    )
    task = Task(task_id="task", messages=(Message(role="user", content="text"),))
    prompt = Prompt(task=task, text="text", token_ids=(3,) * (num_tokens - 2))
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        learner.completion_logprobs([group_of(prompt, {0: completion(1, 2)})])
    assert (FLASH in {event.key for event in seen.key_averages()}) == uses_flash
