"""Language models of a few thousand weights, over eight tokens."""

from learners.language_models.files import build_language_model
from learners.language_models.language_model import LanguageModel, Vocabulary
from learners.settings.language_model.network import LanguageModelConfig, LSTMConfig, TransformerConfig

VOCABULARY = Vocabulary(size=8, end_id=6, padding_id=7)
LSTM = LSTMConfig(kind="lstm", hidden_size=16)
TRANSFORMER = TransformerConfig(
    kind="transformer",
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
)


def build(config: LanguageModelConfig, *, seed: int = 0) -> LanguageModel:
    return build_language_model(config, VOCABULARY, seed=seed)
