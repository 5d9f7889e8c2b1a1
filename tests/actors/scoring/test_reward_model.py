"""Scores from a tiny random reward model, in float32, in this process."""

import json
from pathlib import Path

import pytest
import torch

from actors.config import RewardModelScorerConfig
from actors.scoring.reward_head import encode_texts, last_token_scores, load_reward_model, start_reward_model
from actors.scoring.reward_model import RewardModel
from actors.sources.models import resolve_model
from actors.sources.tiny_model import byte_tokenizer
from cluster.errors import ConfigError, DataError
from cluster.types import Unscored

TEXTS = ("a splendid film", "dull", "not bad at all, and rather long as texts in this test go", "dull too", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model whose padding token is its end-of-sequence token, as SmolLM2's is."""
    path = tmp_path_factory.mktemp("models") / "reward"
    model = start_reward_model(resolve_model("tiny"), dtype="float32", num_layers=None)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
    model.config.pad_token_id = model.config.eos_token_id
    model.save_pretrained(path)
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(path)
    return path


def _reward_model(folder: Path, **fields: object) -> RewardModel:
    return RewardModel(
        RewardModelScorerConfig.model_validate({"model": str(folder), "dtype": "float32", "num_threads": 1, **fields})
    )


def test_a_score_is_the_head_on_the_end_of_sequence_token_even_where_that_is_the_padding_token(folder: Path) -> None:
    model = load_reward_model(str(folder), dtype="float32")
    scores = _reward_model(folder).score_texts(TEXTS)
    for text, score in zip(TEXTS, scores, strict=True):
        ids = torch.tensor([[*text.encode()]])  # only for its length: one token a byte
        encoded = encode_texts(byte_tokenizer(), [text], max_tokens=256)[0]
        assert len(encoded) == ids.shape[1] + 1
        hidden_1TD = model.base_model(input_ids=torch.tensor([encoded])).last_hidden_state
        assert score == pytest.approx(model.score(hidden_1TD[0, -1]).item(), abs=1e-5)


def test_a_score_does_not_depend_on_the_texts_beside_it(folder: Path) -> None:
    alone = [_reward_model(folder).score_texts([text])[0] for text in TEXTS]
    for batch_size in (1, 2, 64):
        assert _reward_model(folder, batch_size=batch_size).score_texts(TEXTS) == pytest.approx(alone, abs=1e-5)


def test_no_texts_have_no_scores(folder: Path) -> None:
    assert _reward_model(folder).score_texts([]) == []


def test_texts_are_cut_before_the_end_of_sequence_token() -> None:
    tokenizer = byte_tokenizer()
    full, cut = (encode_texts(tokenizer, ["abcdef"], max_tokens=size)[0] for size in (7, 4))
    assert full[-1] == cut[-1] == tokenizer.eos_token_id
    assert cut[:-1] == full[:3]


def test_a_text_that_is_too_long_has_no_score_and_the_others_have_theirs(folder: Path) -> None:
    texts = ["x" * 15, "x" * 16, "dull"]
    first, too_long, last = _reward_model(folder, max_tokens=16, name="judge").score_texts(texts)
    assert too_long == Unscored(
        problem="the text has 17 tokens, more than max_tokens=16 of the scorer 'judge'; raise it, or set overlong=truncate"
    )
    whole = _reward_model(folder).score_texts(texts)
    assert [first, last] == pytest.approx([whole[0], whole[2]], abs=1e-5)


def test_a_text_is_cut_where_the_settings_say_so_and_the_log_counts_it(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    cut = _reward_model(folder, max_tokens=16, overlong="truncate").score_texts(["x" * 15 + "!", "dull"])
    assert cut == pytest.approx(_reward_model(folder).score_texts(["x" * 15, "dull"]), abs=1e-5)
    assert caplog.messages == [
        "the reward model reads 1 of 2 texts only up to max_tokens=16; raise it to have them read to their ends"
    ]


def test_the_offset_in_the_folder_is_subtracted(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "score_offset": 0.5}))
    plain, shifted = (_reward_model(path).score_texts(TEXTS) for path in (folder, tmp_path))
    assert shifted == pytest.approx([score - 0.5 for score in plain if isinstance(score, float)], abs=1e-6)


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(DataError, match=r"score\.weight.*no reward model"):
        load_reward_model(resolve_model("tiny"), dtype="float32")


def test_a_new_head_scores_everything_zero_and_has_a_gradient() -> None:
    model = start_reward_model(resolve_model("tiny"), dtype="float32", num_layers=None)
    scores_B = last_token_scores(model, [(1, 2, 3), (4,)])
    assert scores_B.tolist() == [0.0, 0.0]
    scores_B.sum().backward()
    assert model.score.weight.grad.abs().sum() > 0


def test_a_shorter_trunk_is_the_lowest_layers_of_the_start() -> None:
    whole, lower = (start_reward_model(resolve_model("tiny"), dtype="float32", num_layers=num_layers) for num_layers in (None, 1))
    assert (whole.config.num_hidden_layers, lower.config.num_hidden_layers) == (2, 1)
    for name, tensor in lower.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name])
    with pytest.raises(ConfigError, match="num_layers=3.*has 2"):
        start_reward_model(resolve_model("tiny"), dtype="float32", num_layers=3)
