"""Trajectories of several turns: what an environment says in between is read, and nothing is learned from having said it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from cluster.messages import Message
from cluster.processes.object_store import HeldObject
from cluster.types import (
    GroupTexts,
    Prompt,
    Reward,
    ScoredBatch,
    ScoredGroup,
    Segment,
    StepScore,
    Stretch,
    Task,
    TrajectoryGroup,
    TrajectoryTokens,
    sample_of,
)
from learners.policy.batch import collate
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.settings.policy import PolicyLearnerConfig
from tests.records import segment, single_turn

ConfigBuilder = Callable[..., PolicyLearnerConfig]
GAMMA, LAMBDA, COEF, EPS = 0.9, 0.8, 0.5, 1e-3

# Prompt 5 6, answer 7 8, the environment says 9 10 11, answer 12 13 14 by newer weights.
WITH_A_GAP = TrajectoryTokens(
    segments=(
        Segment(
            token_ids=np.array([5, 6, 7, 8, 9, 10, 11, 12, 13, 14], np.int32),
            action_mask=np.array([False, False, True, True, False, False, False, True, True, True]),
            rollout_logprobs=np.array([-1.0, -2.0, -3.0, -4.0, -5.0], np.float32),
            stretches=(Stretch(num_tokens=2, policy_version=0), Stretch(num_tokens=3, policy_version=1)),
        ),
    )
)
# An environment that rewrites the context: the second turn does not see the first.
REWRITTEN = TrajectoryTokens(segments=(segment((5, 6), (7, 8)), segment((20, 21, 22), (12, 13, 14))))
SHORT = single_turn((30,), (31, 32))
SCORES = (2.0, -1.0, 0.5)


def _batch(*trajectories: TrajectoryTokens) -> ScoredBatch:
    groups = []
    for index, (tokens, score) in enumerate(zip(trajectories, SCORES, strict=False)):
        prompt = Prompt(
            task=Task(task_id=f"task-{index}", messages=(Message(role="user", content="go"),)), text="", token_ids=(5,)
        )
        group = TrajectoryGroup(
            task_id=prompt.task.task_id,
            samples=(sample_of(0, tokens, "stop"),),
            texts=HeldObject(GroupTexts(prompt=prompt, trajectories=())),
            tokens=HeldObject((tokens,)),
        )
        groups.append(ScoredGroup(group=group, rewards=(Reward(total=score, breakdown={}),)))
    return ScoredBatch(step=0, groups=tuple(groups))


def _learner(model: str, config: PolicyLearnerConfig) -> PolicyLearner:
    start = StartingPoint(model_path=model, temperature=1.0, max_completion_tokens=8, samples_per_prompt=1, seed=0)
    learner = PolicyLearner(start, config)
    head = learner._network.value_head
    assert head is not None
    torch.nn.init.normal_(head.weight, std=0.05, generator=torch.Generator().manual_seed(1))
    return learner


def _by_hand(model: torch.nn.Module, head: torch.nn.Linear, trajectories: tuple[TrajectoryTokens, ...]) -> Tensor:
    """The loss of PPO at its first step, token by token: ratios are 1, values are those that the advantages were made with."""
    num_tokens = sum(len(each.rollout_logprobs) for each in trajectories)
    loss = torch.zeros(())
    for each, score in zip(trajectories, SCORES, strict=True):
        logprobs, values = [], []
        for turn in each.segments:
            token_ids = torch.tensor(turn.token_ids, dtype=torch.int64)
            hidden = model.model(token_ids[None]).last_hidden_state[0]
            log_softmax = model.lm_head(hidden).log_softmax(-1)
            for position in turn.action_mask.nonzero()[0]:
                logprobs.append(log_softmax[position - 1, token_ids[position]])
                values.append(head(hidden[position - 1])[0])
        advantage, later_value = 0.0, 0.0  # what comes after the last token is worth nothing
        rewards = [0.0] * (len(values) - 1) + [score]
        for logprob, value, reward in reversed(list(zip(logprobs, values, rewards, strict=True))):
            advantage = reward + GAMMA * later_value - value.item() + GAMMA * LAMBDA * advantage
            later_value = value.item()
            return_ = advantage + value.item()
            ratio = (logprob - logprob.detach()).exp()
            loss = loss - advantage * ratio / num_tokens + COEF * (value - return_) ** 2 / 2 / num_tokens
    return loss


@pytest.mark.numeric
@pytest.mark.parametrize("packing", ["padded", "packed"])
@pytest.mark.parametrize("micro_batch_tokens", [4096, 1])  # all in one pass, and one trajectory a pass
def test_the_update_of_several_turns_is_the_one_computed_by_hand(
    tiny_model: str, ppo_config: ConfigBuilder, micro_batch_tokens: int, packing: str
) -> None:
    trajectories = (WITH_A_GAP, REWRITTEN, SHORT)
    config = ppo_config(
        minibatch_size=3,
        micro_batch_tokens=micro_batch_tokens,
        packing=packing,
        advantage={"gamma": GAMMA, "gae_lambda": LAMBDA, "whiten": False},
        critic={"coef": COEF, "learning_rate": 1e-4},
        kl={"coef": 0.0},
        mismatch={"correction": "none"},
        optimizer={"learning_rate": 1e-4, "eps": EPS, "max_grad_norm": 1e9},
    )
    learner = _learner(tiny_model, config)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    assert learner._network.value_head is not None
    head = torch.nn.Linear(learner._network.value_head.in_features, 1)
    head.load_state_dict(learner._network.value_head.state_dict())

    metrics = learner.update(_batch(*trajectories)).metrics
    loss = _by_hand(model, head, trajectories)
    assert metrics["optim/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["rollout/completion_tokens_mean"] == 4.0  # 5, 5 and 2 were chosen

    loss.backward()
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *head.parameters()], lr=1e-4, eps=EPS, betas=(0.9, 0.95), weight_decay=0.0
    )
    optimizer.step()
    for name, expected in model.named_parameters():
        found = learner._network.policy.get_parameter(name)
        # eps is far above float32 rounding of the gradients, so that Adam's quotient does not divide rounding by rounding.
        assert_close(found, expected, atol=1e-7, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    assert_close(learner._network.value_head.weight, head.weight, atol=1e-7, rtol=1e-6)


@pytest.mark.numeric
@pytest.mark.parametrize("packing", ["padded", "packed"])
def test_frozen_layers_are_kept_segment_by_segment(tiny_model: str, ppo_config: ConfigBuilder, packing: str) -> None:
    """The second of two epochs, and each of two packs, stands on states that the first kept."""
    batch = _batch(WITH_A_GAP, REWRITTEN, SHORT)
    fields = {"minibatch_size": 3, "num_frozen_layers": 1, "num_epochs": 2, "packing": packing}
    kept, again = (_learner(tiny_model, ppo_config(micro_batch_tokens=limit, **fields)) for limit in (4096, 24))
    assert kept.update(batch).metrics["optim/loss"] == pytest.approx(again.update(batch).metrics["optim/loss"], rel=1e-5)


def test_what_was_read_only_has_no_log_probability(tiny_model: str, ppo_config: ConfigBuilder) -> None:
    (logprobs,) = _learner(tiny_model, ppo_config()).completion_logprobs([_batch(WITH_A_GAP).groups[0].group])
    assert logprobs.shape == (5,)  # not the ten of its segment


def test_the_score_of_a_step_lies_at_a_token_that_the_policy_chose() -> None:
    batch = _batch(WITH_A_GAP)
    (scored,) = batch.groups
    of_the_second_turn = Reward(total=2.0, breakdown={}, steps=(StepScore(token_index=2, score=0.5),))
    collated = collate(replace(batch, groups=(replace(scored, rewards=(of_the_second_turn,)),)), torch.device("cpu"))
    assert_close(collated.step_scores_BT, torch.tensor([[0.0, 0.0, 0.5, 0.0, 0.0]]))  # past the gap: the first token after it
