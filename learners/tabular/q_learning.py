"""Q-learning: off-policy control by temporal differences. Source: Sutton & Barto 2018, section 6.5, equation 6.8."""

from learners.tabular.action_values import ActionValues
from learners.tabular.episodes import Transition


class QLearning(ActionValues):
    """Learns the values of the greedy policy, whatever it does meanwhile. Satisfies `episodes.Agent`."""

    def learn(self, transition: Transition) -> int:
        self.move(transition, float(self.values_SA[transition.next_state].max()))
        return self.chosen(transition.next_state)
