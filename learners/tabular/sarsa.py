"""SARSA: on-policy control by temporal differences. Source: Sutton & Barto 2018, section 6.4, equation 6.7."""

from learners.tabular.action_values import ActionValues
from learners.tabular.episodes import Transition


class Sarsa(ActionValues):
    """Learns the values of the policy that it follows, exploration and all. Satisfies `episodes.Agent`."""

    def learn(self, transition: Transition) -> int:
        next_action = self.chosen(transition.next_state)
        self.move(transition, float(self.values_SA[transition.next_state, next_action]))
        return next_action  # the one that the update has used
