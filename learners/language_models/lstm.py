"""A language model that is a long short-term memory. Hochreiter and Schmidhuber 1997, Neural Computation 9(8).

Shapes: B texts, T tokens, D hidden units, V vocabulary. The embedding is also the output layer: arXiv:1608.05859.
"""

import torch
from torch import Tensor, nn

from learners.language_models.language_model import LanguageModel, Vocabulary
from learners.settings.language_model.network import LSTMConfig

EMBEDDING_STD = 0.02


class LSTMLanguageModel(LanguageModel):
    """Reads a text from left to right, from a state of zeros."""

    def __init__(self, config: LSTMConfig, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary, hidden_size=config.hidden_size)
        self.config = config
        self.embedding = nn.Embedding(vocabulary.size, config.hidden_size)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        self.lstm = nn.LSTM(config.hidden_size, config.hidden_size, num_layers=config.num_layers, batch_first=True)
        self.output_bias = nn.Parameter(torch.zeros(vocabulary.size))

    @property
    def max_tokens(self) -> None:
        return None

    def hidden_states(self, ids_BT: Tensor) -> Tensor:
        hidden_BTD: Tensor = self.lstm(self.embedding(ids_BT))[0]
        return hidden_BTD

    def logits(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.embedding.weight, self.output_bias)
