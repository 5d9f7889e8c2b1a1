"""Settings of the reward-model learner."""

from typing import Literal

from pydantic import Field

from cluster.config import StrictConfig
from learners.settings.training import LoRAConfig, OptimizerConfig, WorkerConfig


class RewardModelLearnerConfig(StrictConfig):
    """Bradley-Terry on human preferences. A batch is scored once and every pair in it compared (arXiv:2203.02155, 3.5)."""

    algorithm: Literal["reward_model"] = "reward_model"
    batch_size: int = Field(64, ge=2)
    """Texts per optimizer step, over all ranks."""
    num_epochs: float = Field(1.0, gt=0)
    """Passes over the training texts; 0.5 sees half of them."""
    min_rating_gap: float = Field(0.5, ge=0)
    """Pairs whose mean ratings are closer than this are not compared; unit of the ratings."""
    num_layers: int | None = Field(None, ge=1)
    """Lowest transformer layers of the start that become the reward model; None is all. Fewer train and score faster."""
    num_frozen_layers: int = Field(0, ge=0)
    """Lowest transformer layers (with the embeddings) that keep their weights; saves their backward pass."""
    lora: LoRAConfig | None = None
    """Set, an adapter is trained in the place of the trunk's weights, and merged into them at the end; the head is trained whole.
    With num_frozen_layers, the lowest layers have no adapter."""
    checkpoint_every_num_steps: int = Field(50, ge=1)
    """A lost process or a killed run costs so many steps at most."""
    max_tokens: int = Field(64, ge=2)
    """Texts are cut to this many tokens."""
    num_eval_pairs: int = Field(2000, ge=1)
    """Held-out pairs for the accuracy."""
    optimizer: OptimizerConfig = OptimizerConfig()
    head_learning_rate: float = Field(5e-4, gt=0, lt=1)
    """Learning rate of the scalar head, which starts at zero; the optimizer's is the trunk's."""
    workers: WorkerConfig = WorkerConfig()
