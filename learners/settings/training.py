"""Settings that learners share, and those of the reward-model learner."""

from typing import Literal

from pydantic import Field, field_validator

from actors.config import DType, fast_dtype
from cluster.config import StrictConfig


class OptimizerConfig(StrictConfig):
    """AdamW with linear warm-up, then constant or linear decay."""

    learning_rate: float = Field(1e-5, gt=0, lt=1)
    """After the warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled from the gradient. arXiv:1711.05101."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the first and second moments."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the learning rate rises from zero."""
    decay: Literal["constant", "linear"] = "constant"
    """linear: falls to a tenth of the learning rate at the last step."""
    max_grad_norm: float = Field(1.0, gt=0)
    """A longer gradient, in L2 norm over all parameters, is scaled down to it."""


class WorkerConfig(StrictConfig):
    """The processes of a Ray Train group."""

    num_workers: int = Field(1, ge=1)
    """Data-parallel ranks. The update does not depend on it."""
    num_cpus: float = Field(0.5, ge=0)
    """CPUs that Ray reserves for each rank."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs of each rank; a fraction shares a device, 0 is the CPU."""
    max_restarts: int = Field(3, ge=0)
    """Times that lost ranks are replaced, each time going on from the newest checkpoint; after that the run ends."""
    num_threads: int = Field(2, ge=1)
    """Torch threads of a rank on CPU."""
    compute_dtype: DType = Field(default_factory=fast_dtype)
    """Type of the matrix products; master weights, gradients and losses stay in float32. float16 is refused. The default is
    bfloat16 on a GPU and on a CPU with instructions for it, else float32."""
    micro_batch_tokens: int = Field(4096, ge=1)
    """Padded tokens in one forward pass; bounds memory, never changes the update."""
    logprob_chunk_tokens: int = Field(512, ge=1)
    """Completion positions whose logits exist at one time."""

    @field_validator("compute_dtype")
    @classmethod
    def _small_gradients_survive(cls, compute_dtype: DType) -> DType:
        if compute_dtype == "float16":
            raise ValueError(
                "float16 turns gradients below 6e-8 into zeros, and learners do not scale the loss; use bfloat16 or float32"
            )
        return compute_dtype
