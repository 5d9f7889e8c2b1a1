"""Learning from recorded episodes: RLlib's own losses and connectors, fed with whole episodes in the place of Ray Data.

RLlib's own reader keeps episodes as pickles, values them with weights of some updates ago, and cannot say where it stopped. Here
the learner itself values them, and what is drawn is a function of the seed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Space
from gymnasium.spaces.utils import flatten, flatten_space
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.spaces.space_utils import normalize_action

from learners.environments.recorded import RecordedEpisode, check_spaces, read_episodes
from learners.evaluation.returns import AFTER, episodes_file

NUM_STEPS = (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME)


class RecordedEpisodes:
    """Drawn at random, each as often as any other in the long run."""

    def __init__(self, episodes: Sequence[RecordedEpisode], observations: Space[Any], actions: Space[Any]) -> None:
        """`observations` and `actions`: what the network is given and gives."""
        self._episodes = episodes
        self._spaces = {"observation_space": observations, "action_space": actions}
        self.reseed(0)

    @property
    def num_episodes(self) -> int:
        return len(self._episodes)

    @property
    def num_steps(self) -> int:
        return sum(len(episode.rewards) for episode in self._episodes)

    def reseed(self, seed: int) -> None:
        """Draw as from the beginning."""
        self._rng = np.random.default_rng(seed)
        self._order: list[int] = []

    def draw(self, num_steps: int) -> list[SingleAgentEpisode]:
        """Whole episodes until there are so many steps. They are new: RLlib's connectors change those they are given."""
        drawn: list[SingleAgentEpisode] = []
        while sum(map(len, drawn)) < num_steps:
            if not self._order:
                self._order = list(self._rng.permutation(len(self._episodes)))
            drawn.append(self._as_rllib(self._episodes[self._order.pop()]))
        return drawn

    def _as_rllib(self, episode: RecordedEpisode) -> SingleAgentEpisode:
        return SingleAgentEpisode(
            observations=list(episode.observations),
            actions=list(episode.actions),
            rewards=episode.rewards.tolist(),
            terminated=episode.is_terminal,
            truncated=not episode.is_terminal,
            len_lookback_buffer=0,
            **self._spaces,
        )


def load_recorded(inputs: Sequence[str], env: gymnasium.Env[Any, Any], *, is_flat: bool) -> RecordedEpisodes:
    """`inputs`: run directories, or files. `is_flat`: the network takes observations as vectors, which these are not.

    Raises `ConfigError` where there are none or they are of another environment.
    """
    found: list[RecordedEpisode] = []
    for path in map(Path, inputs):
        file = path / episodes_file(AFTER) if path.is_dir() else path
        episodes = read_episodes(file)
        check_spaces(episodes, env.observation_space, env.action_space, file)
        found += episodes
    observations = flatten_space(env.observation_space) if is_flat else env.observation_space
    networks = [_for_the_network(each, env.observation_space if is_flat else None, env.action_space) for each in found]
    return RecordedEpisodes(networks, observations, env.action_space)


def learning_from_records(algorithm: type[Algorithm]) -> type[Algorithm]:
    """One update of the learners a step. The attribute `recorded` is set when it is built."""

    class LearningFromRecords(algorithm):
        recorded: RecordedEpisodes

        def training_step(self) -> None:
            episodes = self.recorded.draw(self.config.total_train_batch_size)
            self.metrics.log_value(NUM_STEPS, sum(map(len, episodes)), reduce="lifetime_sum")
            steps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: self.metrics.peek(NUM_STEPS)}
            self.metrics.aggregate(self.learner_group.update(episodes=episodes, timesteps=steps), key=LEARNER_RESULTS)

    return LearningFromRecords


def _for_the_network(episode: RecordedEpisode, flattened: Space[Any] | None, actions: Space[Any]) -> RecordedEpisode:
    """RLlib's networks act between -1 and 1, and read vectors where `flattened` has none."""
    observations = episode.observations
    if flattened is not None:
        observations = np.stack([np.asarray(flatten(flattened, each), dtype=np.float32) for each in observations])
    return RecordedEpisode(
        observations=observations,
        actions=np.asarray(normalize_action(episode.actions, actions)),
        rewards=episode.rewards,
        is_terminal=episode.is_terminal,
    )
