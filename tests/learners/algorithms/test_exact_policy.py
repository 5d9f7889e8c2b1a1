"""Estimators against the true gradient of a policy small enough to be written out.

A table of logits, one row a prefix, over three tokens of which 0 ends the completion; at most four tokens, so 31 completions.
Expectations are sums over all of them, or over all pairs where a method compares two: no sampling, hence no tolerance beyond
rounding. Only what is defined on a whole batch (whitening) is sampled, and held to three standard errors.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from learners.algorithms.advantages.dr_grpo import dr_grpo
from learners.algorithms.advantages.gae import gae
from learners.algorithms.advantages.grpo import grpo
from learners.algorithms.advantages.reinforce import reward_to_go
from learners.algorithms.advantages.remax import remax
from learners.algorithms.advantages.rloo import rloo
from learners.algorithms.aggregation import LossTokens, constant_length, sequence_mean
from learners.algorithms.groups import has_contrast
from learners.algorithms.loss_output import LossOutput
from learners.algorithms.losses.cispo import cispo_loss
from learners.algorithms.losses.gspo import gspo_loss
from learners.algorithms.losses.policy_gradient import policy_gradient_loss
from learners.algorithms.losses.ppo_clip import ppo_clip_loss
from learners.algorithms.masking import on_tokens, whiten
from learners.algorithms.mismatch import truncated_sequence_weights, truncated_token_weights

pytestmark = pytest.mark.numeric

NUM_TOKENS, MAX_LENGTH, END = 3, 4, 0


def _completions() -> list[tuple[int, ...]]:
    """All of them: ended by END, or cut at MAX_LENGTH."""
    found: list[tuple[int, ...]] = []
    open_prefixes: list[tuple[int, ...]] = [()]
    for length in range(1, MAX_LENGTH + 1):
        longer = [(*prefix, token) for prefix in open_prefixes for token in range(NUM_TOKENS)]
        found += [each for each in longer if each[-1] == END or length == MAX_LENGTH]
        open_prefixes = [each for each in longer if each[-1] != END]
    return found


COMPLETIONS = _completions()
PREFIXES = sorted({each[:t] for each in COMPLETIONS for t in range(len(each))})
NUM = len(COMPLETIONS)
MASK = torch.tensor([[t < len(each) for t in range(MAX_LENGTH)] for each in COMPLETIONS])
STATE = torch.tensor([[PREFIXES.index(each[:t]) if t < len(each) else 0 for t in range(MAX_LENGTH)] for each in COMPLETIONS])
TOKEN = torch.tensor([[each[t] if t < len(each) else 0 for t in range(MAX_LENGTH)] for each in COMPLETIONS])
_GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(len(PREFIXES), NUM_TOKENS, generator=_GENERATOR, dtype=torch.float64)
SCORES = torch.randn(NUM, generator=_GENERATOR, dtype=torch.float64).round(decimals=1)  # some are equal
CUT = torch.tensor([float(each[-1] != END) for each in COMPLETIONS], dtype=torch.float64)
ENDED = torch.zeros(NUM, dtype=torch.float64)  # bootstrap values of completions after which nothing follows
SINGLES = torch.arange(NUM)
PAIRS = torch.tensor(list(itertools.product(range(NUM), repeat=2))).flatten()  # rows 2k and 2k + 1 are a pair
PAIR_GROUPS = torch.arange(NUM * NUM).repeat_interleave(2)


def _logprobs(logits: Tensor) -> Tensor:
    """Of every token of every completion; 0 where masked."""
    return torch.where(MASK, torch.log_softmax(logits, -1)[STATE, TOKEN], 0.0)


def _probabilities(logits: Tensor) -> Tensor:
    return _logprobs(logits).sum(1).exp()


def _true_gradient(scores: Tensor = SCORES) -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    (_probabilities(logits) * scores).sum().backward()
    return logits.grad


def _summed(mask: Tensor) -> LossTokens:
    """Tokens of a completion add up: its log-probability."""
    return constant_length(mask, num_tokens=int(mask.sum()), num_trajectories=1, max_tokens=1)


def _averaged(mask: Tensor) -> LossTokens:
    """Tokens of a completion are averaged."""
    return sequence_mean(mask, num_tokens=int(mask.sum()), num_trajectories=1)


def _gradient(
    rows: Tensor,
    advantages_BT: Tensor,
    weights_BT: Tensor,
    *,
    loss: Callable[..., LossOutput] = policy_gradient_loss,
    tokens: Callable[[Tensor], LossTokens] = _summed,
    old_logprobs_BT: Tensor | None = None,
) -> Tensor:
    """Ascent direction of a loss over `rows` of COMPLETIONS, each counted `weights_BT` times."""
    logits = LOGITS.clone().requires_grad_()
    logprobs = _logprobs(logits)[rows]
    old = logprobs.detach() if old_logprobs_BT is None else old_logprobs_BT
    (-loss(logprobs, old, advantages_BT, weights_BT, tokens(MASK[rows])).loss).backward()
    return logits.grad


def _counted(weights_B: Tensor) -> Tensor:
    return weights_B.unsqueeze(1).expand(-1, MAX_LENGTH)


def _over_pairs(estimator: Callable[[Tensor, Tensor], Tensor], **settings: Any) -> Tensor:
    """Expected gradient with groups of two."""
    probability = _probabilities(LOGITS)
    of_pair = (probability[PAIRS[0::2]] * probability[PAIRS[1::2]]).repeat_interleave(2)
    advantages = on_tokens(estimator(SCORES[PAIRS], PAIR_GROUPS), MASK[PAIRS])
    return _gradient(PAIRS, advantages, _counted(of_pair / 2), **settings)


def _terminal_rewards(scores: Tensor = SCORES) -> Tensor:
    last = MASK & ~torch.cat([MASK[:, 1:], torch.zeros(NUM, 1, dtype=torch.bool)], 1)
    return torch.where(last, scores.unsqueeze(1), 0.0)


def _true_values() -> Tensor:
    """V(prefix) before each token of each completion."""
    probability = _probabilities(LOGITS)
    values = torch.zeros(len(PREFIXES), dtype=torch.float64)
    for index, prefix in enumerate(PREFIXES):
        below = torch.tensor([each[: len(prefix)] == prefix for each in COMPLETIONS])
        values[index] = (probability * SCORES)[below].sum() / probability[below].sum()
    return torch.where(MASK, values[STATE], 0.0)


def test_the_policy_is_written_out_in_full() -> None:
    assert (NUM, len(PREFIXES)) == (31, 15)
    assert_close(_probabilities(LOGITS).sum(), torch.tensor(1.0, dtype=torch.float64))


def test_reinforce_is_unbiased() -> None:
    advantages = reward_to_go(_terminal_rewards(), MASK, gamma=1.0)
    assert_close(_gradient(SINGLES, advantages, _counted(_probabilities(LOGITS))), _true_gradient())


def test_rloo_is_unbiased() -> None:
    assert_close(_over_pairs(rloo), _true_gradient())


def test_dr_grpo_is_short_by_its_own_share_of_the_mean() -> None:
    assert_close(_over_pairs(dr_grpo), _true_gradient() / 2)  # (n - 1) / n


def test_grpo_climbs_the_chance_to_beat_a_sibling() -> None:
    # In a group of two the deviation is |r1 - r2| / sqrt(2): what is left of the difference is its sign.
    probability = _probabilities(LOGITS)
    beats = torch.sign(SCORES.unsqueeze(1) - SCORES.unsqueeze(0))
    expected = _true_gradient(beats @ probability) / math.sqrt(2)
    ours = _over_pairs(grpo)
    assert_close(ours, expected, atol=1e-5, rtol=1e-5)  # MIN_GROUP_STD against differences of 0.1 and more
    assert not torch.allclose(ours / ours.norm(), _true_gradient() / _true_gradient().norm(), atol=1e-2)


def test_a_mean_over_completions_climbs_the_score_a_token() -> None:
    # GRPO's own aggregation, and GSPO: short completions count more, for better and for worse.
    lengths = MASK.sum(1)
    climbed = _true_gradient(SCORES / lengths)
    for loss in (policy_gradient_loss, partial(gspo_loss, clip_eps=0.1, clip_eps_high=0.1)):
        gradient = _gradient(SINGLES, on_tokens(SCORES, MASK), _counted(_probabilities(LOGITS)), loss=loss, tokens=_averaged)
        assert_close(gradient, climbed)


def test_dynamic_sampling_enlarges_the_gradient_by_the_share_of_groups_with_contrast() -> None:
    # DAPO: what is replaced had no gradient, so the mean over what is left is the same one over fewer groups.
    probability = _probabilities(LOGITS)
    of_pair = (probability[PAIRS[0::2]] * probability[PAIRS[1::2]]).repeat_interleave(2)
    kept = has_contrast(SCORES[PAIRS], PAIR_GROUPS)
    share = of_pair[kept].sum() / 2  # each pair stands twice
    advantages = on_tokens(grpo(SCORES[PAIRS], PAIR_GROUPS), MASK[PAIRS])[kept]
    of_kept = _gradient(PAIRS[kept], advantages, _counted(of_pair[kept] / share / 2))
    assert 0.3 < share < 0.95
    assert_close(of_kept, _over_pairs(grpo) / share)


def test_cispo_without_bounds_is_ppo_without_bounds() -> None:
    # Both then are the off-policy gradient with one ratio a token.
    other = LOGITS + 0.3 * torch.randn(LOGITS.shape, generator=_GENERATOR, dtype=torch.float64)
    clips: dict[str, Any] = {"clip_eps": 1.0, "clip_eps_high": 1e9}
    ppo, cispo = (
        _gradient(
            SINGLES,
            on_tokens(SCORES, MASK),
            _counted(_probabilities(other)),
            loss=partial(loss, **clips),
            old_logprobs_BT=_logprobs(other),
        )
        for loss in (ppo_clip_loss, cispo_loss)
    )
    assert_close(ppo, cispo)


def test_remax_is_unbiased() -> None:
    greedy: tuple[int, ...] = ()
    while greedy not in COMPLETIONS:
        greedy = (*greedy, int(LOGITS[PREFIXES.index(greedy)].argmax()))
    baseline = SCORES[COMPLETIONS.index(greedy)].expand(NUM)
    advantages = on_tokens(remax(SCORES, baseline), MASK)
    assert_close(_gradient(SINGLES, advantages, _counted(_probabilities(LOGITS))), _true_gradient())


def _gae_gradient(values: Tensor, *, gae_lambda: float, bootstrap_values: Tensor = ENDED) -> Tensor:
    advantages = gae(_terminal_rewards(), values, bootstrap_values, MASK, gamma=1.0, gae_lambda=gae_lambda)
    return _gradient(SINGLES, advantages, _counted(_probabilities(LOGITS)))


def test_gae_is_unbiased_with_any_critic_at_lambda_one() -> None:
    values = torch.where(MASK, torch.randn(len(PREFIXES), generator=_GENERATOR, dtype=torch.float64)[STATE], 0.0)
    assert_close(_gae_gradient(values, gae_lambda=1.0), _true_gradient())


def test_gae_is_unbiased_at_any_lambda_with_the_true_values_and_biased_with_others() -> None:
    for gae_lambda in (0.0, 0.5, 0.95):
        assert_close(_gae_gradient(_true_values(), gae_lambda=gae_lambda), _true_gradient())
    assert not torch.allclose(_gae_gradient(torch.zeros(NUM, MAX_LENGTH).double(), gae_lambda=0.5), _true_gradient(), atol=1e-3)


def _settled_value(rewards: Tensor, *, bootstraps: bool) -> Tensor:
    """Where a critic settles that says one number in every state, learning the returns of GAE at lambda = gamma = 1."""
    token_weights = _probabilities(LOGITS).unsqueeze(1) * MASK
    value = torch.zeros((), dtype=torch.float64)
    for _ in range(400):
        values = torch.where(MASK, value, 0.0)
        advantages = gae(rewards, values, CUT * value * bootstraps, MASK, gamma=1.0, gae_lambda=1.0)
        value = (token_weights * (advantages + values)).sum() / token_weights.sum()
    return value


def test_a_bootstrapped_critic_counts_the_score_of_a_cut_completion_twice() -> None:
    # Every completion scores 1, so every state is worth 1.
    rewards = _terminal_rewards(torch.ones_like(SCORES))
    token_weights = _probabilities(LOGITS).unsqueeze(1) * MASK
    share_cut = (token_weights * CUT.unsqueeze(1)).sum() / token_weights.sum()
    assert share_cut > 0.1
    assert_close(_settled_value(rewards, bootstraps=False), torch.tensor(1.0, dtype=torch.float64))
    assert_close(_settled_value(rewards, bootstraps=True), 1 / (1 - share_cut))


def test_a_bootstrapped_policy_is_paid_for_being_cut() -> None:
    value = _settled_value(_terminal_rewards(), bootstraps=True)
    values = torch.where(MASK, value, 0.0)
    assert_close(_gae_gradient(values, gae_lambda=1.0), _true_gradient())
    bootstrapped = _gae_gradient(values, gae_lambda=1.0, bootstrap_values=CUT * value)
    assert_close(bootstrapped, _true_gradient(SCORES + CUT * value))
    assert (bootstrapped - _true_gradient()).norm() > 0.05 * _true_gradient().norm()


def test_sequence_weights_undo_sampling_from_another_policy_and_token_weights_do_so_in_part() -> None:
    other = LOGITS + 0.3 * torch.randn(LOGITS.shape, generator=_GENERATOR, dtype=torch.float64)
    old, rollout = _logprobs(LOGITS), _logprobs(other)
    advantages = on_tokens(SCORES, MASK)
    errors = []
    for corrections in (
        truncated_sequence_weights(old, rollout, MASK, cap=math.inf),
        truncated_token_weights(old, rollout, MASK, cap=math.inf),
        torch.ones_like(old),
    ):
        gradient = _gradient(SINGLES, advantages, _counted(_probabilities(other)) * corrections)
        errors.append((gradient - _true_gradient()).norm().item())
    by_sequence, by_token, uncorrected = errors
    assert by_sequence < 1e-12  # decoupled PPO without a cap
    assert 1e-3 < by_token < uncorrected  # what came before a token is not weighed


def _sampled_gradients(advantages_of: Callable[[Tensor], Tensor], *, num_rows: int) -> Tensor:
    """Gradients of 200 sampled batches; `advantages_of` takes the rows of a batch."""
    generator = torch.Generator().manual_seed(1)
    estimates = []
    for _ in range(200):
        rows = torch.multinomial(_probabilities(LOGITS), num_rows, replacement=True, generator=generator)
        weights = torch.full((num_rows, MAX_LENGTH), 1 / num_rows, dtype=torch.float64)
        estimates.append(_gradient(rows, advantages_of(rows), weights))
    return torch.stack(estimates)


def _assert_within_three_standard_errors(estimates: Tensor, expected: Tensor) -> None:
    standard_error = estimates.std(0) / math.sqrt(len(estimates))
    deviations = ((estimates.mean(0) - expected) / standard_error)[standard_error > 0]
    assert (deviations.abs() > 3).sum() <= 1  # of 45 numbers chance allows one
    assert deviations.square().mean() < 2  # and there is no drift of them all


def test_reinforce_plus_plus_climbs_the_score_in_deviations_over_tokens() -> None:
    # Over a large batch, whitening subtracts a constant and divides by the deviation.
    probability, rewards = _probabilities(LOGITS), _terminal_rewards()
    to_go = reward_to_go(rewards, MASK, gamma=1.0)
    token_weights = probability.unsqueeze(1) * MASK
    mean = (token_weights * to_go).sum() / token_weights.sum()
    std = ((token_weights * (to_go - mean).square()).sum() / token_weights.sum()).sqrt()

    def advantages_of(rows: Tensor) -> Tensor:
        mask = MASK[rows]
        return whiten(reward_to_go(rewards[rows], mask, gamma=1.0), mask, count=int(mask.sum()))

    _assert_within_three_standard_errors(_sampled_gradients(advantages_of, num_rows=1024), _true_gradient() / std)


def test_reinforce_plus_plus_baseline_is_short_by_the_group_mean_and_in_deviations_over_tokens() -> None:
    # What is left of a group's mean has the gradient of Dr. GRPO; whitening then divides by its deviation over tokens.
    probability = _probabilities(LOGITS)
    of_pair = (probability[PAIRS[0::2]] * probability[PAIRS[1::2]]).repeat_interleave(2)
    left = on_tokens(dr_grpo(SCORES[PAIRS], PAIR_GROUPS), MASK[PAIRS])
    token_weights = of_pair.unsqueeze(1) * MASK[PAIRS]
    mean = (token_weights * left).sum() / token_weights.sum()
    std = ((token_weights * (left - mean).square()).sum() / token_weights.sum()).sqrt()

    def advantages_of(rows: Tensor) -> Tensor:
        mask = MASK[rows]
        groups = torch.arange(len(rows)) // 2
        return whiten(on_tokens(dr_grpo(SCORES[rows], groups), mask), mask, count=int(mask.sum()))

    _assert_within_three_standard_errors(_sampled_gradients(advantages_of, num_rows=1024), _true_gradient() / 2 / std)
