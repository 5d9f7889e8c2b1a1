"""The tiny model: its tokenizer loses nothing, and the folder is the same every time."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.sources.tiny_model import END_TOKEN, VOCABULARY_SIZE, byte_tokenizer, write_tiny_model

TOKENIZER = byte_tokenizer()
# The names of special tokens are not text; surrogates cannot be encoded in UTF-8.
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"])).filter(
    lambda text: "<|" not in text and "<pad>" not in text
)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_model(folder)
    return folder


@settings(deadline=None)
@given(ANY_TEXT)
def test_any_text_survives_and_each_byte_is_one_token(text: str) -> None:
    token_ids = TOKENIZER(text)["input_ids"]
    assert len(token_ids) == len(text.encode())
    assert TOKENIZER.decode(token_ids) == text


def test_every_id_of_the_model_is_known_to_the_tokenizer() -> None:
    assert len(TOKENIZER) == VOCABULARY_SIZE
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(VOCABULARY_SIZE))


def test_the_folder_loads_as_any_other_model(tiny_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    token_ids = tokenizer("caf\u00e9 \U0001f3ac")["input_ids"]
    assert tokenizer.decode(token_ids) == "caf\u00e9 \U0001f3ac"
    assert model(torch.tensor([token_ids])).logits.shape == (1, len(token_ids), VOCABULARY_SIZE)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(END_TOKEN)


def test_chat_template_opens_the_assistants_turn(tiny_folder: Path) -> None:
    from transformers import AutoTokenizer

    text = AutoTokenizer.from_pretrained(tiny_folder).apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_the_same_weights_every_time(tiny_folder: Path, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    write_tiny_model(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())  # the caller's random state is left alone
    digests = {hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() for folder in (tiny_folder, tmp_path)}
    assert len(digests) == 1
