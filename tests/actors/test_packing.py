"""Packed sequences see what they see alone, whatever stands beside them."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, PreTrainedModel

from actors.attention import attention_for
from actors.packing import is_packable, make_packable, packing_of

pytestmark = pytest.mark.numeric

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}  # of the upper layers
LENGTHS = (3, 5, 5, 1, 8, 5)  # two neighbours of one length


def trunk_of(kind: str, **fields: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES, **fields)
    return AutoModel.from_config(config, attn_implementation="sdpa").eval()


def sequences_of(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(SIZES["vocab_size"], (length,), generator=generator) for length in lengths]


def packed(trunk: PreTrainedModel, sequences: list[Tensor]) -> Tensor:
    packing = packing_of([len(tokens) for tokens in sequences], torch.device("cpu"))
    hidden_1TD: Tensor = trunk(input_ids=torch.cat(sequences)[None], use_cache=False, **packing.arguments()).last_hidden_state
    return hidden_1TD[0]


def one_by_one(trunk: PreTrainedModel, sequences: list[Tensor]) -> Tensor:
    return torch.cat([trunk(input_ids=tokens[None], use_cache=False).last_hidden_state[0] for tokens in sequences])


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 3}),
        ("qwen2", WINDOWS),
        ("qwen3", {"head_dim": 8}),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),  # learned positions
    ],
)
@pytest.mark.parametrize("is_plain", [False, True])
@torch.no_grad()
def test_packed_states_are_those_of_each_sequence_alone(kind: str, fields: dict[str, Any], is_plain: bool) -> None:
    trunk = trunk_of(kind, **fields)
    sequences = sequences_of(*LENGTHS)
    with attention_for("cpu", num_tokens=max(LENGTHS) if is_plain else 10_000):
        expected = one_by_one(trunk, sequences)
        make_packable(trunk)
        assert is_packable(trunk)
        assert_close(packed(trunk, sequences), expected, atol=1e-5, rtol=1e-4)
        assert_close(one_by_one(trunk, sequences), expected, atol=1e-6, rtol=1e-5)  # unpacked rows are what they were


def test_packed_gradients_are_those_of_each_sequence_alone() -> None:
    trunk = trunk_of("llama")
    make_packable(trunk)
    gradients = []
    for run in (one_by_one, packed):
        trunk.zero_grad()
        run(trunk, sequences_of(*LENGTHS)).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in trunk.named_parameters()})
    assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_packed_states_do_not_depend_on_neighbours() -> None:
    trunk = trunk_of("llama")
    make_packable(trunk)
    first, second, third = sequences_of(4, 6, 2)
    assert_close(packed(trunk, [first, second])[:4], packed(trunk, [first, third])[:4], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_under_autocast_attention_runs_in_the_compute_type() -> None:
    """As torch's own attention does, so that packed and padded round alike."""
    trunk = trunk_of("llama")
    make_packable(trunk)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sequences = sequences_of(4, 6)
        assert_close(packed(trunk, sequences), one_by_one(trunk, sequences), atol=2**-6, rtol=2**-6)  # two bits of bfloat16


def test_layers_that_carry_a_state_from_token_to_token_cannot_pack() -> None:
    trunk = trunk_of("qwen3_next", head_dim=8)
    make_packable(trunk)
    assert not is_packable(trunk)


def test_a_trunk_that_drops_what_it_is_told_cannot_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = trunk_of("llama")
    make_packable(trunk)
    layer, told = trunk.layers[1].self_attn, trunk.layers[1].self_attn.forward
    names = ("hidden_states", "position_embeddings", "attention_mask")
    monkeypatch.setattr(layer, "forward", lambda **given: told(**{name: given[name] for name in names}))
    assert not is_packable(trunk)


@pytest.mark.parametrize(("kind", "fields", "window"), [("llama", {}, (-1, 0)), ("mistral", {"sliding_window": 3}, (2, 0))])
@torch.no_grad()
def test_the_kernel_of_a_gpu_is_told_where_sequences_lie(
    monkeypatch: pytest.MonkeyPatch, kind: str, fields: dict[str, Any], window: tuple[int, int]
) -> None:
    """Stood in for by a plain computation, for there is no such kernel on CPU."""
    trunk, sequences = trunk_of(kind, **fields), sequences_of(*LENGTHS)
    expected = one_by_one(trunk, sequences)
    make_packable(trunk)
    asked: list[tuple[Any, ...]] = []

    def kernel(query_THD: Tensor, key_THD: Tensor, value_THD: Tensor, *sizes: Any, scale: float, window_size: Any) -> Tensor:
        starts, of_keys, *longest = sizes
        assert starts.equal(of_keys)
        asked.append((starts.dtype, starts.tolist(), longest, window_size))
        sequence_T = torch.bucketize(torch.arange(len(query_THD)), starts[1:], right=True)
        age_TT = torch.arange(len(query_THD))[:, None] - torch.arange(len(query_THD))
        seen_TT = (sequence_T[:, None] == sequence_T) & (age_TT >= 0)
        seen_TT &= age_TT <= (len(query_THD) if window_size[0] < 0 else window_size[0])
        scores_HTT = torch.einsum("thd,shd->hts", query_THD, key_THD) * scale
        weights_HTT = scores_HTT.masked_fill(~seen_TT, -torch.inf).softmax(-1)
        return torch.einsum("hts,shd->thd", weights_HTT, value_THD)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    monkeypatch.setattr("actors.packing._has_kernel", lambda query: True)
    assert_close(packed(trunk, sequences), expected, atol=1e-5, rtol=1e-4)
    assert asked == [(torch.int32, [0, 3, 8, 13, 14, 22, 27], [8, 8], window)] * SIZES["num_hidden_layers"]
