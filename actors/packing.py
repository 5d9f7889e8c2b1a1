"""Sequences one after the other in one row, without padding: what a trunk is told of them, and attention that keeps them apart.

Shapes: T tokens of all sequences of a row, H heads, D numbers of a head. Every sum over tokens stays within its sequence, so a
packed pass and a padded one compute the same, and differ by rounding where a kernel adds up in another order.

Through transformers' interfaces: `packable_attention` is registered like any other kernel, and what it must know of the sequences
comes by the names that its flash attention has for them, beside position ids that begin anew with each sequence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

PACKABLE = "rayward_packable"
# What a layer may be, in transformers' words: attention to all tokens before, or to the last ones of them.
ATTENTIVE_LAYERS = {"full_attention", "sliding_attention"}
PROBE_TOLERANCE = 1e-3  # relative; rounding stays far below, tokens of a neighbour or other positions go far above
KERNEL_DTYPES = (torch.float16, torch.bfloat16)  # that flash attention knows
KERNEL_HEAD_MULTIPLE, MAX_KERNEL_HEAD = 8, 256  # of the numbers of a head, likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Where sequences lie in one row. Produced by `packing_of`, consumed by a trunk."""

    lengths: tuple[int, ...]
    position_ids_1T: Tensor  # int64
    starts: Tensor  # int32, of each sequence, and the end of the last

    def arguments(self) -> dict[str, Any]:
        """What a trunk is called with, besides the tokens."""
        longest = max(self.lengths)
        return {
            "position_ids": self.position_ids_1T,
            "cu_seq_lens_q": self.starts,
            "cu_seq_lens_k": self.starts,
            "max_length_q": longest,
            "max_length_k": longest,
            "sequence_lengths": self.lengths,  # what is known here must not be asked of a device
        }


def packing_of(lengths: Sequence[int], device: torch.device) -> Packing:
    """Of sequences in this order."""
    position_ids_T = torch.cat([torch.arange(length) for length in lengths])
    return Packing(
        lengths=tuple(lengths),
        position_ids_1T=position_ids_T.unsqueeze(0).to(device),
        starts=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device),
    )


def make_packable(model: PreTrainedModel) -> None:
    """Let a model take packed rows besides padded ones, where its architecture can; see `is_packable`."""
    AttentionInterface.register(PACKABLE, packable_attention)
    model.set_attn_implementation(PACKABLE)


@torch.no_grad()
def is_packable(trunk: PreTrainedModel) -> bool:
    """Whether a trunk keeps packed sequences apart: asked of its configuration, and then of what it computes.

    Also False for an architecture with layers that carry a state from token to token, or that are not called through
    transformers' attention interface.
    """
    layer_types = vars(trunk.config).get("layer_types") or ()
    if trunk.config._attn_implementation != PACKABLE or not ATTENTIVE_LAYERS.issuperset(layer_types):
        return False
    device = trunk.device
    sequences = [torch.arange(first, last, device=device) for first, last in ((3, 6), (0, 4))]
    packing = packing_of([len(tokens) for tokens in sequences], device)
    packed = trunk(input_ids=torch.cat(sequences)[None], use_cache=False, **packing.arguments()).last_hidden_state
    alone = [trunk(input_ids=tokens[None], use_cache=False).last_hidden_state for tokens in sequences]
    expected = torch.cat(alone, dim=1)
    return bool((packed - expected).abs().max() <= PROBE_TOLERANCE * expected.abs().max())


def packable_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    sequence_lengths: Sequence[int] = (),
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention of padded or of packed rows [rows, H, T, D]; returns [rows, T, H, D]. The kernel is the device's own for
    packed sequences, or else torch's usual one for each sequence.

    There is no mask: a padded row is padded on its right, and nothing else is hidden from later tokens.
    """
    assert attention_mask is None, "transformers makes no masks for a kernel that has not asked for them"
    causal = partial(_causal, module, scaling=scaling, sliding_window=sliding_window)
    if cu_seq_lens_q is None:
        return causal(query, key, value), None
    states = [_in_compute_type(each) for each in (query, key, value)]
    if not _has_kernel(query=states[0]):
        return _one_by_one(states, sequence_lengths, causal), None
    window = (-1 if sliding_window is None else sliding_window - 1, 0)  # tokens before and after one that it sees
    return _by_kernel(states, cu_seq_lens_q, max(sequence_lengths), scaling, window), None


def _in_compute_type(states: Tensor) -> Tensor:
    """As autocast gives them to torch's own attention: rotary embeddings leave float32."""
    device_type = states.device.type
    return states.to(torch.get_autocast_dtype(device_type)) if torch.is_autocast_enabled(device_type) else states


def _has_kernel(query: Tensor) -> bool:
    head = query.shape[-1]
    return query.is_cuda and query.dtype in KERNEL_DTYPES and head % KERNEL_HEAD_MULTIPLE == 0 and head <= MAX_KERNEL_HEAD


def _by_kernel(states: Sequence[Tensor], starts: Tensor, longest: int, scaling: float | None, window: tuple[int, int]) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = states
    groups = query.shape[1] // key.shape[1]
    every_head = (query, repeat_kv(key, groups), repeat_kv(value, groups))  # torch 2.11 has no other way here
    rows_THD = (each[0].transpose(0, 1) for each in every_head)
    return varlen_attn(*rows_THD, starts, starts, longest, longest, scale=scaling, window_size=window).unsqueeze(0)


def _one_by_one(states: Sequence[Tensor], lengths: Sequence[int], causal: Callable[..., Tensor]) -> Tensor:
    """Neighbours of one length are a padded batch without padding, and go together."""
    runs = [(len(list(equal)), length) for length, equal in groupby(lengths)]
    parts = [each[0].split([count * length for count, length in runs], dim=1) for each in states]
    attended = [
        causal(*(part_HTD.unflatten(1, run).transpose(0, 1) for part_HTD in of_run)).flatten(0, 1)
        for run, *of_run in zip(runs, *parts, strict=True)
    ]
    return torch.cat(attended).unsqueeze(0)


def _causal(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, sliding_window: int | None
) -> Tensor:
    mask, length = None, query.shape[2]
    if sliding_window is not None and length > sliding_window:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - sliding_window)
    return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)[0]
