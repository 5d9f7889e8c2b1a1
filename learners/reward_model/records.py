"""What a reward model is trained on, and what comes of it. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from cluster.errors import DataError
from learners.ranks.mailbox import CheckpointPlan
from learners.settings.reward_model import RewardModelLearnerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedTexts:
    """Texts that people graded. Produced by `learners.run`, consumed by `RewardModelLearner`."""

    token_ids: tuple[tuple[int, ...], ...]  # by `actors.scoring.reward_head.encode_texts`
    ratings: tuple[float, ...]  # mean over people, any unit

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.ratings):
            raise DataError(f"{len(self.token_ids)} texts but {len(self.ratings)} ratings; give one mean rating a text")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedTexts:
    """Held-out texts with their comparisons. Produced by `learners.run`, consumed by `RewardModelLearner`."""

    token_ids: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[int, int], ...]  # (better, worse) places in `token_ids`

    def __post_init__(self) -> None:
        if not self.pairs:
            raise DataError("no held-out pairs to measure a reward model's accuracy on; give at least one")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelJob:
    """All that the ranks need. Produced by `learners.run`, consumed by `train_reward_model`."""

    model_path: str  # Hugging Face folder whose trunk is the start
    train: RatedTexts
    held_out: ComparedTexts
    config: RewardModelLearnerConfig
    seed: int
    output_dir: Path  # must not exist; a Hugging Face folder afterwards
    checkpoints: CheckpointPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelResult:
    """What came of a training. Produced by rank 0, consumed by `learners.run`."""

    accuracy: float  # share of held-out pairs in the order of their ratings, 0..1
    num_pairs: int
    num_steps: int
    num_texts: int  # trained on, each pass counted
    train_s: float
    evaluate_s: float
