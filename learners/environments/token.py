"""An environment in which each action is a token, and the reward is the score of the text when it ends.

An observation is a vector: the number of tokens so far, then their ids, then padding. So a network reads the same text whatever
the room behind it, and finds the place of the next token in front.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from cluster.types import Completion, Prompt, Trajectory

Observation = NDArray[np.int64]


class TokenEnvironment(gymnasium.Env[Observation, np.int64]):
    """Both the end-of-sequence token and the last possible token are terminal: the score judges the text as it then is."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        judge: Callable[[Trajectory], float],
        decode: Callable[[Sequence[int]], str],
        *,
        tokens: Discrete,
        end_id: int,
        padding_id: int,
        max_completion_tokens: int,
    ) -> None:
        """`judge`: the reward of a completion. `decode`: a text of token ids, without special tokens."""
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
        is_stop = self._chosen[-1] == self._end_id
        is_over = is_stop or len(self._chosen) == self._max_completion_tokens
        reward = self._judge(self.trajectory(is_stop=is_stop)) if is_over else 0.0
        return self._observed(), reward, is_over, False, {}

    def render(self) -> str:  # type: ignore[override]  # Gymnasium's type variable for frames is not one of its class
        """The text so far."""
        return self._prompt.text + self._decode(self._chosen)

    def trajectory(self, *, is_stop: bool) -> Trajectory:
        """What has been written so far, as reward functions read it."""
        completion = Completion(
            token_ids=np.array(self._chosen, dtype=np.int32),
            text=self._decode(self._chosen),
            finish_reason="stop" if is_stop else "length",
        )
        return Trajectory(prompt=self._prompt, sample_index=0, completion=completion)

    def _observed(self) -> Observation:
        ids = [*self._prompt.token_ids, *self._chosen]
        observation = np.full(self.observation_space.shape or (), self._padding_id, dtype=np.int64)
        observation[0], observation[1 : 1 + len(ids)] = len(ids), ids
        return observation
