"""Maximum likelihood on a text.

Shapes: B windows, T tokens, V vocabulary. Losses are nats a token; perplexity is exp of that.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cluster.errors import DataError
from cluster.seeding import derive_seed
from learners.language_models.language_model import LanguageModel
from learners.settings.language_model.pretraining import PretrainingLearnerConfig

EVALUATED_AT_ONCE = 32  # windows


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenText:
    """A text as token ids, in two parts. Produced by `split_text`, consumed by `pretrain` and by evaluations."""

    train: Tensor
    held_out: Tensor


def split_text(ids: Tensor, *, held_out_frac: float, context_tokens: int) -> TokenText:
    """Raises `DataError` where a part is shorter than a window and the token after it."""
    num_train = len(ids) - int(len(ids) * held_out_frac)
    text = TokenText(train=ids[:num_train], held_out=ids[num_train:])
    if min(len(text.train), len(text.held_out)) <= context_tokens:
        raise DataError(
            f"the text has {len(text.train)} tokens to train on and {len(text.held_out)} held out, and each part needs more than "
            f"learner.context_tokens={context_tokens}; lower it, give a longer text, or change text.held_out_frac"
        )
    return text


def pretrain(model: LanguageModel, text: TokenText, config: PretrainingLearnerConfig, *, seed: int) -> Iterator[dict[str, float]]:
    """Train in place; yields the metrics of each step. The windows of step i are those of `seed` and i."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    for step in range(config.num_steps):
        learning_rate = config.learning_rate * (1 - step / config.num_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        windows_BT = _windows(text.train, config, derive_seed(seed, "pretraining", step))
        loss = _token_losses(model, windows_BT).mean()
        optimizer.zero_grad()
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        yield {
            "pretraining/logprob_mean": -float(loss.detach()),
            "optim/grad_norm": float(grad_norm),
            "optim/learning_rate": learning_rate,
        }


@torch.no_grad()
def mean_loss(model: LanguageModel, ids: Tensor, *, context_tokens: int) -> float:
    """Nats a token over the whole text, in windows side by side. The first token of each window only predicts."""
    num_windows = (len(ids) - 1) // context_tokens
    windows_BT = ids[: num_windows * context_tokens + 1].unfold(0, context_tokens + 1, context_tokens)
    losses = [_token_losses(model, part_BT) for part_BT in windows_BT.split(EVALUATED_AT_ONCE)]
    return float(torch.cat(losses).mean())


def _windows(ids: Tensor, config: PretrainingLearnerConfig, seed: int) -> Tensor:
    """[B, T + 1]: what is read, and the token that follows it."""
    generator = torch.Generator().manual_seed(seed)
    starts_B = torch.randint(len(ids) - config.context_tokens, (config.batch_size,), generator=generator)
    return ids[starts_B[:, None] + torch.arange(config.context_tokens + 1)]


def _token_losses(model: LanguageModel, windows_BT: Tensor) -> Tensor:
    logits_BTV = model(windows_BT[:, :-1])
    return nn.functional.cross_entropy(logits_BTV.flatten(0, 1), windows_BT[:, 1:].flatten(), reduction="none")
