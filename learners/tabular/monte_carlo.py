"""First-visit Monte Carlo control: action values are mean returns. Source: Sutton & Barto 2018, section 5.4."""

import numpy as np

from learners.tabular.action_values import ActionValues
from learners.tabular.episodes import Transition, Turn


class MonteCarlo(ActionValues):
    """Learns when an episode is over. Satisfies `episodes.Agent`."""

    def __init__(self, num_states: int, num_actions: int, *, gamma: float) -> None:
        super().__init__(num_states, num_actions, gamma=gamma)
        self._num_visits_SA = self.tables["num_visits"] = np.zeros((num_states, num_actions))

    def begin(self, state: int, turn: Turn) -> int:
        self._episode: list[Transition] = []
        return super().begin(state, turn)

    def learn(self, transition: Transition) -> int:
        self._episode.append(transition)
        if transition.is_last:
            self._learn_episode()
        return self.chosen(transition.next_state)

    def _learn_episode(self) -> None:
        last = self._episode[-1]
        following = self.expected_value(last.next_state) if last.is_cut else 0.0  # known from earlier episodes only
        returns_of_first_visits: dict[tuple[int, int], float] = {}
        for transition in reversed(self._episode):  # so the first visit is what stays
            following = transition.reward + self._gamma * following
            returns_of_first_visits[transition.state, transition.action] = following
        for visited, value in returns_of_first_visits.items():
            self._num_visits_SA[visited] += 1
            self.values_SA[visited] += (value - self.values_SA[visited]) / self._num_visits_SA[visited]
