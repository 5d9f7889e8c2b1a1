"""A chain of two states for sums by hand: action 1 goes on (reward 1, then 10 and the end), action 0 stays (reward -1)."""

from typing import Any

import gymnasium
from gymnasium.spaces import Discrete

from learners.environments.finite import Environment
from learners.tabular.episodes import Transition, Turn, generator_of

STAY, GO_ON = 0, 1
P = {
    0: {STAY: [(1.0, 0, -1.0, False)], GO_ON: [(1.0, 1, 1.0, False)]},
    1: {STAY: [(1.0, 1, -1.0, False)], GO_ON: [(1.0, 0, 10.0, True)]},
}


class Chain(gymnasium.Env[int, int]):
    """Starts in state 0; what follows the end is state 0 again, which nothing may use."""

    observation_space: Discrete = Discrete(2)
    action_space: Discrete = Discrete(2)
    start_state_index = 0
    P = P

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = 0
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        [(_, self.state, reward, is_terminal)] = P[self.state][int(action)]
        return self.state, reward, is_terminal, False, {}


def chain() -> Environment:
    return Environment(env=Chain(), num_states=2, num_actions=2, state_of=int, first_action=0, is_wrapped=False)


def turn(*, epsilon: float = 0.0, step_size: float = 0.5, seed: int = 0) -> Turn:
    return Turn(generator=generator_of(seed, "actions", 0), epsilon=epsilon, step_size=step_size)


def moved(state: int, action: int, *, is_cut: bool = False) -> Transition:
    [(_, next_state, reward, is_terminal)] = P[state][action]
    return Transition(
        state=state,
        action=action,
        reward=reward,
        next_state=next_state,
        is_terminal=is_terminal,
        is_cut=is_cut and not is_terminal,
    )
