"""A finite Markov decision process as arrays, and the exact value of a policy.

Shapes: S states, A actions; `transitions_SAS[s, a, t]` is the probability of going on in t. What ends an episode leads nowhere,
so a row may sum to less than 1. Source: Sutton & Barto 2018, sections 3.1 to 3.5.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.environments.finite import Environment

Array = NDArray[np.float64]
MAX_DENSE_BYTES = 2**30  # of transitions_SAS


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkovModel:
    """Produced by `markov_model`, consumed by planning and by exact evaluation."""

    transitions_SAS: Array
    rewards_SA: Array  # expected
    start_S: Array  # distribution of the first state

    def action_values(self, values_S: Array, *, gamma: float) -> Array:
        """q(s, a) where `values_S` is what follows. Section 4.1."""
        return self.rewards_SA + gamma * (self.transitions_SAS @ values_S)

    def policy_values(self, policy_SA: Array, *, gamma: float) -> Array:
        """v_pi, by solving the Bellman equation (3.14) as a linear system."""
        rewards_S = (policy_SA * self.rewards_SA).sum(axis=1)
        transitions_SS = np.einsum("sa,sat->st", policy_SA, self.transitions_SAS)
        return np.linalg.solve(np.eye(len(rewards_S)) - gamma * transitions_SS, rewards_S)

    def expected_return(self, policy_SA: Array, *, gamma: float) -> float:
        """Discounted, of an episode from the start distribution that no time limit cuts."""
        return float(self.start_S @ self.policy_values(policy_SA, gamma=gamma))


def markov_model(environment: Environment) -> MarkovModel | None:
    """From the table `P` of Gymnasium's toy-text environments; None where there is none, it is too large to be dense, or wrappers
    may change what it says."""
    if environment.is_wrapped:
        return None
    env: Any = environment.env.unwrapped
    num_states, num_actions = environment.num_states, environment.num_actions
    start_S = _start_distribution(env, num_states)
    if start_S is None or num_states**2 * num_actions * 8 > MAX_DENSE_BYTES:
        return None
    transitions_SAS = np.zeros((num_states, num_actions, num_states))
    rewards_SA = np.zeros((num_states, num_actions))
    for state, actions in env.get_wrapper_attr("P").items():
        for action, outcomes in actions.items():
            for probability, next_state, reward, is_terminal in outcomes:
                rewards_SA[state, action] += probability * reward
                if not is_terminal:
                    transitions_SAS[state, action, next_state] += probability
    return MarkovModel(transitions_SAS=transitions_SAS, rewards_SA=rewards_SA, start_S=start_S)


def greedy_policy(values_SA: Array) -> Array:
    """One action a state with probability 1; the first of equal ones."""
    policy_SA = np.zeros_like(values_SA)
    policy_SA[np.arange(len(values_SA)), values_SA.argmax(axis=1)] = 1.0
    return policy_SA


def _start_distribution(env: Any, num_states: int) -> Array | None:
    """`initial_state_distrib` (FrozenLake, Taxi), or the one state in which CliffWalking starts; None without a table `P`."""
    if not (hasattr(env, "P") and isinstance(env.P, dict)):
        return None
    if hasattr(env, "initial_state_distrib"):
        return np.asarray(env.initial_state_distrib, dtype=np.float64)
    if not hasattr(env, "start_state_index"):
        return None
    start_S = np.zeros(num_states)
    start_S[env.start_state_index] = 1.0
    return start_S
