"""A language model that is a Transformer decoder of the shape of Llama, arXiv:2302.13971. Its tensors have Llama's names.

Shapes: B texts, T tokens, D hidden units, H heads, G groups of heads that share keys and values, F units of a head, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from learners.language_models.language_model import LanguageModel, Vocabulary
from learners.settings.language_model.network import TransformerConfig

INITIAL_STD = 0.02
NORM_EPS = 1e-6
ROTARY_BASE = 10_000.0  # arXiv:2104.09864, section 3.2.2


class TransformerLanguageModel(LanguageModel):
    """The output layer is the embedding."""

    def __init__(self, config: TransformerConfig, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary, hidden_size=config.hidden_size)
        self.config = config
        self.model = Trunk(config, vocabulary.size)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=INITIAL_STD)

    @property
    def max_tokens(self) -> int:
        return self.config.max_position_embeddings

    def hidden_states(self, ids_BT: Tensor) -> Tensor:
        hidden_BTD: Tensor = self.model(ids_BT)
        return hidden_BTD

    def logits(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self.model.embed_tokens.weight)


class Trunk(nn.Module):
    """Embedding, layers, and a last normalisation."""

    def __init__(self, config: TransformerConfig, vocabulary_size: int) -> None:
        super().__init__()
        self._head_dim = config.head_dim
        self.embed_tokens = nn.Embedding(vocabulary_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=NORM_EPS)

    def forward(self, ids_BT: Tensor) -> Tensor:
        angles_TF = rotary_angles(ids_BT.shape[1], self._head_dim, device=ids_BT.device)
        hidden_BTD = self.embed_tokens(ids_BT)
        for layer in self.layers:
            hidden_BTD = layer(hidden_BTD, angles_TF)
        normed_BTD: Tensor = self.norm(hidden_BTD)
        return normed_BTD


class Layer(nn.Module):
    """Attention and a feed-forward network, each on what is normalised, each added to what came in."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=NORM_EPS)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=NORM_EPS)
        self.mlp = FeedForward(config)

    def forward(self, hidden_BTD: Tensor, angles_TF: Tensor) -> Tensor:
        hidden_BTD = hidden_BTD + self.self_attn(self.input_layernorm(hidden_BTD), angles_TF)
        added_BTD: Tensor = self.mlp(self.post_attention_layernorm(hidden_BTD))
        return hidden_BTD + added_BTD


class Attention(nn.Module):
    """Causal, with rotary positions and grouped keys and values. arXiv:1706.03762, arXiv:2305.13245."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self._head_dim = config.head_dim
        width, shared_width = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, shared_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, shared_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, hidden_BTD: Tensor, angles_TF: Tensor) -> Tensor:
        queries_BHTF = rotated(self._heads(self.q_proj(hidden_BTD)), angles_TF)
        keys_BGTF = rotated(self._heads(self.k_proj(hidden_BTD)), angles_TF)
        values_BGTF = self._heads(self.v_proj(hidden_BTD))
        found_BHTF = scaled_dot_product_attention(queries_BHTF, keys_BGTF, values_BGTF, is_causal=True, enable_gqa=True)
        mixed_BTD: Tensor = self.o_proj(found_BHTF.transpose(1, 2).flatten(2))
        return mixed_BTD

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, self._head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU. arXiv:2002.05202, section 2."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        out_BTD: Tensor = self.down_proj(silu(self.gate_proj(hidden_BTD)) * self.up_proj(hidden_BTD))
        return out_BTD


def rotary_angles(num_tokens: int, head_dim: int, *, device: torch.device) -> Tensor:
    """[T, F] radians by which the pair of unit i and unit i + F/2 turns at each position."""
    frequencies = ROTARY_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angles = torch.arange(num_tokens, dtype=torch.float32, device=device)[:, None] * frequencies
    return torch.cat((angles, angles), dim=-1)


def rotated(units: Tensor, angles_TF: Tensor) -> Tensor:
    """[..., T, F]. arXiv:2104.09864, eq. 34, on halves in the place of neighbours, as Llama's folders have it."""
    first, second = units.chunk(2, dim=-1)
    return units * angles_TF.cos() + torch.cat((-second, first), dim=-1) * angles_TF.sin()
