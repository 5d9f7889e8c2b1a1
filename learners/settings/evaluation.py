"""Settings of an evaluation: on how much, by which judges besides the scorers, and what is asked of the trained policy."""

from pydantic import Field, field_validator

from actors.config import RewardFunctionName
from cluster.config import StrictConfig


class JudgeConfig(StrictConfig):
    """A reward function that judges evaluated completions. Nothing is trained against it."""

    function: RewardFunctionName
    """The reward function."""
    title: str = ""
    """Its name in reports; empty is the function's."""
    share_above: float | None = None
    """Report the share of completions that are judged above this, too; None does not."""
    share_title: str = ""
    """What that share is called in reports."""

    @property
    def shown(self) -> str:
        return self.title or self.function


class VerdictConfig(StrictConfig):
    """What is asked of the trained policy, compared with the start. Reports show each as passed or not; None is not asked."""

    min_score_gain_in_starting_std: float | None = Field(0.5, ge=0)
    """Of the mean score, in standard deviations of the scores before training."""
    min_score_gain_in_standard_errors: float | None = Field(2.0, ge=0)
    """Of the mean score; 2 is about 95 % sure that the gain is not chance."""
    judges_agree: bool = True
    """Each judge's mean rises, too."""
    max_kl_nats_per_completion: float | None = Field(20.0, gt=0)
    """KL to the start, summed over the tokens of a completion."""
    min_distinct_2_kept_frac: float | None = Field(None, gt=0)
    """Share of the distinct word bigrams that is still there."""
    max_length_change_frac: float | None = Field(None, gt=0)
    """Of the mean length in tokens, in either direction."""


class EvaluationConfig(StrictConfig):
    """Evaluation before and after, and on the way, on prompts that are not trained on."""

    every_num_steps: int = Field(0, ge=0)
    """Also after every so many steps, as points of the reward curve; 0 is never."""
    num_prompts: int = Field(64, ge=1)
    """Held-out prompts, the same in every evaluation of a run."""
    samples_per_prompt: int = Field(1, ge=1)
    """Completions of each of them."""
    num_shown: int = Field(8, ge=1)
    """Prompts whose samples stand side by side in the report."""
    judges: tuple[JudgeConfig, ...] = ()
    """Second opinions: a policy that fools its scorer shows itself there."""
    verdicts: VerdictConfig = VerdictConfig()

    @field_validator("judges")
    @classmethod
    def _judges_differ(cls, judges: tuple[JudgeConfig, ...]) -> tuple[JudgeConfig, ...]:
        names = [judge.function for judge in judges]
        if len(set(names)) < len(names):
            raise ValueError(f"two judges use the same function: {names}; name each function once")
        return judges
