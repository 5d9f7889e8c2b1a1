"""The stages of a run that pretrains a language model of one's own. No Ray, and no checkpoint on the way: it takes minutes."""

import math
import re
from pathlib import Path
from typing import Any

import torch

from actors.sources.tiny_model import byte_tokenizer
from cluster.errors import DataError
from cluster.seeding import derive_seed
from cluster.storage.policy_folders import new_folder
from cluster.storage.run_directory import LANGUAGE_MODEL_FOLDER
from learners.language_models.files import build_language_model, write_language_model
from learners.language_models.language_model import LanguageModel, Vocabulary
from learners.language_models.pretraining import TokenText, mean_loss, pretrain, split_text
from learners.run.session import Session
from learners.run.threads import torch_threads
from learners.settings.language_model.pretraining import PretrainingRunConfig, TextConfig

LANGUAGE_MODEL_STAGES = ("evaluate before", "train", "evaluate after", "export")
PARTS = {"paragraph": re.compile(r"\n[ \t]*\n\s*"), "line": re.compile(r"\n+")}  # what stands between them


def read_text(config: PretrainingRunConfig) -> TokenText:
    """Raises `DataError` where the text cannot be read, or is too short."""
    return split_text(
        torch.tensor(_token_ids(config.text), dtype=torch.long),
        held_out_frac=config.text.held_out_frac,
        context_tokens=config.learner.context_tokens,
    )


def pretrain_language_model(session: Session, config: PretrainingRunConfig, text: TokenText) -> None:
    """Evaluate the random start, train, evaluate, write the folder. A run that is resumed does all of it again, alike."""
    with torch_threads(config.learner.num_threads):
        model = build_language_model(config.learner.network, byte_vocabulary(), seed=derive_seed(config.seed, "language model"))
        _evaluate(session, config, model, text, "before")
        session.metrics.discard(lambda line: True, from_step=1)
        with session.stage("train"):
            for done, metrics in enumerate(pretrain(model, text, config.learner, seed=config.seed), start=1):
                session.metrics.log(done, metrics)
                session.view.step(done, config.learner.num_steps, metrics)
        _evaluate(session, config, model, text, "after")
    with session.stage("export"):
        _export(model, session.path / LANGUAGE_MODEL_FOLDER)


def plan_pretraining(config: PretrainingRunConfig) -> dict[str, Any]:
    """What the run will do, as plain values. Reads the text, and raises `DataError`."""
    text, learner = read_text(config), config.learner
    model = build_language_model(learner.network, byte_vocabulary(), seed=0)
    return {
        "name": config.name,
        "algorithm": learner.algorithm,
        "environment": config.text.path,
        "network": learner.network.kind,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens_to_train_on": len(text.train),
        "tokens_held_out": len(text.held_out),
        "num_steps": learner.num_steps,
        "tokens_per_step": learner.batch_size * learner.context_tokens,
        "passes_over_the_text": round(learner.num_steps * learner.batch_size * learner.context_tokens / len(text.train), 2),
        "ray_processes": 0,
    }


def byte_vocabulary() -> Vocabulary:
    """That of the byte tokenizer which goes into the folders."""
    tokenizer = byte_tokenizer()
    return Vocabulary(size=len(tokenizer), end_id=tokenizer.eos_token_id, padding_id=tokenizer.pad_token_id)


def _evaluate(session: Session, config: PretrainingRunConfig, model: LanguageModel, text: TokenText, moment: str) -> None:
    with session.stage(f"evaluate {moment}"):
        loss = mean_loss(model, text.held_out, context_tokens=config.learner.context_tokens)
        session.directory.write_summary({moment: {"logprob_mean": -loss, "perplexity": math.exp(loss)}})


def _export(model: LanguageModel, folder: Path) -> None:
    """One that is there is of an earlier process of the run, and the same."""
    if folder.exists():
        return
    with new_folder(folder) as draft:
        write_language_model(model, draft)
        byte_tokenizer().save_pretrained(draft)


def _token_ids(config: TextConfig) -> list[int]:
    path = Path(config.path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"text.path={config.path}: cannot be read as UTF-8 text: {error}") from error
    parts = [text] if config.end_after == "file" else PARTS[config.end_after].split(text)
    tokenizer = byte_tokenizer()
    ids: list[int] = []
    for part in filter(None, map(str.strip, parts)):
        ids += [*tokenizer(part)["input_ids"], tokenizer.eos_token_id]
    return ids
