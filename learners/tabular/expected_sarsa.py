"""Expected SARSA: the mean over the next action in place of a draw. Source: Sutton & Barto 2018, section 6.6, equation 6.9."""

from learners.tabular.action_values import ActionValues
from learners.tabular.episodes import Transition


class ExpectedSarsa(ActionValues):
    """Learns the values of the policy that it follows, with less variance than SARSA. Satisfies `episodes.Agent`."""

    def learn(self, transition: Transition) -> int:
        self.move(transition, self.expected_value(transition.next_state))
        return self.chosen(transition.next_state)
