"""Settings of what turns judged text into new weights, and of whole runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from actors.config import (
    PythonScorerConfig,
    RunningRequests,
    SamplingConfig,
    SupervisionConfig,
    TaskConfig,
)
from cluster.config import StrictConfig, load_config, parse_config, read_yaml
from cluster.errors import ConfigError
from cluster.storage.run_directory import CONFIG_NAME
from learners.settings.environments.rllib import EnvStepCheckpointConfig, RLlibLearnerConfig
from learners.settings.environments.tabular import (
    EpisodeCheckpointConfig,
    EpisodicLearnerConfig,
    MonteCarloLearnerConfig,
    PlanningLearnerConfig,
    TabularReinforceLearnerConfig,
    TemporalDifferenceLearnerConfig,
)
from learners.settings.environments.task import EpisodeEvaluationConfig, GymnasiumTaskConfig, RLlibEvaluationConfig
from learners.settings.evaluation import EvaluationConfig
from learners.settings.every_run import ModelRunConfig, RayRunConfig, RunConfig
from learners.settings.generators import GeneratorsConfig, sharing_problems
from learners.settings.language_model.pretraining import PretrainingLearnerConfig, PretrainingRunConfig
from learners.settings.language_model.tokens import TokenRunConfig
from learners.settings.policy import GROUP_ESTIMATORS, PolicyLearnerConfig
from learners.settings.presets import Algorithm
from learners.settings.reward_model import RewardModelLearnerConfig
from learners.settings.scorers import ScorerConfigs
from learners.settings.training import ExportedWeights


class CheckpointConfig(StrictConfig):
    """Checkpoints of the learner, written while training goes on; the last step is always kept."""

    every_num_steps: int = Field(5, ge=1)
    """A lost process or a killed run costs so many steps at most."""
    keep: int = Field(2, ge=1)
    """Older ones are removed. One takes 16 bytes a trained parameter."""


class ExportConfig(StrictConfig):
    """Policies as folders that can be served, `policies/v*`; the last one is always written."""

    every_num_steps: int = Field(0, ge=0)
    """Also after every so many steps, while training goes on, for an endpoint that follows the run; 0 is never."""
    keep: int = Field(3, ge=2)
    """Older ones are removed. At least 2: an endpoint may be reading one while the next is written."""
    weights: ExportedWeights = "merged"
    """Of a policy that is learned with `learner.lora`. merged: whole, as those of any other policy. adapter: the adapter alone,
    as peft writes it, which names the folder of the model that it belongs to."""


class RewardModelRunConfig(ModelRunConfig):
    """`rayward train` with learner.algorithm = reward_model."""

    data: Literal["movie_reviews"] = "movie_reviews"
    """The ratings that the reward model learns from."""
    learner: RewardModelLearnerConfig


class AsynchronousConfig(StrictConfig):
    """Rollouts that do not wait for the learner, nor the learner for the longest of them."""

    max_staleness: int = Field(1, ge=0)
    """Publications by which the weights that sampled a token may be older than those that learn from it. So many steps' prompts
    are with the generators ahead of the step that is learned; 0 gives the update of a synchronous run."""
    running_requests: RunningRequests = "keep"
    """What becomes of completions in progress when new weights come. keep: they rest and go on with the new weights. finish: the
    publication waits for them."""


class PolicyStageConfig(GeneratorsConfig):
    """All that aligns a policy, but for what every run has."""

    task: TaskConfig
    sampling: SamplingConfig = SamplingConfig()
    scorers: ScorerConfigs
    learner: PolicyLearnerConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    export: ExportConfig = ExportConfig()
    asynchronous: AsynchronousConfig | None = None
    """Set, generators work while the learner does; unset, each waits for the other. Tokens are then older than the weights that
    learn from them, which `learner.algorithm=decoupled_ppo` or another importance weight (`learner.mismatch`) accounts for."""
    extra_prompts_per_step: int = Field(0, ge=0)
    """Prompts asked besides the `learner.prompts_per_step` of a step. The step takes those whose completions are all there first;
    the rest are cut, so that no step waits for the longest. What was cut is in the ledger and in `rollout/cut_prompts`. Such a
    batch has fewer long completions than the policy writes, and a run that is repeated may cut others."""
    supervision: SupervisionConfig = SupervisionConfig()
    max_unscored_frac: float = Field(0.2, ge=0, le=1)
    """Trajectories without a score are left out of a step; above this share the run ends. Whether a scorer could not judge them
    or their requests failed in the engine is all one to the update, which learns from what is left."""

    @property
    def num_adapters(self) -> int:
        """With learner.lora, of which an engine holds adapters: the newest, its successor, and those of older completions."""
        return 2 + (0 if self.asynchronous is None else self.asynchronous.max_staleness)

    @model_validator(mode="after")
    def _weights_reach_the_generators(self) -> Self:
        sharding = self.learner.workers.sharding
        if sharding != "none" and self.generator.weight_transfer != "shm":
            raise ValueError(
                f"generator.weight_transfer={self.generator.weight_transfer} sends a whole policy from a learner rank's device, "
                f"but learner.workers.sharding={sharding} leaves none with all of it; use shm"
            )
        backend, learner = self.generator.weight_transfer, self.learner.workers.num_gpus
        generator = min(kind.num_gpus for kind in self.generator_kinds)
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
    def _roles_can_take_turns(self) -> Self:
        problems = []
        if self.placement == "separate" and self.generator.sleep_level is not None:
            problems.append(f"generator.sleep_level={self.generator.sleep_level} is for placement=shared; take it out")
        if self.placement == "shared":
            problems += sharing_problems(self.generator_kinds, self.learner, self.scorers)
            if self.asynchronous is not None:
                problems.append("placement=shared does not go with asynchronous, whose generators work while the learner does")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _adapters_travel_and_are_kept(self) -> Self:
        transfer, exported = self.generator.weight_transfer, self.export
        problems = []
        if self.learner.lora is not None and transfer != "shm":
            problems.append(
                f"generator.weight_transfer={transfer} sends all weights of a policy over devices, but learner.lora publishes "
                "an adapter, which engines load from a folder; use shm"
            )
        if self.learner.lora is None and exported.weights == "adapter":
            problems.append("export.weights=adapter needs an adapter, but learner.lora is not set; use merged")
        if exported.weights == "adapter" and exported.every_num_steps:
            problems.append(
                f"export.every_num_steps={exported.every_num_steps} is for endpoints that follow a run, whose engines take whole "
                "weights only; set export.weights=merged, or export.every_num_steps=0"
            )
        if problems:
            raise ValueError("; ".join(problems))
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
        for section, kind in zip(self.generator_sections, self.generator_kinds, strict=True):
            if longest > kind.max_model_tokens:
                problems.append(
                    f"{section}.max_model_tokens={kind.max_model_tokens} is less than the longest sequence, {longest} "
                    f"({self.task.max_prompt_tokens} prompt + {self.sampling.max_completion_tokens} completion); raise it"
                )
        if longest > self.learner.workers.micro_batch_tokens:
            problems.append(
                f"learner.workers.micro_batch_tokens={self.learner.workers.micro_batch_tokens} is less than one sequence, "
                f"{longest}; raise it"
            )
        if self.sampling.temperature == 0:
            problems.append("sampling.temperature=0 gives every sample the same text; learning needs a temperature above 0")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _the_method_knows_of_older_weights(self) -> Self:
        if self.asynchronous is None:
            return self
        learner, problems = self.learner, []
        if learner.advantage.estimator == "remax":
            problems.append(
                "learner.advantage.estimator=remax compares with a greedy completion of the same weights, which asynchronous "
                "rollouts do not have; use another, or take `asynchronous` out"
            )
        if learner.group_filter.enabled:
            problems.append(
                "learner.group_filter asks for further prompts while a step waits, which asynchronous rollouts never do; set "
                "learner.group_filter.enabled=false, or take `asynchronous` out"
            )
        if (
            self.asynchronous.max_staleness
            and learner.mismatch.correction == "none"
            and learner.mismatch.old_logprobs == "learner"
        ):
            problems.append(
                "learner.mismatch.correction=none takes tokens of older weights for the learner's own; set "
                "learner.algorithm=decoupled_ppo, another correction, or asynchronous.max_staleness=0"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _extra_prompts_are_for_a_plain_step(self) -> Self:
        if not self.extra_prompts_per_step:
            return self
        others = {
            "asynchronous": self.asynchronous is not None,  # no step waits for its longest completion there
            "learner.group_filter.enabled=true": self.learner.group_filter.enabled,
            "learner.advantage.estimator=remax": self.learner.advantage.estimator == "remax",
        }
        for other in [name for name, is_set in others.items() if is_set]:
            raise ValueError(
                f"extra_prompts_per_step={self.extra_prompts_per_step} does not go with {other}, which asks for a step's "
                "prompts in its own way; set extra_prompts_per_step=0, or take the other out"
            )
        return self

    @model_validator(mode="after")
    def _the_method_has_what_it_compares(self) -> Self:
        learner, samples = self.learner, self.sampling.samples_per_prompt
        problems = []
        if learner.advantage.estimator in GROUP_ESTIMATORS and samples == 1:
            problems.append(
                f"learner.advantage.estimator={learner.advantage.estimator} compares the completions of one prompt, but "
                "sampling.samples_per_prompt=1; raise it"
            )
        if learner.group_filter.enabled and samples == 1:
            problems.append(
                "learner.group_filter looks for prompts whose completions differ in score, but sampling.samples_per_prompt=1; "
                "raise it, or set learner.group_filter.enabled=false"
            )
        whole = [scorer.name for scorer in self.scorers if not isinstance(scorer, PythonScorerConfig)]
        if learner.reward.truncation == "bootstrap" and whole:
            problems.append(
                f"learner.reward.truncation=bootstrap needs scores of single steps, but the scorers {', '.join(whole)} judge a "
                "completion as a whole: the critic's value of what follows a cut would count that score again; use terminal"
            )
        batch = learner.prompts_per_step * samples
        if learner.policy_loss.kind == "policy_gradient" and learner.minibatch_size != batch:
            problems.append(
                f"learner.policy_loss.kind=policy_gradient has no ratio to old weights, so learner.minibatch_size="
                f"{learner.minibatch_size} of a batch of {batch} would be biased; set it to {batch}, or use ppo_clip"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


class PolicyRunConfig(ModelRunConfig, PolicyStageConfig):
    """`rayward train` with one of the policy-gradient algorithms."""


class QuickstartConfig(ModelRunConfig):
    """The embedded main job: a reward model from people's judgements, then PPO against it, in one run directory."""

    reward_model: RewardModelLearnerConfig
    policy: PolicyStageConfig
    """A scorer of kind reward_model whose `model` is "reward_model" is the one that the first stage trains."""

    def policy_run(self) -> PolicyRunConfig:
        """The second stage as a run of its own."""
        of_the_run = {name: getattr(self, name) for name in ModelRunConfig.model_fields}
        return PolicyRunConfig(**of_the_run, **dict(self.policy))


class PlanningRunConfig(RunConfig):
    """`rayward train` with value or policy iteration."""

    task: GymnasiumTaskConfig
    learner: PlanningLearnerConfig
    evaluation: EpisodeEvaluationConfig = EpisodeEvaluationConfig()


class TabularRunConfig(RunConfig):
    """`rayward train` with a method that learns a table from episodes."""

    task: GymnasiumTaskConfig
    learner: EpisodicLearnerConfig
    evaluation: EpisodeEvaluationConfig = EpisodeEvaluationConfig()
    checkpoint: EpisodeCheckpointConfig = EpisodeCheckpointConfig()


class RLlibRunConfig(RayRunConfig):
    """`rayward train` with one of RLlib's algorithms."""

    task: GymnasiumTaskConfig
    learner: Annotated[RLlibLearnerConfig, Field(discriminator="algorithm")]
    evaluation: RLlibEvaluationConfig = RLlibEvaluationConfig()
    checkpoint: EnvStepCheckpointConfig = EnvStepCheckpointConfig()


LanguageModelRunConfig = PolicyRunConfig | RewardModelRunConfig
EnvironmentRunConfig = PlanningRunConfig | TabularRunConfig | RLlibRunConfig
TrainingRunConfig = LanguageModelRunConfig | EnvironmentRunConfig | PretrainingRunConfig | TokenRunConfig


def _algorithms_of(*learners: type[StrictConfig]) -> list[str]:
    return [name for learner in learners for name in get_args(learner.model_fields["algorithm"].annotation)]


_RUN_CONFIGS: dict[str, type[TrainingRunConfig]] = {
    **dict.fromkeys(get_args(Algorithm), PolicyRunConfig),
    "reward_model": RewardModelRunConfig,
    **dict.fromkeys(_algorithms_of(PretrainingLearnerConfig), PretrainingRunConfig),
    **dict.fromkeys(_algorithms_of(PlanningLearnerConfig), PlanningRunConfig),
    **dict.fromkeys(
        _algorithms_of(MonteCarloLearnerConfig, TemporalDifferenceLearnerConfig, TabularReinforceLearnerConfig), TabularRunConfig
    ),
    **dict.fromkeys(_algorithms_of(*get_args(RLlibLearnerConfig)), RLlibRunConfig),
}


def load_resolved_config(run: Path, overrides: Sequence[str] = ()) -> "TrainingRunConfig | QuickstartConfig":
    """What a run directory was started with, but for the overrides."""
    return load_any_run_config(run / CONFIG_NAME, overrides)


def load_any_run_config(path: Path, overrides: Sequence[str] = ()) -> "TrainingRunConfig | QuickstartConfig":
    """Of `rayward train` or of the quickstart: its two stages have a section each."""
    if "reward_model" in read_yaml(path):
        return load_config(QuickstartConfig, path, overrides)
    return load_run_config(path, overrides)


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> TrainingRunConfig:
    """Read a run's file; `learner.algorithm` says which settings it may hold. Raises `ConfigError` with every problem."""
    values = read_yaml(path, overrides)
    learner = values.get("learner")
    algorithm = learner.get("algorithm") if isinstance(learner, dict) else None
    if algorithm not in _RUN_CONFIGS:
        raise ConfigError(f"{path}: learner.algorithm: must be one of {', '.join(sorted(_RUN_CONFIGS))} (got {algorithm!r})")
    schema, task = _RUN_CONFIGS[algorithm], values.get("task")
    if schema is RLlibRunConfig and isinstance(task, dict) and task.get("kind") == "tokens":
        schema = TokenRunConfig
    return parse_config(schema, values, source=str(path))
