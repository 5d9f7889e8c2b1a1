"""A conversation with a small language model of one's own."""

from pathlib import Path

import pytest

from actors.sources.tiny_model import byte_tokenizer
from cluster.errors import ConfigError
from learners.language_models.files import build_language_model, write_language_model
from learners.run.language_model.own_model import OwnModel
from learners.run.language_model.pretraining_stage import byte_vocabulary
from learners.settings.language_model.network import LanguageModelConfig, LSTMConfig, TransformerConfig
from rayward.serving import chat
from serving.chat.conversation import Conversation

LSTM = LSTMConfig(kind="lstm", hidden_size=16)
TRANSFORMER = TransformerConfig(kind="transformer", hidden_size=16, head_dim=8, max_position_embeddings=12)


def written(config: LanguageModelConfig, run: Path) -> Path:
    folder = run / "language_model"
    folder.mkdir(parents=True)
    write_language_model(build_language_model(config, byte_vocabulary(), seed=0), folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def said(model: OwnModel, *lines: str) -> str:
    written: list[str] = []
    Conversation(model, written.append, prompt_format="plain").run(lines)
    return "".join(written)


@pytest.mark.parametrize("config", [LSTM, TRANSFORMER], ids=["lstm", "transformer"])
def test_it_goes_on_with_each_line(config: LanguageModelConfig, tmp_path: Path) -> None:
    folder = written(config, tmp_path / "small")
    greedy = [OwnModel(path, max_tokens=4, temperature=0.0) for path in (folder, folder.parent)]
    assert [model.model for model in greedy] == ["small", "small"]
    answers = [said(model, "ab", "abc") for model in greedy]
    assert answers[0] == answers[1]
    assert [line.partition("> ")[0] for line in answers[0].splitlines() if "> " in line] == ["small", "small"]


def test_a_text_that_leaves_no_room_is_told(tmp_path: Path) -> None:
    model = OwnModel(written(TRANSFORMER, tmp_path), max_tokens=100, temperature=1.0)
    assert said(model, "a" * 12) == "error: the text has 12 tokens, and the model reads 12; give a shorter one\n"
    assert not said(model, "a" * 11).startswith("error")


def test_chats_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="continues texts and knows no chats; add --prompt-format plain"):
        chat(str(tmp_path))


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a language model that learner.algorithm=pretrain wrote"):
        OwnModel(tmp_path, max_tokens=4, temperature=1.0)
