"""The networks of a policy-gradient learner: policy, critic and frozen reference.

Shapes: B trajectories, R rows of a forward pass, S tokens of a row, N tokens that the policy chose, D hidden units, V vocabulary.
Log-probabilities are nats, values are score points. Master weights are float32; matrix products run in `compute_dtype`
under autocast, and so do the reference's, with the same roundings: where weights are equal, log-probabilities are too.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from actors.config import DType
from cluster.errors import ConfigError, DataError
from cluster.storage.policy_folders import copy_tokenizer
from learners.algorithms.logprobs import gather_logprobs
from learners.network.lora import adapter_off, is_of_adapter, plain_name
from learners.network.micro_batch import MicroBatch
from learners.network.sharding import GatheredTensors, Shard, local_part
from learners.network.tensor_files import TensorFiles, write_tensors
from learners.network.trunk import ForwardSettings, TrunkParts, cut_trunk, hidden_states

TORCH_DTYPES: dict[DType, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEAD_PROBE_TOLERANCE = 1e-3  # relative; float32 rounding stays far below, a scaled or capped head far above

T = TypeVar("T")


class PolicyOutput(NamedTuple):
    """One forward pass of policy and critic. Produced by `PolicyWithCritic`, consumed by the learner.

    A tuple, because FSDP looks there for the tensors whose gradients begin a backward pass, and in no other record.
    """

    logprobs_N: Tensor
    values_N: Tensor  # before each valid token
    final_values_B: Tensor  # after the last token
    entropy_N: Tensor | None


class PolicyWithCritic(nn.Module):
    """The policy, and where there is a critic its scalar head, on the policy's own trunk or on a second one."""

    def __init__(
        self,
        policy: PreTrainedModel,
        critic_trunk: PreTrainedModel | None,
        settings: ForwardSettings,
        *,
        has_critic: bool,
        num_frozen_layers: int,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.parts = cut_trunk(policy.base_model, num_frozen_layers, settings)
        self.critic_trunk = critic_trunk
        self.value_head = nn.Linear((critic_trunk or policy).config.hidden_size, 1) if has_critic else None
        self.clear_value_head()
        self.value_mean, self.value_std = 0.0, 1.0  # score points: what the head's 0 and 1 mean
        self._settings = settings

    def forward(
        self, batch: MicroBatch, below_RSD: Tensor | None, *, with_entropy: bool = False, trains_trunk: bool = True
    ) -> PolicyOutput:
        """`below_RSD` are the hidden states above the frozen layers; None starts from the tokens.

        `trains_trunk` False keeps the value head's gradient away from a trunk that the policy shares.
        """
        hidden_RSD = _continued(self.policy, self.parts, batch, below_RSD, self._settings)
        logprobs_N, entropy_N = _head_logprobs(self.policy, hidden_RSD, batch, self._settings, with_entropy=with_entropy)
        if self.critic_trunk is not None:
            hidden_RSD = hidden_states(self.critic_trunk, batch.token_ids_RS, self._settings, packing=batch.packing)
        elif not trains_trunk:
            hidden_RSD = hidden_RSD.detach()
        return PolicyOutput(
            logprobs_N=logprobs_N,
            values_N=self._values(hidden_RSD[batch.input_row_N, batch.position_N]),
            final_values_B=self._values(hidden_RSD[batch.last_input_row_B, batch.last_position_B]),
            entropy_N=entropy_N,
        )

    @torch.no_grad()
    def clear_value_head(self) -> None:
        """Let a critic's head say zero."""
        for parameter in () if self.value_head is None else self.value_head.parameters():
            parameter.zero_()

    @torch.no_grad()
    def ask_policy(self, question: Callable[[PreTrainedModel], T]) -> T:
        """What `question` makes of the policy. Where that is sharded, its parts outside the layers are whole meanwhile."""
        return question(self.policy)

    @torch.no_grad()
    def start_logprobs(self, batch: MicroBatch, below_RSD: Tensor | None) -> Tensor:
        """logprobs_N of the policy with its adapter switched off, which is its start; as `Reference` gives them."""
        with adapter_off(self.policy):
            hidden_RSD = _continued(self.policy, self.parts, batch, below_RSD, self._settings)
            return _head_logprobs(self.policy, hidden_RSD, batch, self._settings, with_entropy=False)[0]

    @torch.no_grad()
    def set_value_unit(self, mean: float, std: float) -> None:
        """Let the head's 0 and 1 mean `mean` and `mean` + `std` score points; values stay as they are.

        Source: van Hasselt et al. 2016, arXiv:1602.07714, eq. 9-10.
        """
        assert self.value_head is not None, "only a critic has a unit"
        self.value_head.weight *= self.value_std / std
        self.value_head.bias.copy_((self.value_std * self.value_head.bias + self.value_mean - mean) / std)
        self.value_mean, self.value_std = mean, std

    @property
    def trunks(self) -> list[PreTrainedModel]:
        return [self.policy.base_model, *([self.critic_trunk] if self.critic_trunk is not None else [])]

    def _values(self, hidden_ND: Tensor) -> Tensor:
        if self.value_head is None:
            return hidden_ND.new_zeros(len(hidden_ND), dtype=torch.float32)
        return self.value_head(hidden_ND.float()).squeeze(-1) * self.value_std + self.value_mean


class Reference(nn.Module):
    """A frozen copy of a policy. Its matrices are kept in the compute type; what autocast leaves alone stays float32."""

    def __init__(self, policy: PreTrainedModel, settings: ForwardSettings, *, num_frozen_layers: int) -> None:
        super().__init__()
        self.policy = copy.deepcopy(policy).requires_grad_(False)
        self._settings = settings
        for module in self.policy.base_model.modules():
            if isinstance(module, nn.Linear):
                module.to(settings.compute_dtype)
        self._parts = cut_trunk(self.policy.base_model, num_frozen_layers, settings)

    @torch.no_grad()
    def refresh(self, policy: PreTrainedModel) -> None:
        """Become a copy of the policy as it is now."""
        for own, theirs in zip(self.policy.parameters(), policy.parameters(), strict=True):
            own.copy_(theirs)

    @torch.no_grad()
    def forward(self, batch: MicroBatch, below_RSD: Tensor | None) -> Tensor:
        """logprobs_N. The frozen layers are the policy's, and so may `below_RSD` be."""
        hidden_RSD = _continued(self.policy, self._parts, batch, below_RSD, self._settings)
        return _head_logprobs(self.policy, hidden_RSD, batch, self._settings, with_entropy=False)[0]


def load_policy(folder: str) -> PreTrainedModel:
    """A causal language model in float32, whose logits are its hidden states times its output matrix."""
    policy = _loaded(AutoModelForCausalLM, folder)
    check_plain_head(policy, folder)
    return policy


def load_critic_trunk(folder: str) -> PreTrainedModel:
    """The trunk of a language model or of a reward model, in float32."""
    return _loaded(AutoModel, folder)


def empty_policy(folder: str) -> PreTrainedModel:
    """As `load_policy`, without memory for parameters, and not checked."""
    return empty_model(AutoModelForCausalLM, folder)


def empty_critic_trunk(folder: str) -> PreTrainedModel:
    """As `load_critic_trunk`, without memory for parameters."""
    return empty_model(AutoModel, folder)


@torch.no_grad()
def read_part(model: PreTrainedModel, folder: str, shard: Shard) -> None:
    """Fill a sharded model from a folder's safetensors: this rank's rows alone are read, and no other is ever in memory.

    An adapter, of which the folder knows nothing, is left to `fill_adapter`.
    """
    tied = set(model.all_tied_weights_keys)
    with _folder_files(folder) as files:
        for name_in_memory, tensor in model.state_dict().items():
            if name_in_memory in tied or is_of_adapter(name_in_memory):
                continue
            name = plain_name(name_in_memory)
            of_whole_model = f"{model.base_model_prefix}.{name}"  # for a trunk, in the folder of a model with a head
            stored = name if name in files else of_whole_model
            if stored not in files:
                raise DataError(
                    f"{folder} has no tensor {name}, as {type(model).__name__} calls it in memory; sharding reads tensors as "
                    "they are in the files, so save the folder again with transformers, or set learner.workers.sharding=none"
                )
            part, target = files.part(stored, shard), local_part(tensor)
            if part.shape != target.shape:
                raise DataError(f"{folder}: {stored} has another shape than config.json says; save the model folder again")
            target.copy_(part)


def _folder_files(folder: str) -> TensorFiles:
    paths = sorted(Path(folder).glob("model*.safetensors"))
    if not paths:
        raise DataError(f"{folder} has no model.safetensors, of which sharding reads parts; save the folder again as safetensors")
    return TensorFiles(paths)


def empty_model(architecture: type[Any], folder: str, **settings: object) -> PreTrainedModel:
    """In float32, without memory for parameters; `settings` replace those of config.json."""
    try:
        config = AutoConfig.from_pretrained(folder, **settings)
        with init_empty_weights(include_buffers=False):
            model = architecture.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        raise DataError(f"model {folder} cannot be loaded: {error}") from error
    model.tie_weights()  # each parameter was replaced by an empty one of its own
    return model.eval()


def _loaded(architecture: type[AutoModel | AutoModelForCausalLM], folder: str) -> PreTrainedModel:
    try:
        model = architecture.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"model {folder} cannot be loaded: {error}") from error  # again and again, so no rank is started anew
    # Dropout would make the ratio of new to old probabilities random.
    return model.eval()


def freeze_lowest_layers(model: PreTrainedModel, num_layers: int, compute_dtype: torch.dtype) -> None:
    """Keep the embeddings and the lowest layers as they are; their backward pass is not computed.

    Frozen matrices are held in `compute_dtype`: autocast remembers its conversions of trained weights only, and would
    convert these anew for every pack (15 % of a step on CPU).
    """
    if num_layers == 0:
        return
    layers = list(model.base_model.layers) if "layers" in dict(model.base_model.named_children()) else []
    if num_layers > len(layers):
        raise ConfigError(f"num_frozen_layers={num_layers}, but {type(model).__name__} has {len(layers)} `layers`; lower it")
    model.base_model.get_input_embeddings().requires_grad_(False)
    for layer in layers[:num_layers]:
        layer.requires_grad_(False)
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                module.to(compute_dtype)


def write_policy(policy: PreTrainedModel, start_folder: Path, folder: Path, tensors: GatheredTensors) -> None:
    """Fill a folder that transformers and vLLM load as it is: weights, config, the start's tokenizer."""
    copy_tokenizer(start_folder, folder)
    config = copy.deepcopy(policy.config)
    config.dtype = next(iter(tensors.like.values())).dtype
    config.architectures = [type(policy).__name__]
    config.save_pretrained(folder)
    if policy.can_generate():
        policy.generation_config.save_pretrained(folder)
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})


def _continued(
    policy: PreTrainedModel,
    parts: TrunkParts | None,
    batch: MicroBatch,
    below_RSD: Tensor | None,
    settings: ForwardSettings,
) -> Tensor:
    if parts is None or below_RSD is None:
        return hidden_states(policy.base_model, batch.token_ids_RS, settings, packing=batch.packing)
    return hidden_states(parts.upper, batch.token_ids_RS, settings, below_RSD=below_RSD, packing=batch.packing)


def _head_logprobs(
    policy: PreTrainedModel, hidden_RSD: Tensor, batch: MicroBatch, settings: ForwardSettings, *, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    return gather_logprobs(
        hidden_RSD[batch.input_row_N, batch.position_N],
        policy.get_output_embeddings().weight,
        batch.target_N,
        temperature=settings.temperature,
        chunk_tokens=settings.chunk_tokens,
        compute_dtype=settings.compute_dtype,
        with_entropy=with_entropy,
    )


@torch.no_grad()
def check_plain_head(policy: PreTrainedModel, folder: str) -> None:
    """Refuse architectures that scale, cap or shift logits after the output matrix: their log-probabilities would be wrong."""
    probe_BS = torch.arange(4, device=policy.device).unsqueeze(0)
    hidden_RSD = policy.base_model(input_ids=probe_BS, use_cache=False).last_hidden_state
    expected = policy(input_ids=probe_BS, use_cache=False).logits
    error = (hidden_RSD @ policy.get_output_embeddings().weight.t() - expected).abs().max() / expected.abs().max()
    if not error <= HEAD_PROBE_TOLERANCE:
        raise DataError(
            f"{folder}: {type(policy).__name__} changes its logits after the output matrix (relative difference {error:.1e}); "
            "the learner supports architectures with a plain linear head, such as Llama, Mistral and Qwen"
        )
