"""Settings of pretraining: a language model of one's own, by maximum likelihood on a text."""

from typing import Literal, Self

from pydantic import Field, model_validator

from cluster.config import StrictConfig
from learners.settings.every_run import RunConfig
from learners.settings.language_model.network import LanguageModelConfig, TransformerConfig


class TextConfig(StrictConfig):
    """The text to learn, as bytes of UTF-8."""

    path: str = Field(min_length=1)
    """A text file."""
    end_after: Literal["paragraph", "line", "file"] = "paragraph"
    """What ends with the end-of-sequence token, so that the model learns to end. Paragraphs have an empty line between them."""
    held_out_frac: float = Field(0.1, gt=0, lt=1)
    """The end of the text, which is not trained on: perplexity is that of this part."""


class PretrainingLearnerConfig(StrictConfig):
    """Maximum likelihood with AdamW. The learning rate falls to zero along a line."""

    algorithm: Literal["pretrain"]
    network: LanguageModelConfig
    num_steps: int = Field(1000, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(16, ge=1)
    """Windows of the text in a step, each from a random place."""
    context_tokens: int = Field(128, ge=2)
    """Length of a window."""
    learning_rate: float = Field(3e-3, gt=0, lt=1)
    """Of the first step."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled. arXiv:1711.05101."""
    max_grad_norm: float = Field(1.0, gt=0)
    """A longer gradient, in L2 norm over all parameters, is scaled down to it."""
    num_threads: int = Field(1, ge=1)
    """Torch threads. One is faster for small networks, much so beside other work."""

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        network = self.network
        if isinstance(network, TransformerConfig) and self.context_tokens > network.max_position_embeddings:
            raise ValueError(
                f"context_tokens={self.context_tokens} is more than network.max_position_embeddings="
                f"{network.max_position_embeddings}; lower it"
            )
        return self


class PretrainingRunConfig(RunConfig):
    """`rayward train` with learner.algorithm = pretrain. One process, without Ray."""

    text: TextConfig
    learner: PretrainingLearnerConfig
