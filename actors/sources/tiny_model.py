"""A model small enough for tests and trial runs: a random two-layer Llama over bytes, made on the spot, the same every time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerFast

TINY_SOURCE = "rayward tiny 1"
TINY_SEED = 20240817
VOCABULARY_SIZE = 384
MAX_TOKENS = 512
HEAD_SIZE = 32  # the smallest that vLLM's CPU attention has a kernel for

START_TOKEN = "<|im_start|>"
END_TOKEN = "<|im_end|>"
PADDING_TOKEN = "<pad>"

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_tiny_model(folder: Path) -> None:
    """Write weights, config and tokenizer as a Hugging Face folder."""
    import torch
    from transformers import GenerationConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TINY_SEED)
        model = LlamaForCausalLM(_tiny_config(tokenizer))
    model.generation_config = GenerationConfig.from_model_config(model.config)
    with without_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Silence transformers' own bars: they write over the caller's spinner."""
    from transformers.utils import logging as transformers_logging

    were_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_enabled:
            transformers_logging.enable_progress_bar()


def byte_tokenizer() -> "PreTrainedTokenizerFast":
    """One token a byte, then the special tokens; any text survives encoding and decoding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # 256 printable characters that stand for the bytes
    special_tokens = [START_TOKEN, END_TOKEN, PADDING_TOKEN]
    # Reserved tokens fill the vocabulary, so that every id the model can sample is one the tokenizer knows.
    special_tokens += [f"<|reserved_{index}|>" for index in range(VOCABULARY_SIZE - len(alphabet) - len(special_tokens))]
    backend = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special_tokens)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END_TOKEN,
        pad_token=PADDING_TOKEN,
        chat_template=CHATML_TEMPLATE,
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def _tiny_config(tokenizer: "PreTrainedTokenizerFast") -> "LlamaConfig":
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_SIZE,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
