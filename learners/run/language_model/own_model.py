"""A small language model of one's own, sampled in this process: for those that no engine serves."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from actors.generation.rendering import load_tokenizer
from cluster.errors import DataError
from cluster.messages import Answer, Message
from cluster.storage.run_directory import LANGUAGE_MODEL_FOLDER
from learners.language_models.files import load_language_model
from learners.language_models.sampling import sample


class OwnModel:
    """Implements `Answerer` with the folder that a run with learner.algorithm=pretrain or task.kind=tokens left."""

    def __init__(self, folder: Path, *, max_tokens: int, temperature: float) -> None:
        """`folder`: of the model, or of the run. Raises `ConfigError` for one that is none."""
        folder = folder / LANGUAGE_MODEL_FOLDER if (folder / LANGUAGE_MODEL_FOLDER).is_dir() else folder
        self.model = folder.parent.name if folder.name == LANGUAGE_MODEL_FOLDER else folder.name
        self._language_model = load_language_model(folder)
        self._tokenizer = load_tokenizer(str(folder))
        self._max_tokens, self._temperature = max_tokens, temperature

    @contextmanager
    def chat(self, messages: Sequence[Message]) -> Iterator[Answer]:
        """Never: such models have seen texts and no chats."""
        raise DataError("this model continues texts and knows no chats; start `rayward chat` with --prompt-format plain")
        yield

    @contextmanager
    def complete(self, text: str) -> Iterator[Answer]:
        """How the model goes on. Raises `DataError` where the text leaves no room."""
        token_ids = self._tokenizer(text)["input_ids"]
        longest = self._language_model.max_tokens
        room = self._max_tokens if longest is None else min(self._max_tokens, longest - len(token_ids))
        if room < 1:
            raise DataError(f"the text has {len(token_ids)} tokens, and the model reads {longest}; give a shorter one")
        [completion] = sample(
            self._language_model, [token_ids], max_tokens=room, temperature=self._temperature, seed=random.getrandbits(63)
        )
        yield Answer(policy_version="", pieces=iter([self._tokenizer.decode(completion, skip_special_tokens=True)]))
