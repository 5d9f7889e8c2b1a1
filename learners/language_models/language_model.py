"""What every language model of ours can do, and what its tokens are.

Shapes: B texts, T tokens, D hidden units, V vocabulary.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Token ids count from 0. Produced by whoever has the tokenizer, or by `load_language_model`."""

    size: int
    end_id: int  # end of sequence
    padding_id: int


class LanguageModel(nn.Module, ABC):
    """Logits of the next token after each token. What follows a token has no effect on its logits, so padding on the right has
    none either."""

    def __init__(self, vocabulary: Vocabulary, *, hidden_size: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.hidden_size = hidden_size

    def forward(self, ids_BT: Tensor) -> Tensor:
        """logits_BTV."""
        return self.logits(self.hidden_states(ids_BT))

    @abstractmethod
    def hidden_states(self, ids_BT: Tensor) -> Tensor:
        """hidden_BTD, what the output layer reads."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""

    @property
    @abstractmethod
    def max_tokens(self) -> int | None:
        """Longest text; None where there is no limit."""
