"""Slow references in float64: plain loops over plain lists, one formula a function, written from the papers alone.

Each takes a batch as nested lists and a mask; rows may be ragged, masked inside, and hold anything where masked.
"""

import math
from collections.abc import Sequence

Row = Sequence[float]
Rows = Sequence[Row]
Mask = Sequence[Sequence[bool]]


def valid(row: Sequence[bool]) -> list[int]:
    return [t for t, is_valid in enumerate(row) if is_valid]


def gae(rewards: Rows, values: Rows, bootstrap: Row, mask: Mask, gamma: float, lam: float) -> list[list[float]]:
    """A_t = sum_l (gamma lambda)^l delta_{t+l}, over the valid tokens only."""
    result = []
    for r, v, last, m in zip(rewards, values, bootstrap, mask, strict=True):
        places = valid(m)
        after = [v[t] for t in places[1:]] + [last]
        deltas = [r[t] + gamma * following - v[t] for t, following in zip(places, after, strict=True)]
        row = [0.0] * len(m)
        for i, t in enumerate(places):
            row[t] = sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(places)))
        result.append(row)
    return result


def reward_to_go(rewards: Rows, mask: Mask, gamma: float) -> list[list[float]]:
    result = []
    for r, m in zip(rewards, mask, strict=True):
        places = valid(m)
        row = [0.0] * len(m)
        for i, t in enumerate(places):
            row[t] = sum(gamma ** (j - i) * r[places[j]] for j in range(i, len(places)))
        result.append(row)
    return result


def siblings(returns: Row, groups: Sequence[int], index: int) -> list[float]:
    return [value for value, group in zip(returns, groups, strict=True) if group == groups[index]]


def grpo(returns: Row, groups: Sequence[int]) -> list[float]:
    result = []
    for index, value in enumerate(returns):
        group = siblings(returns, groups, index)
        mean = sum(group) / len(group)
        variance = sum((other - mean) ** 2 for other in group) / max(1, len(group) - 1)
        result.append(0.0 if len(set(group)) == 1 else (value - mean) / (math.sqrt(variance) + 1e-6))
    return result


def dr_grpo(returns: Row, groups: Sequence[int]) -> list[float]:
    result = []
    for index, value in enumerate(returns):
        group = siblings(returns, groups, index)
        result.append(0.0 if len(set(group)) == 1 else value - sum(group) / len(group))
    return result


def rloo(returns: Row, groups: Sequence[int]) -> list[float]:
    result = []
    for index, value in enumerate(returns):
        group = siblings(returns, groups, index)
        others = (sum(group) - value) / max(1, len(group) - 1)
        result.append(0.0 if len(set(group)) == 1 else value - others)
    return result


def remax(returns: Row, greedy: Row) -> list[float]:
    return [value - baseline for value, baseline in zip(returns, greedy, strict=True)]


def ppo_token(ratio: float, advantage: float, weight: float, eps: float, eps_high: float, dual: float) -> float:
    """The loss of one token."""
    objective = min(ratio * advantage, max(1 - eps, min(1 + eps_high, ratio)) * advantage)
    if advantage < 0:
        objective = max(objective, dual * advantage)
    return -weight * objective


def ratios(new: Row, old: Row, m: Sequence[bool]) -> dict[int, float]:
    return {t: math.exp(max(-20.0, min(20.0, new[t] - old[t]))) for t in valid(m)}


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values)) if values else 1.0


def aggregate(losses: Sequence[dict[int, float]], mode: str, *, num_tokens: int, num_rows: int, max_tokens: int) -> float:
    """`losses`: of each row, by place."""
    if mode == "token_mean":
        return sum(sum(row.values()) for row in losses) / num_tokens
    if mode == "sequence_mean":
        return sum(sum(row.values()) / len(row) for row in losses if row) / num_rows
    return sum(sum(row.values()) for row in losses) / (num_rows * max_tokens)


def k2(x: float) -> float:
    return x * x / 2


def k3(x: float) -> float:
    x = max(-20.0, min(20.0, x))
    return math.exp(-x) - 1 + x


def value_token(value: float, old: float, target: float, eps: float) -> float:
    limited = max(old - eps, min(old + eps, value))
    return max((value - target) ** 2, (limited - target) ** 2) / 2


def whiten(values: Rows, mask: Mask) -> list[list[float]]:
    seen = [row[t] for row, m in zip(values, mask, strict=True) for t in valid(m)]
    mean = sum(seen) / len(seen)
    variance = sum((value - mean) ** 2 for value in seen) / len(seen)
    return [
        [(row[t] - mean) / math.sqrt(variance + 1e-8) if m[t] else 0.0 for t in range(len(m))]
        for row, m in zip(values, mask, strict=True)
    ]
