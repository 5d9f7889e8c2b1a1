"""An environment in which each action is a token, and the reward is the score of the text when it ends.

An observation is a vector: the number of tokens so far, then their ids, then padding. So a network reads the same text whatever
the room behind it, and finds the place of the next token in front.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray

from cluster.types import Completion, Prompt, Trajectory

Observation = NDArray[np.int64]
Judge = Callable[[Sequence[Trajectory]], Sequence[float]]  # one reward for each completion


class TokenEnvironment(gymnasium.Env[Observation, np.int64]):
    """Both the end-of-sequence token and the last possible token are terminal: the score judges the text as it then is."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        judge: Judge,
        decode: Callable[[Sequence[int]], str],
        *,
        tokens: Discrete,
        end_id: int,
        padding_id: int,
        max_completion_tokens: int,
    ) -> None:
        """`decode`: a text of token ids, without special tokens."""
        self.metadata = {"render_modes": ["ansi"]}
        self.render_mode = "ansi"
        self.action_space = tokens
        self._prompts, self._judge, self._decode = prompts, judge, decode
        self._end_id, self._padding_id, self._max_completion_tokens = end_id, padding_id, max_completion_tokens
        width = max(len(prompt.token_ids) for prompt in prompts) + max_completion_tokens
        self.observation_space = Box(0, max(int(tokens.n) - 1, width), shape=(1 + width,), dtype=np.int64)
        self._prompt, self._chosen = prompts[0], list[int]()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self._prompt = self._prompts[int(self.np_random.integers(len(self._prompts)))]
        self._chosen = []
        return self._observed(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self._chosen.append(int(action))
        is_over = self._chosen[-1] == self._end_id or len(self._chosen) == self._max_completion_tokens
        [reward] = self._judge([self.trajectory()]) if is_over else [0.0]
        return self._observed(), float(reward), is_over, False, {}

    def render(self) -> str:  # type: ignore[override]  # Gymnasium's type variable for frames is not one of its class
        """The text so far."""
        return self._prompt.text + self._decode(self._chosen)

    def trajectory(self) -> Trajectory:
        """What has been written so far, as scorers read it."""
        completion = Completion(
            token_ids=np.array(self._chosen, dtype=np.int32),
            text=self._decode(self._chosen),
            finish_reason="stop" if self._chosen[-1:] == [self._end_id] else "length",
        )
        return Trajectory(prompt=self._prompt, sample_index=0, completion=completion)

    def _observed(self) -> Observation:
        ids = [*self._prompt.token_ids, *self._chosen]
        observation = np.full(self.observation_space.shape or (), self._padding_id, dtype=np.int64)
        observation[0], observation[1 : 1 + len(ids)] = len(ids), ids
        return observation


class TokenEnvironments(SyncVectorEnv):
    """Several token environments side by side: texts that end in the same step are judged together."""

    def __init__(self, make: Callable[[Judge], TokenEnvironment], num_envs: int, judge: Judge) -> None:
        """`make` gives one, with the judge that it is given."""
        super().__init__([lambda: make(_judged_later)] * num_envs)
        self._judge = judge

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        found: tuple[Any, Any, Any, Any, dict[str, Any]] = super().step(actions)
        _, rewards, terminations, _, _ = found
        ended = np.flatnonzero(terminations)  # each still has its text: it is reset in its next step
        if len(ended):
            rewards[ended] = self._judge([self._text_of(index) for index in ended])
        return found

    def _text_of(self, index: int) -> Trajectory:
        env = self.envs[index]
        assert isinstance(env, TokenEnvironment), "`make` gives no others"
        return env.trajectory()


def _judged_later(trajectories: Sequence[Trajectory]) -> list[float]:
    return [0.0] * len(trajectories)
