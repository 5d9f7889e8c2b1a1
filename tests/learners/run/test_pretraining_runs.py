"""Language models of one's own, from a text file to a folder that others load."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.testing import assert_close

from cluster.errors import ConfigError, DataError
from cluster.storage.run_directory import read_summary
from learners.language_models.files import load_language_model
from learners.run import commands
from learners.run.plan import plan_run
from learners.settings.run import load_run_config

TRANSFORMER = {"kind": "transformer", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
LSTM = {"kind": "lstm", "hidden_size": 32}
LEARNER = {"algorithm": "pretrain", "num_steps": 40, "batch_size": 8, "context_tokens": 24, "learning_rate": 0.01}
PARAGRAPH = "The cat sat on the mat.\nIt was a warm evening, and nobody came."


def write_config(path: Path, network: dict[str, Any], *, text: str = "\n\n".join([PARAGRAPH] * 40), **learner: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "text.txt").write_text(text)
    values = {
        "name": "cats",
        "runs_dir": str(path),
        "text": {"path": str(path / "text.txt")},
        "learner": LEARNER | {"network": network} | learner,
    }
    (path / "cats.yaml").write_text(yaml.safe_dump(values))
    return path / "cats.yaml"


@pytest.mark.parametrize("network", [TRANSFORMER, LSTM], ids=["transformer", "lstm"])
def test_a_text_becomes_a_folder_and_the_same_again(tmp_path: Path, network: dict[str, Any]) -> None:
    run = commands.run_training(load_run_config(write_config(tmp_path, network)))
    summary = read_summary(run)
    assert summary["state"] == "completed"
    assert summary["after"]["perplexity"] < 0.2 * summary["before"]["perplexity"]
    assert summary["before"]["perplexity"] == pytest.approx(384, rel=0.2)  # the vocabulary, about evenly likely
    curve = [json.loads(line)["pretraining/logprob_mean"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(curve) == 40
    assert curve[0] < curve[-1]
    assert "The perplexity of the held-out text went from" in (run / "report.html").read_text()
    again = commands.run_training(load_run_config(write_config(tmp_path, network), ["name=again"]))
    weights = Path("language_model") / "model.safetensors"
    assert (again / weights).read_bytes() == (run / weights).read_bytes()
    assert read_summary(again)["after"] == summary["after"]


def test_a_transformer_is_what_other_learners_and_engines_load(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from actors.sources.models import resolve_model

    run = commands.run_training(load_run_config(write_config(tmp_path, TRANSFORMER)))
    folder = resolve_model(str(run / "language_model"))
    tokenizer, llama = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids_BT = tokenizer("It was a warm", return_tensors="pt")["input_ids"]
    logits_BTV = load_language_model(Path(folder))(ids_BT)
    assert_close(logits_BTV, llama(ids_BT).logits, atol=1e-5, rtol=1e-5)  # float32 sums in another order, logits up to 10
    text = tokenizer.decode(llama.generate(ids_BT, do_sample=False, max_new_tokens=1)[0])
    assert text == "It was a warm" + tokenizer.decode(logits_BTV[0, -1].argmax())
    assert torch.isfinite(logits_BTV).all()


def test_a_part_ends_with_the_end_token(tmp_path: Path) -> None:
    from actors.sources.tiny_model import byte_tokenizer
    from learners.run.language_model.pretraining_stage import read_text

    config = load_run_config(write_config(tmp_path, LSTM, text="one\ntwo\n\n\nthree\n" * 30))
    for end_after, parts in (("paragraph", 31), ("line", 90), ("file", 1)):
        changed = config.model_copy(update={"text": config.text.model_copy(update={"end_after": end_after})})  # type: ignore[union-attr]
        text = read_text(changed)  # type: ignore[arg-type]
        ids = torch.cat((text.train, text.held_out))
        assert int((ids == byte_tokenizer().eos_token_id).sum()) == parts


@pytest.mark.parametrize(
    ("network", "override", "error", "problem"),
    [
        (LSTM, "text.path=none.txt", DataError, "text.path=none.txt: cannot be read as UTF-8 text"),
        (LSTM, "learner.context_tokens=1000", DataError, "each part needs more than learner.context_tokens=1000; lower it"),
        (TRANSFORMER, "learner.context_tokens=1000", ConfigError, "context_tokens=1000 is more than network.max_position"),
        (TRANSFORMER, "learner.network.num_key_value_heads=3", ConfigError, "=3 must divide num_attention_heads=4"),
        (LSTM, "learner.network.head_dim=3", ConfigError, "head_dim"),
    ],
)
def test_what_is_wrong_is_told_first(
    tmp_path: Path, network: dict[str, Any], override: str, error: type[Exception], problem: str
) -> None:
    path = write_config(tmp_path, network)
    with pytest.raises(error, match=problem):
        commands.run_training(load_run_config(path, [override]))
    assert not (tmp_path / "cats").exists()


def test_the_plan_counts_tokens(tmp_path: Path) -> None:
    plan = plan_run(load_run_config(write_config(tmp_path, LSTM, text="abcdefghi\n\n" * 100)))
    assert plan["tokens_to_train_on"] + plan["tokens_held_out"] == 1000  # nine bytes and an end each
    assert plan["passes_over_the_text"] == round(40 * 8 * 24 / 900, 2)
    assert plan["parameters"] == 384 * 32 + 2 * 4 * 32 * 32 + 2 * 4 * 32 + 384
