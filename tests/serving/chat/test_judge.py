"""/score says what a scorer of a run would say of the same text."""

import json
from pathlib import Path

import pytest
import torch

from actors.config import RewardModelScorerConfig
from actors.scoring.reward_head import start_reward_model
from actors.scoring.reward_model import RewardModel
from actors.sources.models import resolve_model
from actors.sources.tiny_model import byte_tokenizer
from cluster.errors import DataError
from cluster.messages import Message
from serving.chat.judge import MAX_TOKENS, Judge

TURNS = [Message(role="user", content="How was it?"), Message(role="assistant", content="Splendid.")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that has trained a reward model."""
    path = tmp_path_factory.mktemp("runs") / "night"
    model = start_reward_model(resolve_model("tiny"), dtype="float32", num_layers=None)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(path / "reward_model")
    byte_tokenizer().save_pretrained(path / "reward_model")
    (path / "summary.json").write_text(json.dumps({"state": "completed"}))
    return path


def test_a_chat_is_judged_in_the_reward_models_own_template(run: Path) -> None:
    judge = Judge(run, "chat")
    assert judge.folder == run / "reward_model"
    assert not judge.is_loaded
    text = "<|im_start|>user\nHow was it?<|im_end|>\n<|im_start|>assistant\nSplendid.<|im_end|>\n"
    model = RewardModel(RewardModelScorerConfig(model=str(run / "reward_model")))
    assert judge.score(TURNS) == pytest.approx(model.score_texts([text])[0], abs=1e-6)
    assert judge.is_loaded


def test_a_plain_text_is_judged_as_it_stands(run: Path) -> None:
    model = RewardModel(RewardModelScorerConfig(model=str(run / "reward_model")))
    judged = Judge(run / "reward_model", "plain").score(TURNS)
    assert judged == pytest.approx(model.score_texts(["How was it?Splendid."])[0], abs=1e-6)


def test_a_text_that_is_too_long_has_no_score(run: Path) -> None:
    with pytest.raises(DataError, match=f"more than max_tokens={MAX_TOKENS}"):
        Judge(run, "plain").score([Message(role="user", content="x" * MAX_TOKENS), TURNS[1]])


def test_a_reward_model_without_template_judges_plain_texts_only(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for file in (run / "reward_model").iterdir():
        if file.name != "chat_template.jinja":
            (folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="has no chat template"):
        Judge(folder, "chat").score(TURNS)


def test_a_run_without_reward_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(DataError, match="reward_model is not a reward model"):
        Judge(tmp_path, "chat")
