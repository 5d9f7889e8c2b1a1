"""Estimators against the true gradient of a policy small enough to be written out.

A table of logits, one row a prefix, over three tokens of which 0 ends the completion; at most four tokens, so 31 completions.
Expectations are sums over all of them, or over all pairs where a method compares two: no sampling, hence no tolerance beyond
rounding. Only what is defined on a whole batch (whitening) is sampled, and held to three standard errors.
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.testing import assert_close

from learners.algorithms.advantages.dr_grpo import dr_grpo
from learners.algorithms.advantages.gae import gae
from learners.algorithms.advantages.grpo import grpo
from learners.algorithms.advantages.reinforce import reward_to_go
from learners.algorithms.advantages.remax import remax
from learners.algorithms.advantages.rloo import rloo
from learners.algorithms.aggregation import constant_length
from learners.algorithms.losses.policy_gradient import policy_gradient_loss
from learners.algorithms.masking import on_tokens, whiten
from learners.algorithms.mismatch import truncated_sequence_weights, truncated_token_weights

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


def _gradient(rows: Tensor, advantages_BT: Tensor, weights_B: Tensor, *, corrections_BT: Tensor | None = None) -> Tensor:
    """Ascent direction of the policy-gradient loss over `rows` of COMPLETIONS, each counted `weights_B` times."""
    logits = LOGITS.clone().requires_grad_()
    weights_BT = weights_B.unsqueeze(1).expand_as(advantages_BT)
    if corrections_BT is not None:
        weights_BT = weights_BT * corrections_BT
    mask = MASK[rows]
    tokens = constant_length(mask, num_tokens=int(mask.sum()), num_trajectories=1, max_tokens=1)
    logprobs = _logprobs(logits)[rows]
    (-policy_gradient_loss(logprobs, logprobs.detach(), advantages_BT, weights_BT, tokens).loss).backward()
    return logits.grad


def _over_pairs(estimator: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Expected gradient with groups of two."""
    probability = _probabilities(LOGITS)
    of_pair = (probability[PAIRS[0::2]] * probability[PAIRS[1::2]]).repeat_interleave(2)
    advantages = on_tokens(estimator(SCORES[PAIRS], PAIR_GROUPS), MASK[PAIRS])
    return _gradient(PAIRS, advantages, of_pair / 2)


def _terminal_rewards() -> Tensor:
    last = MASK & ~torch.cat([MASK[:, 1:], torch.zeros(NUM, 1, dtype=torch.bool)], 1)
    return torch.where(last, SCORES.unsqueeze(1), 0.0)


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
    assert_close(_gradient(SINGLES, advantages, _probabilities(LOGITS)), _true_gradient())


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


def test_remax_is_unbiased() -> None:
    greedy: tuple[int, ...] = ()
    while greedy not in COMPLETIONS:
        greedy = (*greedy, int(LOGITS[PREFIXES.index(greedy)].argmax()))
    baseline = SCORES[COMPLETIONS.index(greedy)].expand(NUM)
    advantages = on_tokens(remax(SCORES, baseline), MASK)
    assert_close(_gradient(SINGLES, advantages, _probabilities(LOGITS)), _true_gradient())


def _gae_gradient(values: Tensor, *, gae_lambda: float) -> Tensor:
    advantages = gae(_terminal_rewards(), values, torch.zeros(NUM, dtype=torch.float64), MASK, gamma=1.0, gae_lambda=gae_lambda)
    return _gradient(SINGLES, advantages, _probabilities(LOGITS))


def test_gae_is_unbiased_with_any_critic_at_lambda_one() -> None:
    values = torch.where(MASK, torch.randn(len(PREFIXES), generator=_GENERATOR, dtype=torch.float64)[STATE], 0.0)
    assert_close(_gae_gradient(values, gae_lambda=1.0), _true_gradient())


def test_gae_is_unbiased_at_any_lambda_with_the_true_values_and_biased_with_others() -> None:
    for gae_lambda in (0.0, 0.5, 0.95):
        assert_close(_gae_gradient(_true_values(), gae_lambda=gae_lambda), _true_gradient())
    assert not torch.allclose(_gae_gradient(torch.zeros(NUM, MAX_LENGTH).double(), gae_lambda=0.5), _true_gradient(), atol=1e-3)


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
        gradient = _gradient(SINGLES, advantages, _probabilities(other), corrections_BT=corrections)
        errors.append((gradient - _true_gradient()).norm().item())
    by_sequence, by_token, uncorrected = errors
    assert by_sequence < 1e-12  # decoupled PPO without a cap
    assert 1e-3 < by_token < uncorrected  # what came before a token is not weighed


def test_whitened_rewards_to_go_point_along_the_true_gradient() -> None:
    # REINFORCE++: over a large batch, whitening subtracts a constant and divides by the deviation over tokens.
    generator = torch.Generator().manual_seed(1)
    probability, rewards = _probabilities(LOGITS), _terminal_rewards()
    to_go = reward_to_go(rewards, MASK, gamma=1.0)
    token_weights = probability.unsqueeze(1) * MASK
    mean = (token_weights * to_go).sum() / token_weights.sum()
    std = ((token_weights * (to_go - mean).square()).sum() / token_weights.sum()).sqrt()
    estimates = []
    for _ in range(200):
        rows = torch.multinomial(probability, 1024, replacement=True, generator=generator)
        mask = MASK[rows]
        advantages = whiten(reward_to_go(rewards[rows], mask, gamma=1.0), mask, count=int(mask.sum()))
        estimates.append(_gradient(rows, advantages, torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)))
    stacked = torch.stack(estimates)
    standard_error = stacked.std(0) / math.sqrt(len(estimates))
    deviations = ((stacked.mean(0) - _true_gradient() / std) / standard_error)[standard_error > 0]
    # 45 numbers: each within three standard errors but for what chance allows, and no drift of them all.
    assert (deviations.abs() > 3).sum() <= 1
    assert deviations.square().mean() < 2
