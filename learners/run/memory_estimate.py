"""Memory of a run's processes from a model folder's config.json, before any weight is read.

Counts are parameters, sizes are bytes. Activations are left out: they depend on the backend, not on arithmetic.
Architecture: decoders with gated feed-forward blocks and grouped-query attention (Llama and its relatives).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.config import DType, GeneratorConfig, RewardFunctionScorerConfig, ScorerConfig
from cluster.errors import DataError
from cluster.host.cache import cache_root
from learners.settings.policy import PolicyLearnerConfig
from learners.settings.reward_model import RewardModelLearnerConfig
from learners.settings.training import MAX_KEPT_BYTES, LoRAConfig, WorkerConfig

DTYPE_BYTES: dict[DType, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
TRAINED_BYTES = 12  # float32 gradient and two Adam moments, for weights that are not frozen
FLOAT32_BYTES = 4
LEARNED_PARTS = ("policy", "critic", "reference")  # of a policy's learner: those that are dealt out and offloaded
REWARD_MODEL_PARTS = ("weights", "optimizer")  # likewise
NUM_PUBLISHED = 2  # versions in shared memory while one replaces the other
BYTES_PER_GIB = 2**30

# Families whose blocks are counted right, with what each adds to Llama's block.
GATED_DECODERS = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Parameter counts of a decoder. Produced by `model_shape`, consumed by the estimates below."""

    embedding: int
    layer: int  # of one transformer block
    layer_norms: int  # of these, those of norms; the others are matrices and biases
    num_layers: int
    final_norm: int
    head: int  # 0 where it is tied to the embedding
    vocabulary: int
    hidden: int
    kv_values_per_token: int  # keys and values of all layers
    matrix_sides: Mapping[str, int]  # of one layer: rows and columns together of each matrix, by its name in Hugging Face's code

    @property
    def trunk(self) -> int:
        return self.embedding + self.num_layers * self.layer + self.final_norm

    @property
    def total(self) -> int:
        return self.trunk + self.head

    def frozen(self, num_frozen_layers: int) -> int:
        """Parameters that are not trained: the lowest layers, with the embedding and a head that is tied to it."""
        return self.embedding + num_frozen_layers * self.layer if num_frozen_layers else 0

    def adapter(self, lora: LoRAConfig, *, num_frozen_layers: int = 0) -> int:
        """Parameters of a low-rank adapter; matrices that are not counted here have none."""
        sides = sum(self.matrix_sides.get(name, 0) for name in lora.target_modules)
        return (self.num_layers - num_frozen_layers) * lora.rank * sides

    def weight_bytes(self, num_converted_layers: int, matrix_bytes: int, *, parameters: int) -> int:
        """`parameters` in float32, but for the matrices of so many layers, at `matrix_bytes` a number."""
        converted = num_converted_layers * (self.layer - self.layer_norms)
        return (parameters - converted) * FLOAT32_BYTES + converted * matrix_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleMemory:
    """Memory of one process of a role. `parts` is None where its model is not on this machine yet."""

    role: str
    processes: int
    parts: dict[str, int] | None  # bytes
    offloaded: tuple[str, ...] = ()  # of the parts, those in host memory, while the process computes on a GPU

    def as_dict(self) -> dict[str, Any]:
        """`bytes_each` and `bytes` are those where the role computes, `host_bytes_each` and `host_bytes` what is offloaded."""
        on_host = None if self.parts is None else sum(self.parts[name] for name in self.offloaded)
        each = None if self.parts is None or on_host is None else sum(self.parts.values()) - on_host
        return {
            "role": self.role,
            "processes": self.processes,
            "parts_bytes": self.parts,
            "bytes_each": each,
            "bytes": None if each is None else each * self.processes,
            "offloaded": list(self.offloaded),
            "host_bytes_each": on_host,
            "host_bytes": None if on_host is None else on_host * self.processes,
        }


def local_model_shape(name_or_path: str) -> ModelShape | None:
    """Shape of a model whose folder is on this machine: given as a path, or cached under its name; else None."""
    for folder in (cache_root() / "models" / name_or_path, Path(name_or_path).expanduser()):
        path = folder / "config.json"
        if path.is_file():
            return _shape_of_file(path)
    return None


def model_shape(config: dict[str, Any]) -> ModelShape | None:
    """Count from a Hugging Face config; None for an architecture that is not a gated decoder."""
    if config.get("model_type") not in GATED_DECODERS:
        return None
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    num_heads = config["num_attention_heads"]
    num_kv_heads = config.get("num_key_value_heads") or num_heads
    head_dim = config.get("head_dim") or hidden // num_heads
    num_layers = config["num_hidden_layers"]
    tied = config.get("tie_word_embeddings", False)
    layer_norms = 2 * hidden + (2 * head_dim if config["model_type"] == "qwen3" else 0)
    return ModelShape(
        embedding=vocabulary * hidden,
        layer=_layer_matrices(config, query=num_heads * head_dim, kv=num_kv_heads * head_dim) + layer_norms,
        layer_norms=layer_norms,
        num_layers=num_layers,
        final_norm=hidden,
        head=0 if tied else vocabulary * hidden,
        vocabulary=vocabulary,
        hidden=hidden,
        kv_values_per_token=2 * num_layers * num_kv_heads * head_dim,
        matrix_sides={
            "q_proj": hidden + num_heads * head_dim,
            "k_proj": hidden + num_kv_heads * head_dim,
            "v_proj": hidden + num_kv_heads * head_dim,
            "o_proj": num_heads * head_dim + hidden,
            **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), hidden + config["intermediate_size"]),
        },
    )


def policy_learner_memory(
    policy: ModelShape | None, critic: ModelShape | None, config: PolicyLearnerConfig, *, batch_tokens: int
) -> RoleMemory:
    """One rank: policy and critic with their optimizer, the frozen reference, one chunk of float32 logits, and the hidden states
    above frozen layers. These are at most those of `batch_tokens`: each epoch deals the rows of a batch anew.

    A sharded rank has its part of the first three, in host memory if they are offloaded, keeps no hidden states, and has what is
    gathered for a moment.

    Of the policy's frozen layers and of all layers of the reference, matrices are in the compute type, the rest in float32. With
    `lora` that holds for all layers of policy and critic, of which adapters and the scalar head are trained, and the policy is
    its own reference.
    """
    parts = None
    if policy is not None and (critic is not None or config.critic.kind != "own_model"):
        # A value head is hidden + 1 weights on the policy's trunk; an own critic is a trunk of its own under one.
        head_parameters = 0 if config.critic.kind == "none" else policy.hidden + 1
        critic_parameters = head_parameters if critic is None else critic.trunk + critic.hidden + 1
        matrix_bytes, num_frozen = DTYPE_BYTES[config.workers.compute_dtype], min(config.num_frozen_layers, policy.num_layers)
        if config.lora is not None:
            learned = _adapted_bytes(policy, critic, config.lora, num_frozen, matrix_bytes, head_parameters=head_parameters)
        else:
            trained_bytes = (policy.total - policy.frozen(num_frozen)) * TRAINED_BYTES
            num_references = 2 if config.kl.refresh_reference_steps else 1  # a reference that moves leaves the start behind
            learned = {
                "policy": policy.weight_bytes(num_frozen, matrix_bytes, parameters=policy.total) + trained_bytes,
                "critic": critic_parameters * (FLOAT32_BYTES + TRAINED_BYTES),
                "reference": num_references * policy.weight_bytes(policy.num_layers, matrix_bytes, parameters=policy.total),
            }
        parts = {
            **learned,
            "logits": config.workers.logprob_chunk_tokens * policy.vocabulary * FLOAT32_BYTES,
            "kept_states": min(batch_tokens * policy.hidden * FLOAT32_BYTES, MAX_KEPT_BYTES) if num_frozen else 0,
        }
        if config.workers.sharding != "none":
            outside_layers = policy.total - policy.num_layers * policy.layer
            outside_layers += head_parameters if critic is None else critic_parameters - critic.num_layers * critic.layer
            largest_layer = max(policy.layer, 0 if critic is None else critic.layer)
            parts = _sharded(parts, config.workers, LEARNED_PARTS, gathered=outside_layers + largest_layer)
            parts["kept_states"] = 0
    return _learner_memory(config.workers, parts, LEARNED_PARTS)


def _adapted_bytes(
    policy: ModelShape,
    critic: ModelShape | None,
    lora: LoRAConfig,
    num_frozen_layers: int,
    matrix_bytes: int,
    *,
    head_parameters: int,
) -> dict[str, int]:
    """Of a learner of adapters: policy, critic, reference."""
    policy_bytes = policy.weight_bytes(policy.num_layers, matrix_bytes, parameters=policy.total)
    trunk_bytes = 0 if critic is None else critic.weight_bytes(critic.num_layers, matrix_bytes, parameters=critic.trunk)
    trained_by_critic = head_parameters if critic is None else critic.adapter(lora) + critic.hidden + 1
    trained_by_policy = policy.adapter(lora, num_frozen_layers=num_frozen_layers)
    return {
        "policy": policy_bytes + trained_by_policy * (FLOAT32_BYTES + TRAINED_BYTES),
        "critic": trunk_bytes + trained_by_critic * (FLOAT32_BYTES + TRAINED_BYTES),
        "reference": 0,
    }


def reward_model_learner_memory(model: ModelShape | None, config: RewardModelLearnerConfig) -> RoleMemory:
    """One rank: trunk and scalar head; frozen layers, and the embedding under them, have no gradient and no moments. A sharded
    rank has its part of these, and what is gathered for a moment.

    Matrices of frozen layers are in the compute type; with `lora`, those of all layers, and its adapter and the head are trained.
    """
    parts = None
    if model is not None:
        num_layers = min(config.num_layers or model.num_layers, model.num_layers)
        num_frozen = min(config.num_frozen_layers, num_layers)
        weights = model.trunk - (model.num_layers - num_layers) * model.layer + model.hidden
        matrix_bytes = DTYPE_BYTES[config.workers.compute_dtype]
        num_converted, trained, adapter = num_frozen, weights - model.frozen(num_frozen), 0
        if config.lora is not None:
            num_converted = num_layers
            adapter = model.adapter(config.lora, num_frozen_layers=num_frozen + model.num_layers - num_layers)
            trained = adapter + model.hidden
        parts = {
            "weights": model.weight_bytes(num_converted, matrix_bytes, parameters=weights) + adapter * FLOAT32_BYTES,
            "optimizer": trained * TRAINED_BYTES,
        }
        if config.workers.sharding != "none":
            gathered = weights - (num_layers - 1) * model.layer
            parts = _sharded(parts, config.workers, REWARD_MODEL_PARTS, gathered=gathered)
    return _learner_memory(config.workers, parts, REWARD_MODEL_PARTS)


def generator_memory(
    policy: ModelShape | None, config: GeneratorConfig, lora: LoRAConfig | None, num_adapters: int
) -> RoleMemory:
    """One replica: weights, room for `num_adapters` adapters on all matrices of layers, and, on CPU, its key-value cache; on GPU
    the cache takes what is left of its share."""
    parts = None
    if policy is not None:
        parts = {"weights": policy.total * DTYPE_BYTES[config.dtype]}
        if lora is not None:
            of_all = lora.model_copy(update={"target_modules": tuple(policy.matrix_sides)})
            parts["adapters"] = num_adapters * policy.adapter(of_all) * DTYPE_BYTES[config.dtype]
        if config.num_gpus == 0:
            parts["kv_cache"] = round(config.kv_cache_gib * BYTES_PER_GIB)
    return RoleMemory(role=config.name, processes=config.num_replicas, parts=parts)


def published_bytes(policy: ModelShape | None, config: GeneratorConfig, lora: LoRAConfig | None) -> int:
    """In shared memory: the newest version and the one that replaces it. 0 where weights travel otherwise, or are not counted."""
    if policy is None or config.weight_transfer != "shm":
        return 0
    if lora is not None:
        return NUM_PUBLISHED * policy.adapter(lora) * FLOAT32_BYTES
    return NUM_PUBLISHED * policy.total * DTYPE_BYTES[config.dtype]


def scorer_memory(model: ModelShape | None, config: ScorerConfig) -> RoleMemory:
    """One replica: the reward model's trunk and head; a reward function needs next to nothing."""
    role = f"scorer {config.name}"
    if isinstance(config, RewardFunctionScorerConfig):
        return RoleMemory(role=role, processes=config.num_replicas, parts={})
    parts = None if model is None else {"weights": (model.trunk + model.hidden) * DTYPE_BYTES[config.dtype]}
    return RoleMemory(role=role, processes=config.num_replicas, parts=parts)


def kv_cache_sequences(policy: ModelShape, config: GeneratorConfig, *, longest_tokens: int) -> int:
    """Longest sequences whose keys and values a CPU engine's cache holds at the same time."""
    bytes_per_sequence = policy.kv_values_per_token * DTYPE_BYTES[config.dtype] * longest_tokens
    return int(config.kv_cache_gib * BYTES_PER_GIB // bytes_per_sequence)


def _learner_memory(workers: WorkerConfig, parts: dict[str, int] | None, dealt_out: tuple[str, ...]) -> RoleMemory:
    offloaded = dealt_out if workers.offload == "cpu" else ()
    return RoleMemory(role="learner", processes=workers.num_workers, parts=parts, offloaded=offloaded)


def _sharded(parts: dict[str, int], workers: WorkerConfig, dealt_out: tuple[str, ...], *, gathered: int) -> dict[str, int]:
    """Of one rank; `gathered` parameters are whole at a time, with their gradients: a layer, and what lies outside of layers."""
    in_parts = {name: -(-parts[name] // workers.num_shards) for name in dealt_out}
    return parts | in_parts | {"gathered": gathered * 2 * FLOAT32_BYTES}


def _layer_matrices(config: dict[str, Any], *, query: int, kv: int) -> int:
    """With their biases."""
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    attention = 2 * hidden * query + 2 * hidden * kv
    feed_forward = 3 * hidden * intermediate
    biases = 0
    if config["model_type"] == "qwen2":
        biases += query + 2 * kv
    elif config.get("attention_bias", False):
        biases += query + 2 * kv + hidden
    if config.get("mlp_bias", False):
        biases += 2 * intermediate + hidden
    return attention + feed_forward + biases


def _shape_of_file(path: Path) -> ModelShape | None:
    try:
        return model_shape(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}; save the model folder again") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a model's configuration: {error!r}; save the model folder again") from error
