"""One episode: an agent acts, and learns from each transition.

An episode is a function of its number, the run's seed and the tables at its beginning: nothing else draws.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.seeding import derive_seed
from learners.environments.finite import Environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """Produced by `play_episode`, consumed by an agent."""

    state: int
    action: int
    reward: float
    next_state: int
    is_terminal: bool  # nothing follows
    is_cut: bool  # a time limit: something would follow

    @property
    def is_last(self) -> bool:
        return self.is_terminal or self.is_cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What an agent works with in one episode. Produced by the training loop."""

    generator: np.random.Generator
    epsilon: float
    step_size: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one episode."""

    total: float  # sum of rewards
    discounted: float  # each reward times gamma to the number of steps before it
    num_steps: int
    is_cut: bool


class Agent(Protocol):
    """One learning method. `tables` is all that it has learned, changed in place."""

    tables: dict[str, NDArray[np.float64]]

    def begin(self, state: int, turn: Turn) -> int:
        """The first action of an episode."""

    def learn(self, transition: Transition) -> int:
        """Learn, and give the action that is executed next; of the last transition it is ignored."""

    def policy(self) -> NDArray[np.float64]:
        """[S, A] probabilities of what has been learned, without exploration."""

    def state_values(self) -> NDArray[np.float64]:
        """[S] what it expects to follow."""


def generator_of(seed: int, purpose: str, episode: int) -> np.random.Generator:
    """The draws of one episode for one purpose."""
    return np.random.default_rng(derive_seed(seed, purpose, episode))


def play_episode(environment: Environment, agent: Agent, turn: Turn, *, seed: int, gamma: float) -> Outcome:
    """To a terminal state or a time limit. `seed` is that of the environment's own draws."""
    state = environment.reset(seed)
    action = agent.begin(state, turn)
    total = discounted = 0.0
    discount, num_steps = 1.0, 0
    while True:
        next_state, reward, is_terminal, is_cut = environment.step(action)
        total, discounted, discount, num_steps = total + reward, discounted + discount * reward, discount * gamma, num_steps + 1
        next_action = agent.learn(
            Transition(
                state=state,
                action=action,
                reward=reward,
                next_state=next_state,
                is_terminal=is_terminal,
                is_cut=is_cut and not is_terminal,
            )
        )
        if is_terminal or is_cut:
            return Outcome(total=total, discounted=discounted, num_steps=num_steps, is_cut=not is_terminal)
        state, action = next_state, next_action
