"""Settings of the token environment, and of a run in which RLlib's PPO trains a language model of one's own in it."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from actors.config import SupervisionConfig, TaskConfig
from cluster.config import StrictConfig
from learners.settings.environments.rllib import EnvStepCheckpointConfig, NetworkConfig, RLlibPPOLearnerConfig
from learners.settings.evaluation import EvaluationConfig
from learners.settings.every_run import ModelRunConfig
from learners.settings.scorers import ScorerConfigs


class TokenTaskConfig(StrictConfig):
    """An environment in which an action is a token: a prompt to begin with, and the score of `scorers` when the text ends."""

    kind: Literal["tokens"]
    prompts: TaskConfig
    """The tasks whose prompts begin episodes, drawn at random. Held-out ones are for the evaluation."""
    max_completion_tokens: int = Field(32, ge=1)
    """The episode ends with the end-of-sequence token, or after so many."""

    @property
    def env(self) -> str:
        """What others call it."""
        return f"tokens ({self.prompts.kind})"


class TokenRunConfig(ModelRunConfig):
    """`rayward train` with learner.algorithm = rllib_ppo and task.kind = tokens.

    `model` is the folder of a run with learner.algorithm=pretrain.
    """

    task: TokenTaskConfig
    scorers: ScorerConfigs
    learner: RLlibPPOLearnerConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: EnvStepCheckpointConfig = EnvStepCheckpointConfig()
    supervision: SupervisionConfig = SupervisionConfig()

    @field_validator("learner")
    @classmethod
    def _the_model_is_the_network(cls, learner: RLlibPPOLearnerConfig) -> RLlibPPOLearnerConfig:
        if learner.network != NetworkConfig():
            raise ValueError("network is that of `model` in the token environment; take learner.network out")
        return learner

    @model_validator(mode="after")
    def _evaluated_before_and_after(self) -> Self:
        if self.evaluation.every_num_steps:
            raise ValueError(f"evaluation.every_num_steps={self.evaluation.every_num_steps} is for methods of ours; take it out")
        return self
