"""A trunk in two parts, and the hidden states between them kept for a batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaModel, PreTrainedModel

import learners.network.frozen_layers as frozen_layers
from learners.network.frozen_layers import FrozenStates
from learners.network.micro_batch import MicroBatch
from learners.network.trunk import ForwardSettings, TrunkParts, cut_trunk, hidden_states

SETTINGS = ForwardSettings(compute_dtype=torch.float32, temperature=1.0, chunk_tokens=8)
SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
TOKENS_RS = torch.arange(12).view(2, 6)


def _trunk(kind: str, **fields: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(kind, **SIZES, **fields)).eval()


def _batch(rows: list[int], lengths: list[int]) -> MicroBatch:
    """Rows of TOKENS_RS by their numbers modulo 2, cut to lengths."""
    none = torch.zeros(0, dtype=torch.long)
    return MicroBatch(
        rows=tuple(rows),
        rows_B=tensor(rows),
        segment_lengths=tuple((length,) for length in lengths),
        token_ids_RS=TOKENS_RS[[row % 2 for row in rows], : max(lengths)],
        packing=None,
        mask_BT=torch.zeros(len(rows), 1, dtype=torch.bool),
        row_N=none,
        column_N=none,
        input_row_N=none,
        position_N=none,
        target_N=none,
        last_input_row_B=torch.arange(len(rows)),
        last_position_B=tensor(lengths) - 1,
    )


@pytest.fixture
def parts() -> TrunkParts:
    cut = cut_trunk(_trunk("llama"), 2, SETTINGS)
    assert cut is not None
    return cut


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 2}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1}),
        ("qwen3", {"head_dim": 8}),
    ],
)
@pytest.mark.parametrize("num_layers", [1, 3])
@torch.no_grad()
def test_the_parts_of_a_trunk_are_the_trunk(kind: str, fields: dict[str, Any], num_layers: int) -> None:
    trunk = _trunk(kind, **fields)
    parts = cut_trunk(trunk, num_layers, SETTINGS)
    assert parts is not None
    below = hidden_states(parts.lower, TOKENS_RS, SETTINGS)
    above = hidden_states(parts.upper, TOKENS_RS, SETTINGS, below_RSD=below)
    assert_close(above, hidden_states(trunk, TOKENS_RS, SETTINGS), atol=1e-6, rtol=1e-5)
    assert len(trunk.layers) == trunk.config.num_hidden_layers == 3  # as it was


@torch.no_grad()
def test_the_parts_follow_the_weights_of_the_trunk() -> None:
    trunk = _trunk("llama")
    parts = cut_trunk(trunk, 2, SETTINGS)
    assert parts is not None
    trunk.layers[2].mlp.up_proj.weight.mul_(3.0)
    below = hidden_states(parts.lower, TOKENS_RS, SETTINGS)
    above = hidden_states(parts.upper, TOKENS_RS, SETTINGS, below_RSD=below)
    assert_close(above, hidden_states(trunk, TOKENS_RS, SETTINGS), atol=1e-6, rtol=1e-5)


class _ShiftedInput(LlamaModel):
    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **settings: Any) -> Any:
        embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        return super().forward(inputs_embeds=embeds + 1.0, **settings)


def test_what_is_not_its_parts_one_after_the_other_stays_whole() -> None:
    torch.manual_seed(0)
    assert cut_trunk(_ShiftedInput(LlamaConfig(**SIZES)).eval(), 1, SETTINGS) is None
    assert cut_trunk(_trunk("llama"), 0, SETTINGS) is None


def test_each_row_of_a_batch_is_computed_once(parts: TrunkParts) -> None:
    ran: list[int] = []
    parts.lower.layers[0].register_forward_pre_hook(lambda layer, arguments: ran.append(len(arguments[0])))
    states = FrozenStates(parts, SETTINGS)
    first = states.of(_batch([0, 1], [3, 6]))
    again = states.of(_batch([1, 0], [6, 3]))
    assert ran == [2]
    assert first is not None
    assert again is not None
    assert_close(again, torch.stack([first[1], torch.where(torch.arange(6)[:, None] < 3, first[0], 0.0)]))
    states.of(_batch([0, 2], [3, 6]))  # row 2 is new
    assert ran == [2, 2]
    states.clear()
    states.of(_batch([0, 1], [3, 6]))
    assert ran == [2, 2, 2]


def test_what_a_batch_keeps_is_bounded(parts: TrunkParts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_layers, "MAX_KEPT_BYTES", 3 * 16 * 4)  # three tokens of 16 float32 numbers
    ran: list[int] = []
    parts.lower.layers[0].register_forward_pre_hook(lambda layer, arguments: ran.append(len(arguments[0])))
    states = FrozenStates(parts, SETTINGS)
    for batch in (_batch([0, 1], [3, 6]), _batch([0], [3]), _batch([1], [6])):
        states.of(batch)
    assert ran == [2, 1]  # row 0 was kept


def test_without_frozen_layers_everything_starts_from_the_tokens() -> None:
    assert FrozenStates(None, SETTINGS).of(_batch([0], [3])) is None
