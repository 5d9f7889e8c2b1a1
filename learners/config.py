"""Settings of what turns judged text into new weights, and of whole runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from actors.config import DType, GeneratorConfig, RewardModelScorerConfig, SamplingConfig, ScorerConfig, TaskConfig
from cluster.config import StrictConfig, parse_config, read_yaml
from cluster.errors import ConfigError

RUN_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class OptimizerConfig(StrictConfig):
    """AdamW with linear warm-up, then constant or linear decay."""

    learning_rate: float = Field(1e-5, gt=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the learning rate rises from zero."""
    decay: Literal["constant", "linear"] = "constant"
    """linear: falls to a tenth of the learning rate at the last step."""
    max_grad_norm: float = Field(1.0, gt=0)


class WorkerConfig(StrictConfig):
    """The processes of a Ray Train group."""

    num_workers: int = Field(1, ge=1)
    """Data-parallel ranks. The update does not depend on it."""
    num_cpus: float = Field(0.5, ge=0)
    """CPUs that Ray reserves for each rank."""
    num_gpus: float = Field(0.0, ge=0)
    num_threads: int = Field(2, ge=1)
    """Torch threads of a rank on CPU."""
    compute_dtype: DType = "bfloat16"
    """Type of the matrix products; master weights, gradients and losses stay in float32."""
    micro_batch_tokens: int = Field(4096, ge=1)
    """Padded tokens in one forward pass; bounds memory, never changes the update."""
    logprob_chunk_tokens: int = Field(512, ge=1)
    """Completion positions whose logits exist at one time."""


class PPOConfig(StrictConfig):
    """Proximal policy optimisation, arXiv:1707.06347, with the reward shaping of arXiv:1909.08593."""

    algorithm: Literal["ppo"] = "ppo"
    num_steps: int = Field(ge=1)
    """Rounds of rollout and update."""
    prompts_per_step: int = Field(ge=1)
    num_epochs: int = Field(1, ge=1)
    """Passes over a batch of rollouts."""
    minibatch_size: int = Field(ge=1)
    """Trajectories per optimizer step, over all ranks."""
    num_frozen_layers: int = Field(0, ge=0)
    """Lowest transformer layers (with the embeddings, and a head tied to them) that keep their weights: saves their backward
    pass and optimizer state."""
    optimizer: OptimizerConfig = OptimizerConfig()
    critic: Literal["value_head", "own_model"] = "value_head"
    """value_head: a linear head on the policy's trunk. own_model: a second trunk that starts from `critic_model`."""
    critic_model: str | None = None
    """Start of critic=own_model; None is the policy's own start."""
    value_learning_rate: float = Field(1e-4, gt=0, lt=1)
    """Learning rate of the value head; an own critic trunk uses the optimizer's."""
    clip_eps: float = Field(0.2, gt=0, lt=1)
    """Half-width of the trust region on the probability ratio. arXiv:1707.06347, table 1."""
    value_clip_eps: float = Field(0.2, gt=0)
    value_coef: float = Field(0.1, ge=0)
    """Weight of the value loss, which has the factor 1/2 inside. arXiv:1909.08593, code."""
    entropy_coef: float = Field(0.0, ge=0)
    gamma: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    kl_coef: float = Field(0.05, ge=0)
    """Reward per nat of log(policy/reference), per token (k1)."""
    whiten_advantages: bool = True
    truncation: Literal["bootstrap", "terminal", "penalty"] = "bootstrap"
    """A completion cut at the length limit. bootstrap: the critic's value of its last state follows. terminal: nothing
    follows. penalty: nothing follows and its score is `truncation_score`."""
    truncation_score: float = 0.0
    mismatch_correction: Literal["none", "token"] = "token"
    """token: the loss is weighted by min(exp(old - rollout log-prob), mismatch_cap), detached."""
    mismatch_cap: float = Field(2.0, ge=1)
    max_logprob_mismatch: float = Field(0.1, gt=0)
    """Start-up check: mean absolute difference, in nats, between engine and learner on fixed tokens."""
    workers: WorkerConfig = WorkerConfig()

    @model_validator(mode="after")
    def _own_critic_has_a_start(self) -> Self:
        if self.critic == "value_head" and self.critic_model is not None:
            raise ValueError(f"critic_model={self.critic_model!r} has no meaning with critic=value_head; set critic=own_model")
        return self


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
    max_tokens: int = Field(64, ge=2)
    """Texts are cut to this many tokens."""
    num_eval_pairs: int = Field(2000, ge=1)
    """Held-out pairs for the accuracy."""
    optimizer: OptimizerConfig = OptimizerConfig()
    head_learning_rate: float = Field(5e-4, gt=0, lt=1)
    """Learning rate of the scalar head, which starts at zero; the optimizer's is the trunk's."""
    workers: WorkerConfig = WorkerConfig()


class EvaluationConfig(StrictConfig):
    """Evaluation before and after, on prompts that are not trained on."""

    num_prompts: int = Field(64, ge=1)
    samples_per_prompt: int = Field(1, ge=1)
    num_shown: int = Field(8, ge=1)
    """Prompts whose samples stand side by side in the report."""


class RunConfig(StrictConfig):
    """What every run has."""

    name: str = Field(pattern=RUN_NAME_PATTERN)
    """Name of the run directory."""
    runs_dir: str = "runs"
    seed: int = Field(0, ge=0)
    model: str
    """smollm2-135m-instruct, tiny, a Hugging Face folder, or a hub name."""
    dashboard: bool = False
    """Ray's dashboard on loopback while the run lasts; its nine processes take CPU and memory from a small machine."""


class RewardModelRunConfig(RunConfig):
    """`rayward train` with learner.algorithm = reward_model."""

    data: Literal["movie_reviews"] = "movie_reviews"
    learner: RewardModelLearnerConfig


class PPORunConfig(RunConfig):
    """`rayward train` with learner.algorithm = ppo."""

    task: TaskConfig
    sampling: SamplingConfig = SamplingConfig()
    generator: GeneratorConfig = GeneratorConfig()
    scorers: tuple[ScorerConfig, ...] = Field(min_length=1)
    learner: PPOConfig
    evaluation: EvaluationConfig = EvaluationConfig()

    @field_validator("scorers")
    @classmethod
    def _scorer_names_differ(cls, scorers: tuple[ScorerConfig, ...]) -> tuple[ScorerConfig, ...]:
        names = [scorer.name for scorer in scorers]
        if len(set(names)) < len(names):
            raise ValueError(f"two scorers share a name: {names}; the reward breakdown needs one name each")
        return scorers

    @model_validator(mode="after")
    def _weights_reach_the_generators(self) -> Self:
        backend, learner, generator = self.generator.weight_transfer, self.learner.workers.num_gpus, self.generator.num_gpus
        if backend == "nccl" and min(learner, generator) < 1:
            raise ValueError(
                f"generator.weight_transfer=nccl needs whole GPUs on both sides, but learner.workers.num_gpus={learner:g} and "
                f"generator.num_gpus={generator:g}; use ipc on a shared GPU, shm without one"
            )
        if backend == "ipc" and not (0 < learner < 1 and 0 < generator < 1):
            raise ValueError(
                f"generator.weight_transfer=ipc needs a GPU that both sides share, but learner.workers.num_gpus={learner:g} and "
                f"generator.num_gpus={generator:g}; give each a fraction, or use nccl"
            )
        return self

    @model_validator(mode="after")
    def _batches_tile_and_fit(self) -> Self:
        batch = self.learner.prompts_per_step * self.sampling.samples_per_prompt
        problems = []
        if batch % self.learner.minibatch_size:
            problems.append(
                f"learner.minibatch_size={self.learner.minibatch_size} must divide the batch of {batch} trajectories "
                f"({self.learner.prompts_per_step} prompts x {self.sampling.samples_per_prompt} samples)"
            )
        if self.learner.minibatch_size < self.learner.workers.num_workers:
            problems.append(
                f"learner.minibatch_size={self.learner.minibatch_size} leaves some of the "
                f"{self.learner.workers.num_workers} workers without a trajectory; raise it"
            )
        longest = self.task.max_prompt_tokens + self.sampling.max_completion_tokens
        if longest > self.generator.max_model_tokens:
            problems.append(
                f"generator.max_model_tokens={self.generator.max_model_tokens} is less than the longest sequence, {longest} "
                f"({self.task.max_prompt_tokens} prompt + {self.sampling.max_completion_tokens} completion); raise it"
            )
        if longest > self.learner.workers.micro_batch_tokens:
            problems.append(
                f"learner.workers.micro_batch_tokens={self.learner.workers.micro_batch_tokens} is less than one sequence, "
                f"{longest}; raise it"
            )
        if self.sampling.temperature == 0:
            problems.append("sampling.temperature=0 gives every sample the same text; PPO needs a temperature above 0")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class QuickstartConfig(RunConfig):
    """The embedded main job: a reward model from people's judgements, then PPO against it, in one run directory."""

    reward_model: RewardModelLearnerConfig
    scorer: RewardModelScorerConfig
    task: TaskConfig
    sampling: SamplingConfig = SamplingConfig()
    generator: GeneratorConfig = GeneratorConfig()
    learner: PPOConfig
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _policy_run_is_valid(self) -> Self:
        self.policy_run()
        return self

    def policy_run(self) -> PPORunConfig:
        """The second stage as a run of its own."""
        return PPORunConfig(
            name=self.name,
            runs_dir=self.runs_dir,
            seed=self.seed,
            model=self.model,
            dashboard=self.dashboard,
            task=self.task,
            sampling=self.sampling,
            generator=self.generator,
            scorers=(self.scorer,),
            learner=self.learner,
            evaluation=self.evaluation,
        )


TrainingRunConfig = PPORunConfig | RewardModelRunConfig

_RUN_CONFIGS: dict[str, type[PPORunConfig] | type[RewardModelRunConfig]] = {
    "ppo": PPORunConfig,
    "reward_model": RewardModelRunConfig,
}


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> TrainingRunConfig:
    """Read a run's file; `learner.algorithm` says which settings it may hold. Raises `ConfigError` with every problem."""
    values = read_yaml(path, overrides)
    learner = values.get("learner")
    algorithm = learner.get("algorithm") if isinstance(learner, dict) else None
    if algorithm not in _RUN_CONFIGS:
        raise ConfigError(f"{path}: learner.algorithm: must be one of {', '.join(sorted(_RUN_CONFIGS))} (got {algorithm!r})")
    return parse_config(_RUN_CONFIGS[algorithm], values, source=str(path))
