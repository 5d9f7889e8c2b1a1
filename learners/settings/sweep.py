"""Settings of a sweep: many runs of one configuration that differ in a few settings."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from learners.settings.every_run import RayRunConfig

OWN_KEYS = ("name", "runs_dir")  # of a trial; the sweep sets them


class SweepConfig(RayRunConfig):
    """`rayward sweep`, as its options say it. Each trial is a run of its own inside the sweep's directory."""

    source: str
    """The file whose configuration is swept, as it was named."""
    overrides: tuple[str, ...] = ()
    """`a.b=c`, the same in every trial."""
    training: dict[str, Any]
    """The values of that file with the overrides; trials start from them, whatever becomes of the file."""
    grid: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Setting -> its values, as text. Every combination is tried; for `search: optuna` they are choices."""
    sample: dict[str, str] = Field(default_factory=dict)
    """Setting -> its distribution, for example loguniform(1e-6,1e-4)."""
    num_samples: int = Field(1, ge=1)
    """Draws of the sampled settings at each point of the grid; for `search: optuna`, the number of trials."""
    search: Literal["random", "optuna"] = "random"
    """random: every point of the grid, and independent draws. optuna: each trial is where the trials before it promise most, by
    the tree-structured Parzen estimator (Bergstra et al. 2011)."""
    scheduler: Literal["none", "asha"] = "none"
    """asha: a trial that is worse than most others were at the same step is stopped (arXiv:1810.05934)."""
    grace_steps: int | None = Field(None, ge=1)
    """ASHA stops no trial before this step. None is the steps of a run divided by the square of `reduction_factor`."""
    reduction_factor: int = Field(4, ge=2)
    """ASHA lets the best one of so many go on at each of its steps, which are `grace_steps` times powers of it."""
    metric: str = Field(pattern=r"^[a-z0-9_]+/[A-Za-z0-9_.]+$")
    """What trials are compared by: a name in metrics.jsonl, whose last value counts, or a number of summary.json, such as
    after/score_mean."""
    mode: Literal["max", "min"] = "max"
    """Whether more of it is better."""
    concurrent: int | None = Field(None, ge=1)
    """Trials at once at the most. None is as many as fit."""

    @model_validator(mode="after")
    def _something_is_swept(self) -> Self:
        both = sorted(set(self.grid) & set(self.sample))
        own = [key for key in (*self.grid, *self.sample) if key in OWN_KEYS]
        problems = []
        if not self.grid and not self.sample:
            problems.append("nothing is swept; give --grid a.b=1,2,3 or --sample c.d=loguniform(1e-6,1e-4)")
        if both:
            problems.append(f"{', '.join(both)}: given to both --grid and --sample; choose one")
        if own:
            problems.append(f"{', '.join(own)}: a sweep names its trials and their folder itself")
        if self.num_samples > 1 and not self.sample and self.search == "random":
            problems.append(
                f"--samples {self.num_samples} repeats the same trials, because nothing is sampled; to repeat them with "
                "other seeds, add --grid seed=0,1,2"
            )
        if self.grace_steps is not None and self.scheduler == "none":
            problems.append(f"--grace-steps {self.grace_steps} has no meaning without --scheduler asha")
        if problems:
            raise ValueError("; ".join(problems))
        return self
