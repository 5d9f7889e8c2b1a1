"""The score of an answer by a reward model on this machine, as a scorer of a run would give it."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from actors.config import RewardModelScorerConfig
from actors.generation.rendering import PromptFormat, conversation_text
from cluster.errors import DataError
from cluster.messages import Message
from cluster.storage.run_directory import REWARD_MODEL_FOLDER, SUMMARY_NAME
from cluster.types import Task, Unscored

if TYPE_CHECKING:
    from actors.scoring.reward_model import RewardModel

MAX_TOKENS = 4096  # of a conversation; a run reads fewer, because its batches must fit


class Judge:
    """A reward model, loaded at the first question."""

    def __init__(self, folder: Path, prompt_format: PromptFormat) -> None:
        """`folder`: a reward model, or the directory of a run that has trained one. Raises `DataError` where there is none."""
        self.folder = folder / REWARD_MODEL_FOLDER if (folder / SUMMARY_NAME).is_file() else folder
        if not (self.folder / "config.json").is_file():
            raise DataError(f"{self.folder} is not a reward model: it has no config.json; give the folder of one, or of its run")
        self._prompt_format = prompt_format

    @property
    def is_loaded(self) -> bool:
        return "_model" in vars(self)

    def score(self, messages: Sequence[Message]) -> float:
        """Of the last message, which is the answer to the ones before. Raises `DataError` where there is no score."""
        (score,) = self._model.score_texts([self._text(messages)])
        if isinstance(score, Unscored):
            raise DataError(score.problem)
        return score

    @cached_property
    def _model(self) -> "RewardModel":
        from actors.scoring.reward_model import RewardModel
        from actors.sources.tiny_model import without_progress_bars

        with without_progress_bars():
            return RewardModel(RewardModelScorerConfig(model=str(self.folder), max_tokens=MAX_TOKENS))

    def _text(self, messages: Sequence[Message]) -> str:
        """What the reward model reads; a chat is in its own template, which need not be the policy's."""
        *asked, answer = messages
        if self._prompt_format == "plain":
            return "".join(message.content for message in messages)
        if self._model.tokenizer.chat_template is None:
            raise DataError(f"{self.folder} has no chat template, so it judges plain texts only; chat with --prompt-format plain")
        return conversation_text(Task(task_id="chat", messages=tuple(asked)), answer.content, self._model.tokenizer)
