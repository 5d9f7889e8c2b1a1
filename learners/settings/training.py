"""Settings that learners share, and those of the reward-model learner."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from actors.config import DType, fast_dtype
from cluster.config import StrictConfig

ExportedWeights = Literal["merged", "adapter"]
Offload = Literal["none", "cpu"]

MAX_KEPT_BYTES = 2**29  # of hidden states above frozen layers, of one batch on one rank


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


class LoRAConfig(StrictConfig):
    """A low-rank adapter on each of some matrices: W + alpha / rank * B A, of which A and B are trained. arXiv:2106.09685."""

    rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = 16
    """Rows of A; one of those that vLLM's engines take."""
    alpha: int = Field(32, ge=1)
    """The product B A counts alpha / rank times."""
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    """Which matrices of a layer have one, by their names in Hugging Face's code; by default all of Llama and its relatives."""


class WorkerConfig(StrictConfig):
    """The processes of a Ray Train group."""

    num_workers: int = Field(1, ge=1)
    """Data-parallel ranks. The update does not depend on it."""
    sharding: Literal["none", "full", "hybrid"] = "none"
    """What of the model each rank holds, with gradients and moments. none: all of it. full: one part in `num_workers`. hybrid:
    one part in `shard_group_size`, and every group of so many ranks holds the whole. The update does not depend on it."""
    shard_group_size: int | None = Field(None, ge=2)
    """Of sharding=hybrid: the ranks that hold one copy of the model between them; the ranks of one host, as a rule."""
    offload: Offload = "none"
    """Of a sharded learner on GPUs, where its parts lie. cpu: weights, gradients and moments in host memory, where the optimizer
    steps; a layer's are copied to the GPU each time it is computed with. The update does not depend on it."""
    num_cpus: float = Field(0.5, ge=0)
    """CPUs that Ray reserves for each rank."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs of each rank; a fraction shares a device, 0 is the CPU."""
    max_restarts: int = Field(3, ge=0)
    """Times that lost ranks are replaced, each time going on from the newest checkpoint; after that the run ends."""
    start_deadline_s: float = Field(900.0, gt=0)
    """Ranks that have not loaded their models after so long are lost, too; a reward model's run ends then. Raise it for models
    that load longer."""
    num_threads: int = Field(2, ge=1)
    """Torch threads of a rank on CPU."""
    compute_dtype: DType = Field(default_factory=fast_dtype)
    """Type of the matrix products; master weights, gradients and losses stay in float32. float16 is refused. The default is
    bfloat16 on a GPU and on a CPU with instructions for it, else float32."""
    micro_batch_tokens: int = Field(4096, ge=1)
    """Tokens in one forward pass, padding included; bounds memory, never changes the update."""
    packing: Literal["auto", "packed", "padded"] = "auto"
    """How the sequences of a forward pass lie. padded: below each other, filled up to the longest. packed: one after the other,
    without padding, and kept apart by attention. auto: packed on a GPU if the architecture can, padded on CPU. The update does
    not depend on it."""
    activation_checkpointing: bool = False
    """Keep what comes into each trained layer only, and compute the rest again in the backward pass: much less memory for a third
    more work, and the same update."""
    logprob_chunk_tokens: int = Field(512, ge=1)
    """Completion positions whose logits exist at one time."""

    @property
    def is_packing_wanted(self) -> bool:
        """Whether forward passes are packed, if the architecture can."""
        return self.packing == "packed" or (self.packing == "auto" and self.num_gpus > 0)

    @property
    def num_shards(self) -> int:
        """Parts that the model is cut into; 1 where each rank holds all of it."""
        match self.sharding:
            case "none":
                return 1
            case "full":
                return self.num_workers
            case "hybrid":
                assert self.shard_group_size is not None, "checked below"
                return self.shard_group_size

    @model_validator(mode="after")
    def _shards_tile_the_ranks(self) -> Self:
        size, num_workers = self.shard_group_size, self.num_workers
        if self.sharding != "none" and num_workers == 1:
            raise ValueError(f"sharding={self.sharding} needs ranks to deal the model to, but num_workers=1; set sharding=none")
        if self.sharding != "hybrid" and size is not None:
            raise ValueError(f"shard_group_size={size} has no meaning with sharding={self.sharding}; set sharding=hybrid")
        if self.sharding == "hybrid" and size is None:
            raise ValueError("sharding=hybrid needs shard_group_size, the ranks that hold one copy of the model between them")
        if size is not None and (num_workers % size or num_workers == size):
            raise ValueError(
                f"shard_group_size={size} must divide num_workers={num_workers} into two groups or more; sharding=full has one "
                "group of all ranks"
            )
        return self

    @model_validator(mode="after")
    def _offload_has_a_device_to_spare(self) -> Self:
        if self.offload == "cpu" and self.num_gpus == 0:
            raise ValueError(
                "offload=cpu moves parts of the model out of GPUs, but the ranks have num_gpus=0 and all of it is on the CPU; "
                "set offload=none"
            )
        if self.offload == "cpu" and self.sharding == "none":
            raise ValueError("offload=cpu moves the parts of a sharded learner, but sharding=none; set sharding=full or hybrid")
        return self

    @field_validator("compute_dtype")
    @classmethod
    def _small_gradients_survive(cls, compute_dtype: DType) -> DType:
        if compute_dtype == "float16":
            raise ValueError(
                "float16 turns gradients below 6e-8 into zeros, and learners do not scale the loss; use bfloat16 or float32"
            )
        return compute_dtype
