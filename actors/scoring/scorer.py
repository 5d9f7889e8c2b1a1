"""Scorers, as they live in Ray actors: trajectories in, one score each out."""

from collections.abc import Sequence
from typing import Protocol

from actors.config import BuiltInFunctionScorerConfig, RewardModelScorerConfig
from actors.generation.rendering import PromptFormat, conversation_text
from actors.rewards import REWARD_FUNCTIONS
from actors.scoring.reward_model import RewardModel
from cluster.types import Score, Trajectory, Unscored


class Scorer(Protocol):
    """Judges trajectories, in a Ray actor."""

    def score(self, trajectories: Sequence[Trajectory]) -> Sequence[Score | Unscored]:
        """One score a trajectory, in order, or why there is none. Raises where no trajectory of the run can be judged."""

    def progress(self) -> int:
        """A number that changes whenever a piece of the work is done. Asked in another thread than `score`."""


class RewardModelScorer:
    """Implements `Scorer` with a reward model, which reads prompt and completion as one text."""

    def __init__(self, config: RewardModelScorerConfig, prompt_format: PromptFormat) -> None:
        self._model = RewardModel(config)
        self._prompt_format = prompt_format

    def score(self, trajectories: Sequence[Trajectory]) -> list[Score | Unscored]:
        """One score a trajectory, in order, or why there is none."""
        values = self._model.score_texts([self._text(trajectory) for trajectory in trajectories])
        return [value if isinstance(value, Unscored) else Score(value=value) for value in values]

    def progress(self) -> int:
        """Batches scored."""
        return self._model.num_batches

    def rest(self) -> None:
        """Leave the device to others."""
        self._model.move_to("cpu")

    def wake(self) -> None:
        """Come back to the device."""
        self._model.move_to("cuda")

    def _text(self, trajectory: Trajectory) -> str:
        """A chat is put into the reward model's own template, where it has one; the policy's may be another."""
        if self._prompt_format == "chat" and self._model.tokenizer.chat_template is not None:
            return conversation_text(trajectory.prompt.task, trajectory.completion.text, self._model.tokenizer)
        return trajectory.prompt.text + trajectory.completion.text


class RewardFunctionScorer:
    """Implements `Scorer` with a reward function of ours."""

    def __init__(self, config: BuiltInFunctionScorerConfig) -> None:
        self._function = REWARD_FUNCTIONS[config.function]
        self._num_scored = 0

    def score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        """One score a trajectory, in order."""
        scores = []
        for trajectory in trajectories:
            scores.append(Score(value=self._function(trajectory)))
            self._num_scored += 1
        return scores

    def progress(self) -> int:
        """Trajectories scored."""
        return self._num_scored
