"""Planning: sweeps over all states until nothing changes any more."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from learners.environments.markov_model import Array, MarkovModel, greedy_policy
from learners.settings.environments.tabular import PlanningLearnerConfig
from learners.tabular.policy_iteration import improved
from learners.tabular.value_iteration import sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What one sweep has come to. Produced by `plan`."""

    values_S: Array
    policy_SA: Array
    metrics: dict[str, float]
    max_left: int  # further sweeps at most; policy iteration does not know
    is_last: bool


def plan(model: MarkovModel, config: PlanningLearnerConfig) -> Iterator[Sweep]:
    """Value or policy iteration, from values of 0 or the policy of first actions; at most `max_sweeps` sweeps."""
    sweeps = _value_iteration(model, config) if config.algorithm == "value_iteration" else _policy_iteration(model, config)
    for _, found in zip(range(config.max_sweeps), sweeps, strict=False):
        yield found


def optimal_return(model: MarkovModel, *, gamma: float) -> float:
    """Expected and discounted, by policy iteration."""
    *_, last = plan(model, PlanningLearnerConfig(algorithm="policy_iteration", gamma=gamma))
    return float(model.start_S @ last.values_S)


def _value_iteration(model: MarkovModel, config: PlanningLearnerConfig) -> Iterator[Sweep]:
    values_S = np.zeros(len(model.start_S))
    is_last = False
    while not is_last:
        values_S, max_change = sweep(model, values_S, gamma=config.gamma)
        is_last = max_change <= config.tolerance
        yield Sweep(
            values_S=values_S,
            policy_SA=greedy_policy(model.action_values(values_S, gamma=config.gamma)),
            metrics={"planning/max_change": max_change, "planning/start_value": float(model.start_S @ values_S)},
            max_left=0 if is_last else math.ceil(math.log(config.tolerance / max_change) / math.log(config.gamma)),
            is_last=is_last,
        )


def _policy_iteration(model: MarkovModel, config: PlanningLearnerConfig) -> Iterator[Sweep]:
    policy_SA = first_actions(model)
    is_last = False
    while not is_last:
        policy_SA, values_S, num_changes = improved(model, policy_SA, gamma=config.gamma)
        is_last = num_changes == 0
        yield Sweep(
            values_S=values_S,
            policy_SA=policy_SA,
            metrics={"planning/changed_states": num_changes, "planning/start_value": float(model.start_S @ values_S)},
            max_left=0,
            is_last=is_last,
        )


def first_actions(model: MarkovModel) -> Array:
    """The greedy policy of a table of zeros."""
    return greedy_policy(np.zeros_like(model.rewards_SA))
