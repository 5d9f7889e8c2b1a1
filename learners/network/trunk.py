"""Running the trunk of a language model, whole or in two parts.

Shapes: R rows of a forward pass, S tokens of a row, D hidden units.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from actors.attention import attention_for
from actors.packing import Packing, is_packable
from cluster.errors import ConfigError
from learners.settings.training import WorkerConfig

logger = logging.getLogger("rayward")

PROBE_TOLERANCE = 1e-3  # relative; the same layers in the same order differ by rounding, other inputs by far more


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardSettings:
    """How forward passes are done. Produced by the learner, consumed by the networks."""

    compute_dtype: torch.dtype
    temperature: float  # of the sampled distribution
    chunk_tokens: int  # positions whose logits exist at one time

    def autocast(self, device_type: str) -> torch.autocast:
        """Matrix products in `compute_dtype`; nothing where that is float32."""
        return torch.autocast(device_type, dtype=self.compute_dtype, enabled=self.compute_dtype != torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrunkParts:
    """Two parts of a trunk, which share their weights with it. Produced by `cut_trunk`, consumed by networks."""

    lower: nn.Module  # from tokens to hidden states, without the final norm
    upper: nn.Module  # from these to the trunk's own hidden states


def hidden_states(
    trunk: nn.Module,
    token_ids_RS: Tensor,
    settings: ForwardSettings,
    *,
    below_RSD: Tensor | None = None,
    packing: Packing | None = None,
) -> Tensor:
    """What a trunk makes of tokens, or, where it is the upper part of one, of the hidden states below it. `packing`: of the only
    row, where it holds several sequences."""
    # No attention mask: a valid token sees only tokens before it, and padding comes after all of them.
    device_type = token_ids_RS.device.type
    longest = token_ids_RS.shape[1] if packing is None else max(packing.lengths)
    with settings.autocast(device_type), attention_for(device_type, num_tokens=longest):
        inputs = {"input_ids": token_ids_RS} if below_RSD is None else {"inputs_embeds": below_RSD}
        inputs |= {} if packing is None else packing.arguments()
        return trunk(**inputs, use_cache=False).last_hidden_state


def packs(trunks: Sequence[PreTrainedModel], workers: WorkerConfig) -> bool:
    """Whether forward passes are packed. Raises `ConfigError` where they must be and a trunk cannot."""
    if not workers.is_packing_wanted:
        return False
    unable = [type(trunk).__name__ for trunk in trunks if not is_packable(trunk)]
    if unable and workers.packing == "packed":
        raise ConfigError(f"{unable[0]} does not keep packed sequences apart; set learner.workers.packing=padded")
    if unable:
        logger.warning("%s does not keep packed sequences apart, so forward passes are padded", unable[0])
    return not unable


def cut_trunk(trunk: PreTrainedModel, num_layers: int, settings: ForwardSettings) -> TrunkParts | None:
    """The lowest `num_layers` and the rest; None where there is nothing to cut.

    Also None for an architecture whose parts, one after the other, are not the whole: one that scales what comes in, for
    example. Its layers then run from the tokens each time, as any others.
    """
    if num_layers == 0 or not hasattr(trunk, "norm"):
        return None
    lower = _part(trunk, slice(0, num_layers))
    lower.norm = nn.Identity()
    upper = _part(trunk, slice(num_layers, None))
    probe_RS = torch.arange(4, device=trunk.device).unsqueeze(0)
    with torch.no_grad():
        expected = hidden_states(trunk, probe_RS, settings)
        found = hidden_states(upper, probe_RS, settings, below_RSD=hidden_states(lower, probe_RS, settings))
    error = (found - expected).abs().max() / expected.abs().max()
    return TrunkParts(lower=lower, upper=upper) if error <= PROBE_TOLERANCE else None


def _part(trunk: PreTrainedModel, layers: slice) -> nn.Module:
    part = copy.copy(trunk)
    part._modules = dict(trunk._modules)  # so that the next line replaces nothing in the trunk itself
    part.layers = trunk.layers[layers]
    part.config = copy.copy(trunk.config)
    part.config.num_hidden_layers = len(part.layers)
    layer_types = vars(trunk.config).get("layer_types")  # some architectures have none
    if layer_types is not None:
        part.config.layer_types = layer_types[layers]
    return part
