"""A language model as a folder: safetensors and JSON. A Transformer's is one of transformers' `LlamaForCausalLM`."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cluster.errors import ConfigError
from cluster.storage.policy_folders import OWN_NETWORK
from learners.language_models.language_model import LanguageModel, Vocabulary
from learners.language_models.lstm import LSTMLanguageModel
from learners.language_models.transformer import NORM_EPS, ROTARY_BASE, TransformerLanguageModel
from learners.settings.language_model.network import LanguageModelConfig, LSTMConfig, TransformerConfig

CONFIG_NAME, WEIGHTS_NAME, GENERATION_NAME = "config.json", "model.safetensors", "generation_config.json"
LSTM_TYPE = f"{OWN_NETWORK}lstm"
LLAMA = {  # what of a Llama is not a setting of ours
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "dtype": "float32",
    "hidden_act": "silu",
    "rms_norm_eps": NORM_EPS,
    "rope_parameters": {"rope_theta": ROTARY_BASE, "rope_type": "default"},
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
}


def build_language_model(config: LanguageModelConfig, vocabulary: Vocabulary, *, seed: int) -> LanguageModel:
    """With random weights, which are a function of `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _model_of(config, vocabulary)


def write_language_model(model: LanguageModel, folder: Path) -> None:
    """Into a folder that is there. The tokenizer is the caller's."""
    assert isinstance(model, LSTMLanguageModel | TransformerLanguageModel), "there are two kinds"
    fixed = {"model_type": LSTM_TYPE} if isinstance(model, LSTMLanguageModel) else LLAMA
    tokens = {"bos_token_id": None, "eos_token_id": model.vocabulary.end_id, "pad_token_id": model.vocabulary.padding_id}
    config = {**fixed, **model.config.model_dump(exclude={"kind"}), "vocab_size": model.vocabulary.size, **tokens}
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if isinstance(model, TransformerLanguageModel):
        (folder / GENERATION_NAME).write_text(json.dumps(tokens, indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})


def load_language_model(folder: Path) -> LanguageModel:
    """What `write_language_model` wrote, to the bit. Raises `ConfigError` for another model's folder."""
    try:
        values = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        config = _config_of(values, folder)
        vocabulary = Vocabulary(size=values["vocab_size"], end_id=values["eos_token_id"], padding_id=values["pad_token_id"])
        model = build_language_model(config, vocabulary, seed=0)  # every tensor is replaced
        model.load_state_dict(load_file(folder / WEIGHTS_NAME))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{folder}: not a language model that learner.algorithm=pretrain wrote: {said}") from error
    return model


def _config_of(values: dict[str, Any], folder: Path) -> LanguageModelConfig:
    if values["model_type"] == LSTM_TYPE:
        return LSTMConfig(kind="lstm", **_settings(LSTMConfig, values))
    others = {name: values.get(name) for name, value in LLAMA.items() if values.get(name) != value}
    if others:
        raise ConfigError(
            f"{folder}: this network is not one of ours: {others}; give the folder of a run with learner.algorithm=pretrain"
        )
    return TransformerConfig(kind="transformer", **_settings(TransformerConfig, values))


def _settings(schema: type[LSTMConfig] | type[TransformerConfig], values: dict[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in schema.model_fields if name != "kind"}


def _model_of(config: LanguageModelConfig, vocabulary: Vocabulary) -> LanguageModel:
    if isinstance(config, LSTMConfig):
        return LSTMLanguageModel(config, vocabulary)
    return TransformerLanguageModel(config, vocabulary)
