"""Every advantage and loss against the slow float64 references, on ragged batches with interior masks and single tokens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import float64_reference as reference
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from learners.algorithms.advantages.dr_grpo import dr_grpo
from learners.algorithms.advantages.gae import gae
from learners.algorithms.advantages.grpo import grpo
from learners.algorithms.advantages.reinforce import reward_to_go
from learners.algorithms.advantages.remax import remax
from learners.algorithms.advantages.rloo import rloo
from learners.algorithms.aggregation import LossTokens, constant_length, sequence_mean, token_mean
from learners.algorithms.kl import k2, k3
from learners.algorithms.losses.cispo import cispo_loss
from learners.algorithms.losses.entropy import entropy_loss
from learners.algorithms.losses.gspo import gspo_loss
from learners.algorithms.losses.kl_penalty import kl_penalty_loss
from learners.algorithms.losses.policy_gradient import policy_gradient_loss
from learners.algorithms.losses.ppo_clip import ppo_clip_loss
from learners.algorithms.losses.value import clipped_value_loss
from learners.algorithms.masking import whiten
from learners.algorithms.mismatch import (
    kept_sequences,
    masked_token_weights,
    truncated_sequence_weights,
    truncated_token_weights,
)

pytestmark = pytest.mark.numeric

MAX_TOKENS = 9  # of constant_length
EPS, EPS_HIGH, DUAL = 0.2, 0.28, 1.5
BAND = (0.7, 1.4)
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # beside other work an example may take seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Random float64 numbers; what is masked is NaN."""

    mask_BT: Tensor
    first_BT: Tensor
    second_BT: Tensor
    third_BT: Tensor
    weights_BT: Tensor
    values_B: Tensor
    group_B: Tensor

    @property
    def mask(self) -> list[list[bool]]:
        return self.mask_BT.tolist()

    def tokens(self, mode: str) -> LossTokens:
        num_tokens, num_rows = int(self.mask_BT.sum()), len(self.mask_BT)
        if mode == "token_mean":
            return token_mean(self.mask_BT, num_tokens=num_tokens)
        if mode == "sequence_mean":
            return sequence_mean(self.mask_BT, num_tokens=num_tokens, num_trajectories=num_rows)
        return constant_length(self.mask_BT, num_tokens=num_tokens, num_trajectories=num_rows, max_tokens=MAX_TOKENS)

    def aggregated(self, losses: Sequence[dict[int, float]], mode: str) -> float:
        return reference.aggregate(
            losses, mode, num_tokens=int(self.mask_BT.sum()), num_rows=len(self.mask_BT), max_tokens=MAX_TOKENS
        )


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    mask_rows = [draw(st.lists(st.booleans(), min_size=columns, max_size=columns)) for _ in range(rows)]
    for row in mask_rows:
        row[draw(st.integers(0, columns - 1))] = True  # at least one token; often no more
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mask_BT = torch.tensor(mask_rows)

    def numbers(scale: float) -> Tensor:
        values_BT = scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        return torch.where(mask_BT, values_BT, math.nan)

    return Batch(
        mask_BT=mask_BT,
        first_BT=numbers(0.4),
        second_BT=numbers(0.4),
        third_BT=numbers(2.0),
        weights_BT=numbers(1.0).abs(),
        values_B=torch.randint(0, 3, (rows,), generator=generator).double(),  # few values: equal groups are common
        group_B=torch.tensor(sorted(draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows)))).unique(return_inverse=True)[
            1
        ],
    )


def _close(ours: Tensor, theirs: object) -> None:
    assert_close(ours, torch.tensor(theirs, dtype=torch.float64), atol=1e-6, rtol=1e-6)


@UNTIMED
@given(batches(), st.sampled_from([0.5, 0.9, 1.0]), st.sampled_from([0.0, 0.95, 1.0]))
def test_gae(batch: Batch, gamma: float, gae_lambda: float) -> None:
    ours = gae(batch.first_BT, batch.second_BT, batch.values_B, batch.mask_BT, gamma=gamma, gae_lambda=gae_lambda)
    _close(
        ours,
        reference.gae(batch.first_BT.tolist(), batch.second_BT.tolist(), batch.values_B.tolist(), batch.mask, gamma, gae_lambda),
    )


@pytest.mark.parametrize("num_tokens", [127, 128, 129, 300])  # summed in blocks of 128
def test_advantages_of_long_completions(num_tokens: int) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    rewards_BT, values_BT = (torch.randn(3, num_tokens, generator=generator, dtype=torch.float64) for _ in range(2))
    mask_BT = torch.rand(3, num_tokens, generator=generator) > 0.1  # gaps inside
    mask_BT[1, 50:] = False
    last_values_B = torch.tensor([0.0, 0.5, -0.5], dtype=torch.float64)
    mask = mask_BT.tolist()
    found = gae(rewards_BT, values_BT, last_values_B, mask_BT, gamma=0.99, gae_lambda=0.95)
    expected = reference.gae(rewards_BT.tolist(), values_BT.tolist(), last_values_B.tolist(), mask, 0.99, 0.95)
    _close(found, expected)
    _close(reward_to_go(rewards_BT, mask_BT, gamma=0.99), reference.reward_to_go(rewards_BT.tolist(), mask, 0.99))


@UNTIMED
@given(batches(), st.sampled_from([0.5, 1.0]))
def test_reward_to_go(batch: Batch, gamma: float) -> None:
    ours = reward_to_go(batch.first_BT, batch.mask_BT, gamma=gamma)
    _close(ours, reference.reward_to_go(batch.first_BT.tolist(), batch.mask, gamma))


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
@UNTIMED
@given(batch=batches())
def test_group_estimators(name: str, batch: Batch) -> None:
    ours: Callable[[Tensor, Tensor], Tensor] = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}[name]
    theirs = {"grpo": reference.grpo, "dr_grpo": reference.dr_grpo, "rloo": reference.rloo}[name]
    _close(ours(batch.values_B, batch.group_B), theirs(batch.values_B.tolist(), batch.group_B.tolist()))


@UNTIMED
@given(batches())
def test_remax(batch: Batch) -> None:
    greedy_B = batch.values_B.flip(0)
    _close(remax(batch.values_B, greedy_B), reference.remax(batch.values_B.tolist(), greedy_B.tolist()))


@UNTIMED
@given(batches())
def test_whitening(batch: Batch) -> None:
    ours = whiten(batch.first_BT, batch.mask_BT, count=int(batch.mask_BT.sum()))
    _close(ours, reference.whiten(batch.first_BT.tolist(), batch.mask))


@pytest.mark.parametrize("mode", ["token_mean", "sequence_mean", "constant_length"])
@pytest.mark.parametrize("name", ["ppo_clip", "gspo", "cispo", "policy_gradient"])
@UNTIMED
@given(batch=batches())
def test_policy_losses(name: str, mode: str, batch: Batch) -> None:
    arguments = (batch.first_BT, batch.second_BT, batch.third_BT, batch.weights_BT, batch.tokens(mode))
    clips: dict[str, Any] = {"clip_eps": EPS, "clip_eps_high": EPS_HIGH}
    ours = {
        "ppo_clip": lambda: ppo_clip_loss(*arguments, **clips, dual_clip=DUAL),
        "gspo": lambda: gspo_loss(*arguments, **clips),
        "cispo": lambda: cispo_loss(*arguments, **clips),
        "policy_gradient": lambda: policy_gradient_loss(*arguments),
    }[name]().loss
    losses = []
    for new, old, advantages, weights, m in zip(
        *(x.tolist() for x in (batch.first_BT, batch.second_BT, batch.third_BT, batch.weights_BT)), batch.mask, strict=True
    ):
        ratio = reference.ratios(new, old, m)
        sequence_ratio = reference.geometric_mean(list(ratio.values()))
        token_loss = {
            "ppo_clip": lambda t: reference.ppo_token(ratio[t], advantages[t], weights[t], EPS, EPS_HIGH, DUAL),  # noqa: B023
            "gspo": lambda t: reference.ppo_token(sequence_ratio, advantages[t], weights[t], EPS, EPS_HIGH, math.inf),  # noqa: B023
            "cispo": lambda t: -weights[t] * min(max(ratio[t], 1 - EPS), 1 + EPS_HIGH) * advantages[t] * new[t],  # noqa: B023
            "policy_gradient": lambda t: -weights[t] * advantages[t] * new[t],  # noqa: B023
        }[name]
        losses.append({t: token_loss(t) for t in reference.valid(m)})
    _close(ours, batch.aggregated(losses, mode))


@pytest.mark.parametrize("name", ["value", "entropy", "k2", "k3"])
@UNTIMED
@given(batch=batches())
def test_other_losses(name: str, batch: Batch) -> None:
    tokens = batch.tokens("token_mean")
    first, second, third = batch.first_BT, batch.second_BT, batch.third_BT
    ours = {
        "value": lambda: clipped_value_loss(first, second, third, tokens, clip_eps=EPS),
        "entropy": lambda: entropy_loss(first, tokens),
        "k2": lambda: kl_penalty_loss(first, second, tokens, estimator=k2),
        "k3": lambda: kl_penalty_loss(first, second, tokens, estimator=k3),
    }[name]().loss
    token_loss = {
        "value": lambda a, b, c: reference.value_token(a, b, c, EPS),
        "entropy": lambda a, b, c: -a,
        "k2": lambda a, b, c: reference.k2(a - b),
        "k3": lambda a, b, c: reference.k3(a - b),
    }[name]
    rows = zip(first.tolist(), second.tolist(), third.tolist(), batch.mask, strict=True)
    losses = [{t: token_loss(a[t], b[t], c[t]) for t in reference.valid(m)} for a, b, c, m in rows]
    _close(ours, batch.aggregated(losses, "token_mean"))


@UNTIMED
@given(batches())
def test_mismatch_weights(batch: Batch) -> None:
    old, rollout, mask = batch.first_BT, batch.second_BT, batch.mask_BT
    by_token = truncated_token_weights(old, rollout, mask, cap=1.3)
    by_sequence = truncated_sequence_weights(old, rollout, mask, cap=1.3)
    in_band = masked_token_weights(old, rollout, mask, lowest=BAND[0], highest=BAND[1])
    kept = kept_sequences(old, rollout, mask, lowest=BAND[0], highest=BAND[1])
    for row, m in enumerate(batch.mask):
        ratio = reference.ratios(old[row].tolist(), rollout[row].tolist(), m)
        product = math.prod(ratio.values())
        for t, value in ratio.items():
            assert by_token[row, t].item() == pytest.approx(min(value, 1.3))
            assert by_sequence[row, t].item() == pytest.approx(min(product, 1.3))
            assert in_band[row, t].item() == pytest.approx(value if BAND[0] <= value <= BAND[1] else 0.0)
        assert kept[row].item() == (BAND[0] <= reference.geometric_mean(list(ratio.values())) <= BAND[1])
