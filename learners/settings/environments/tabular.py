"""Settings of the methods that keep a table: planning with a model, and learning from episodes."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cluster.config import StrictConfig


class ScheduleConfig(StrictConfig):
    """A number that moves in a straight line from its start to its end, episode by episode, and then stays."""

    start: float = Field(ge=0, le=1)
    """In the first episode."""
    end: float | None = Field(None, ge=0, le=1)
    """After `over_num_episodes`; None is the start: the number never moves."""
    over_num_episodes: int | None = Field(None, ge=1)
    """Episodes from start to end; None is all of the run's."""

    @model_validator(mode="after")
    def _it_moves_somewhere(self) -> Self:
        if self.over_num_episodes is not None and self.end is None:
            raise ValueError(f"over_num_episodes={self.over_num_episodes} has no meaning without end; set it, or leave both out")
        return self

    def at(self, episode: int, *, num_episodes: int) -> float:
        """In the episode of this number, from 0, of a run of `num_episodes`."""
        if self.end is None:
            return self.start
        return self.start + (self.end - self.start) * min(1.0, episode / (self.over_num_episodes or num_episodes))


class TabularConfig(StrictConfig):
    """What all of them have."""

    gamma: float = Field(0.99, gt=0, lt=1)
    """Discount of rewards, a step. Below 1, so that a policy has a value also where it never ends an episode."""


class PlanningLearnerConfig(TabularConfig):
    """Planning with the environment's own model: no episode is played. Sutton & Barto 2018, chapter 4."""

    algorithm: Literal["value_iteration", "policy_iteration"]
    """value_iteration: backs up the best action, section 4.4. policy_iteration: evaluates a policy exactly and improves it,
    section 4.3."""
    tolerance: float = Field(1e-10, gt=0)
    """value_iteration ends when no state's value changes by more in a sweep. policy_iteration ends when its policy is stable."""
    max_sweeps: int = Field(100_000, ge=1)
    """A run ends after so many sweeps over the states at the latest."""


class EpisodicConfig(TabularConfig):
    """What methods have that learn from episodes."""

    num_episodes: int = Field(ge=1)
    """Episodes to learn from."""


class EpsilonGreedyConfig(EpisodicConfig):
    """What methods have that explore by random actions."""

    epsilon: ScheduleConfig = ScheduleConfig(start=1.0, end=0.05)
    """Share of actions that are drawn evenly; the rest are greedy."""


class MonteCarloLearnerConfig(EpsilonGreedyConfig):
    """First-visit Monte Carlo control. Sutton & Barto 2018, section 5.4."""

    algorithm: Literal["monte_carlo"]
    """Action values are means of the returns that followed."""


class TemporalDifferenceLearnerConfig(EpsilonGreedyConfig):
    """Control by temporal differences. Sutton & Barto 2018, chapter 6."""

    algorithm: Literal["q_learning", "sarsa", "expected_sarsa"]
    """q_learning: towards the best next action, section 6.5. sarsa: towards the next action that is executed, section 6.4.
    expected_sarsa: towards the mean over the next action, section 6.6."""
    step_size: ScheduleConfig = ScheduleConfig(start=0.1)
    """Share of the error by which a value moves."""


class TabularReinforceLearnerConfig(EpisodicConfig):
    """REINFORCE with a baseline, over a softmax table. Sutton & Barto 2018, section 13.4."""

    algorithm: Literal["tabular_reinforce"]
    """`reinforce` without the prefix is the method for language models."""
    step_size: ScheduleConfig = ScheduleConfig(start=0.1)
    """Of the preferences."""
    value_step_size: float = Field(0.1, gt=0, le=1)
    """Of the state values that are the baseline."""


EpisodicLearnerConfig = Annotated[
    MonteCarloLearnerConfig | TemporalDifferenceLearnerConfig | TabularReinforceLearnerConfig, Field(discriminator="algorithm")
]


class EpisodeCheckpointConfig(StrictConfig):
    """Checkpoints of the tables; the last episode is always kept."""

    every_num_episodes: int = Field(1000, ge=1)
    """A killed run costs so many episodes at most."""
    keep: int = Field(2, ge=1)
    """Older ones are removed."""
