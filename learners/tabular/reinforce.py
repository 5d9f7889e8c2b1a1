"""REINFORCE with a baseline, over a table of preferences. Source: Sutton & Barto 2018, section 13.4; softmax: equation 13.2."""

import numpy as np
from numpy.typing import NDArray

from learners.tabular.episodes import Transition, Turn


class Reinforce:
    """Learns a stochastic policy, and state values as its baseline, when an episode is over. Satisfies `episodes.Agent`."""

    def __init__(self, num_states: int, num_actions: int, *, gamma: float, value_step_size: float) -> None:
        self._preferences_SA = np.zeros((num_states, num_actions))
        self._values_S = np.zeros(num_states)
        self.tables = {"preferences": self._preferences_SA, "state_values": self._values_S}
        self._gamma = gamma
        self._value_step_size = value_step_size
        self._episode: list[Transition] = []

    def begin(self, state: int, turn: Turn) -> int:
        self._turn, self._episode = turn, []
        return self._drawn(state)

    def learn(self, transition: Transition) -> int:
        self._episode.append(transition)
        if transition.is_last:
            self._learn_episode()
        return self._drawn(transition.next_state)

    def policy(self) -> NDArray[np.float64]:
        return softmax(self._preferences_SA)

    def state_values(self) -> NDArray[np.float64]:
        return self._values_S.copy()

    def _learn_episode(self) -> None:
        last, returns = self._episode[-1], []
        following = self._values_S[last.next_state] if last.is_cut else 0.0  # a cut episode would go on
        for transition in reversed(self._episode):
            following = transition.reward + self._gamma * following
            returns.append(following)
        discount = 1.0
        for transition, value in zip(self._episode, reversed(returns), strict=True):
            state, action = transition.state, transition.action
            advantage = value - self._values_S[state]
            gradient_A = -softmax(self._preferences_SA[state])  # of ln pi(action | state): equation 13.9 over a table
            gradient_A[action] += 1.0
            self._values_S[state] += self._value_step_size * advantage
            self._preferences_SA[state] += self._turn.step_size * discount * advantage * gradient_A
            discount *= self._gamma

    def _drawn(self, state: int) -> int:
        cumulated_A = softmax(self._preferences_SA[state]).cumsum()
        drawn = int(np.searchsorted(cumulated_A, self._turn.generator.random(), side="right"))
        return min(drawn, len(cumulated_A) - 1)  # rounding may leave the last sum below 1


def softmax(preferences_XA: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis."""
    exponentials_XA = np.exp(preferences_XA - preferences_XA.max(axis=-1, keepdims=True))
    return np.asarray(exponentials_XA / exponentials_XA.sum(axis=-1, keepdims=True))
