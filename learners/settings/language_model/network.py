"""Settings of language models that are written out in PyTorch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cluster.config import StrictConfig


class LSTMConfig(StrictConfig):
    """A long short-term memory, with the embedding as its output layer. Hochreiter and Schmidhuber 1997, Neural Computation 9(8).

    Its folder is for `rllib_ppo` and for sampling; no engine reads it.
    """

    kind: Literal["lstm"]
    hidden_size: int = Field(256, ge=1)
    """Units of each layer, and of the embedding."""
    num_layers: int = Field(1, ge=1)
    """One above the other."""


class TransformerConfig(StrictConfig):
    """A decoder of the shape of Llama (arXiv:2302.13971), whose folder is one of `LlamaForCausalLM`. Keys have the names that
    Llama's config.json gives them. The output layer is the embedding."""

    kind: Literal["transformer"]
    hidden_size: int = Field(128, ge=1)
    """Width of what layers pass on."""
    intermediate_size: int = Field(256, ge=1)
    """Width inside of each feed-forward layer."""
    num_hidden_layers: int = Field(2, ge=1)
    """Of attention and feed-forward network each."""
    num_attention_heads: int = Field(4, ge=1)
    """Each looks at earlier tokens in its own way."""
    num_key_value_heads: int = Field(2, ge=1)
    """Attention heads share their keys and values in so many groups. arXiv:2305.13245."""
    head_dim: int = Field(32, ge=2, multiple_of=2)
    """Width of a head. vLLM has no kernel on CPU for less than 32."""
    max_position_embeddings: int = Field(512, ge=2)
    """Longest text, in tokens."""

    @model_validator(mode="after")
    def _groups_divide_the_heads(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads} must divide num_attention_heads={self.num_attention_heads}"
            )
        return self


LanguageModelConfig = Annotated[LSTMConfig | TransformerConfig, Field(discriminator="kind")]
