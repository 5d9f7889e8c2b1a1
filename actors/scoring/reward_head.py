"""From a text to a score: the steps that training a reward model and scoring with one must do alike.

Shapes: B texts, T tokens, D hidden units. A reward model is a causal Hugging Face trunk with a linear head named `score` on
the hidden state of a text's last token, which is the end-of-sequence token.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from actors.attention import attention_for
from cluster.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("rayward")

SCORE_OFFSET = "score_offset"  # in config.json: subtracted from the head's output, so that training texts have mean 0
PADDING_ID = 0  # any id does: no text's score depends on what stands behind its last token


def encode_texts(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, max_tokens: int) -> list[tuple[int, ...]]:
    """Token ids of each text, cut at the end to `max_tokens - 1`, then the end-of-sequence token. Logs how many were cut."""
    whole = encode_whole_texts(tokenizer, texts)
    num_cut = sum(len(ids) > max_tokens for ids in whole)
    if num_cut:
        logger.warning(
            "the reward model reads %d of %d texts only up to max_tokens=%d; raise it to have them read to their ends",
            num_cut,
            len(whole),
            max_tokens,
        )
    return [ids if len(ids) <= max_tokens else (*ids[: max_tokens - 1], ids[-1]) for ids in whole]


def encode_whole_texts(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of each text, then the end-of-sequence token.

    It is appended whether or not a completion was cut short: the head always reads the same token, in training and later.
    """
    if tokenizer.eos_token_id is None:
        raise DataError("the reward model's tokenizer has no end-of-sequence token; set its eos_token")
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    return [(*ids, tokenizer.eos_token_id) for ids in encoded]


def load_reward_model(folder: str, *, dtype: str) -> "PreTrainedModel":
    """A sequence-classification model with one label."""
    model, info = _load(folder, dtype)
    if info["missing_keys"]:
        raise DataError(
            f"{folder} has no weights for {', '.join(sorted(info['missing_keys']))}: it is no reward model; "
            "train one with learner.algorithm=reward_model"
        )
    return model


def start_reward_model(folder: str, *, dtype: str, num_layers: int | None) -> "PreTrainedModel":
    """The lowest `num_layers` (None: all) layers of the trunk in `folder`, and a head at zero."""
    from torch import nn

    model, _ = _load(folder, dtype, ignore_mismatched_sizes=True, num_hidden_layers=layers_to_load(folder, num_layers))
    nn.init.zeros_(model.score.weight)
    return model


def layers_to_load(folder: str, num_layers: int | None) -> int:
    """All that `folder` has, where `num_layers` is None. Raises `ConfigError` where it has fewer."""
    from transformers import AutoConfig

    available: int = AutoConfig.from_pretrained(folder).num_hidden_layers
    if num_layers is not None and num_layers > available:
        raise ConfigError(f"num_layers={num_layers}, but {folder} has {available}; lower it")
    return num_layers or available


def _load(folder: str, dtype: str, **settings: object) -> tuple["PreTrainedModel", dict[str, list[str]]]:
    from torch import nn
    from transformers import AutoModelForSequenceClassification

    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=dtype, attn_implementation="sdpa", output_loading_info=True, **settings
    )
    head = dict(model.named_children()).get("score")
    if not isinstance(head, nn.Linear):
        kind = type(model).__name__
        raise DataError(f"{folder}: {kind} has no linear head named `score`; use a causal trunk such as Llama or Qwen")
    # Dropout would make equal texts score differently.
    return model.eval(), info


def last_token_scores(model: "PreTrainedModel", token_ids: Sequence[Sequence[int]], *, is_packed: bool = False) -> "Tensor":
    """scores_B, float32, with gradient where enabled; the head itself runs in float32 whatever the trunk's type.

    `is_packed`: without padding, by a trunk that is packable.

    Last tokens are found by length. The model's own forward looks for the last token that is not the padding token, and so
    skips the end-of-sequence token where the two are the same.
    """
    import torch

    device = model.device
    lengths = [len(ids) for ids in token_ids]
    with attention_for(device.type, num_tokens=max(lengths)):
        if is_packed:
            last_BD = _last_states_of_packed(model, token_ids)
        else:
            ids_BT = torch.full((len(token_ids), max(lengths)), PADDING_ID)
            for row, ids in enumerate(token_ids):
                ids_BT[row, : len(ids)] = torch.tensor(ids)
            # No attention mask: the trunk is causal, and padding comes after the last token.
            hidden_BTD = model.base_model(input_ids=ids_BT.to(device), use_cache=False).last_hidden_state
            last_BD = hidden_BTD[torch.arange(len(token_ids), device=device), torch.tensor(lengths, device=device) - 1]
    with torch.autocast(device.type, enabled=False):
        return (last_BD.float() @ model.score.weight.float().t()).squeeze(1)


def _last_states_of_packed(model: "PreTrainedModel", token_ids: Sequence[Sequence[int]]) -> "Tensor":
    import torch

    from actors.packing import packing_of

    packing = packing_of([len(ids) for ids in token_ids], model.device)
    ids_1T = torch.tensor([[token_id for ids in token_ids for token_id in ids]], device=model.device)
    hidden_1TD = model.base_model(input_ids=ids_1T, use_cache=False, **packing.arguments()).last_hidden_state
    return hidden_1TD[0, packing.starts[1:].long() - 1]
