"""A table of action values, and an epsilon-greedy choice from it. Source: Sutton & Barto 2018, sections 2.2 and 5.4."""

import numpy as np
from numpy.typing import NDArray

from learners.environments.markov_model import greedy_policy
from learners.tabular.episodes import Transition, Turn


class ActionValues:
    """What methods share that learn q(s, a), which starts at 0."""

    def __init__(self, num_states: int, num_actions: int, *, gamma: float) -> None:
        self.values_SA = np.zeros((num_states, num_actions))
        self.tables: dict[str, NDArray[np.float64]] = {"action_values": self.values_SA}
        self._gamma = gamma

    def begin(self, state: int, turn: Turn) -> int:
        """The first action of an episode."""
        self._turn = turn
        return self.chosen(state)

    def policy(self) -> NDArray[np.float64]:
        """[S, A] the greedy policy."""
        return greedy_policy(self.values_SA)

    def state_values(self) -> NDArray[np.float64]:
        """[S] of the best action."""
        return np.asarray(self.values_SA.max(axis=1))

    def chosen(self, state: int) -> int:
        """The best action, the first of equal ones; with probability epsilon any action, the best among them."""
        turn, values_A = self._turn, self.values_SA[state]
        if turn.generator.random() < turn.epsilon:
            return int(turn.generator.random() * len(values_A))
        return int(values_A.argmax())

    def expected_value(self, state: int) -> float:
        """What `chosen` gets on average."""
        epsilon, values_A = self._turn.epsilon, self.values_SA[state]
        return float((1 - epsilon) * values_A.max() + epsilon * values_A.mean())

    def move(self, transition: Transition, following: float) -> None:
        """One step towards reward + gamma * `following`; nothing follows a terminal state, but something does a cut."""
        target = transition.reward if transition.is_terminal else transition.reward + self._gamma * following
        visited = transition.state, transition.action
        self.values_SA[visited] += self._turn.step_size * (target - self.values_SA[visited])
