"""A reward model at work. Scores have mean 0 and standard deviation 1 over the texts it was trained on."""

from collections.abc import Sequence

from actors.config import RewardModelScorerConfig
from actors.generation.rendering import load_tokenizer
from actors.scoring.reward_head import SCORE_OFFSET, encode_texts, encode_whole_texts, last_token_scores, load_reward_model
from cluster.processes.collector_pause import collector_paused
from cluster.types import Unscored


class RewardModel:
    """Scores texts. Loads its weights and its own tokenizer from `config.model`, a folder."""

    def __init__(self, config: RewardModelScorerConfig) -> None:
        self._config = config
        self.num_batches = 0  # scored
        device = "cuda" if config.num_gpus > 0 else "cpu"
        with collector_paused():
            import torch

            if device == "cpu":
                torch.set_num_threads(config.num_threads)
            self.tokenizer = load_tokenizer(config.model)
            self._model = load_reward_model(config.model, dtype=config.dtype).to(device)
        # Absent from reward models that others trained.
        self._offset = float(self._model.config.to_dict().get(SCORE_OFFSET, 0.0))

    def move_to(self, device: str) -> None:
        """Weights lie there from now on."""
        import torch

        self._model.to(device)
        if device == "cpu" and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def score_texts(self, texts: Sequence[str]) -> list[float | Unscored]:
        """One score a text, in order, or why there is none. It does not depend on the other texts, up to rounding."""
        import torch

        token_ids = self._encoded(texts)
        scores: list[float | Unscored] = [self._too_long(len(ids)) for ids in token_ids]
        readable = [index for index, ids in enumerate(token_ids) if len(ids) <= self._config.max_tokens]
        by_length = sorted(readable, key=lambda index: len(token_ids[index]))  # little padding
        for start in range(0, len(by_length), self._config.batch_size):
            batch = by_length[start : start + self._config.batch_size]
            with torch.inference_mode():
                batch_scores = last_token_scores(self._model, [token_ids[index] for index in batch])
            self.num_batches += 1
            for index, score in zip(batch, batch_scores.tolist(), strict=True):
                scores[index] = score - self._offset
        return scores

    def _encoded(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        if self._config.overlong == "truncate":
            return encode_texts(self.tokenizer, texts, max_tokens=self._config.max_tokens)
        return encode_whole_texts(self.tokenizer, texts)

    def _too_long(self, num_tokens: int) -> Unscored:
        return Unscored(
            problem=f"the text has {num_tokens} tokens, more than max_tokens={self._config.max_tokens} of the scorer "
            f"{self._config.name!r}; raise it, or set overlong=truncate"
        )
