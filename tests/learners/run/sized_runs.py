"""Models and runs whose sizes are worked out by hand."""

import json
from pathlib import Path
from typing import Any

from learners.settings.run import PolicyRunConfig, RewardModelRunConfig

SMALL_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 10,
    "hidden_size": 4,
    "intermediate_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}
# embedding 10*4 = 40; a layer: q 4*4, k and v 4*2 each, o 4*4 = 48; gate, up, down 3*4*8 = 96; two norms 8: 152; last norm 4
SMALL_LLAMA_PARAMETERS = 40 + 3 * 152 + 4
REFERENCE_BYTES = 2 * 3 * 144 + 4 * (40 + 3 * 8 + 4)  # matrices in bfloat16; embedding and norms in float32

SMOLLM2: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "tie_word_embeddings": True,
}


def write_model(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def ppo_config(**changes: Any) -> PolicyRunConfig:
    values: dict[str, Any] = {
        "name": "trial",
        "model": "small",
        "task": {"kind": "movie_reviews", "max_prompt_tokens": 20},
        "sampling": {"samples_per_prompt": 4, "max_completion_tokens": 12},
        "generator": {"num_replicas": 2, "num_cpus": 0.25, "kv_cache_gib": 0.5, "dtype": "bfloat16"},
        "scorers": [
            {"kind": "reward_model", "model": "small", "num_cpus": 0.5, "dtype": "bfloat16"},
            {"kind": "function", "function": "length", "num_replicas": 3, "num_cpus": 0.1},
        ],
        "learner": {
            "algorithm": "ppo",
            "num_steps": 5,
            "prompts_per_step": 6,
            "minibatch_size": 8,
            "num_epochs": 2,
            "workers": {
                "num_workers": 2,
                "num_cpus": 0.5,
                "compute_dtype": "bfloat16",
                "micro_batch_tokens": 100,
                "logprob_chunk_tokens": 16,
            },
        },
    }
    return PolicyRunConfig.model_validate({**values, **changes})


def reward_model_config(**learner: Any) -> RewardModelRunConfig:
    return RewardModelRunConfig.model_validate(
        {
            "name": "trial",
            "model": "small",
            "learner": {
                "algorithm": "reward_model",
                "batch_size": 6,
                "max_tokens": 10,
                "workers": {"compute_dtype": "bfloat16"},
                **learner,
            },
        }
    )
