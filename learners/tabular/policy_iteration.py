"""Policy iteration with exact evaluation. Source: Sutton & Barto 2018, section 4.3."""

import numpy as np

from learners.environments.markov_model import Array, MarkovModel, greedy_policy

MIN_GAIN = 1e-12  # of the largest action value: less is rounding, and could change equal actions for ever


def improved(model: MarkovModel, policy_SA: Array, *, gamma: float) -> tuple[Array, Array, int]:
    """One evaluation and improvement: (better policy, values of the old one, number of states that changed their action).

    Where no state changes, the policy is optimal.
    """
    values_S = model.policy_values(policy_SA, gamma=gamma)
    values_SA = model.action_values(values_S, gamma=gamma)
    gains_S = values_SA.max(axis=1) - (policy_SA * values_SA).sum(axis=1)
    changes_S = gains_S > MIN_GAIN * max(1.0, float(abs(values_SA).max()))
    better_SA = np.where(changes_S[:, None], greedy_policy(values_SA), policy_SA)
    return better_SA, values_S, int(changes_S.sum())
