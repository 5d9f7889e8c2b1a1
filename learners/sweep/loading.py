"""A sweep as it is asked for, checked before anything starts: every trial's configuration is loaded once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.config import load_config, parse_config, read_yaml
from cluster.errors import ConfigError
from cluster.processes.placement import RoleRequest
from cluster.storage.run_directory import CONFIG_NAME
from learners.run.plan import role_requests
from learners.settings.run import TrainingRunConfig, load_run_config
from learners.settings.sweep import SweepConfig
from learners.sweep.metric import Compared, compared_by
from learners.sweep.space import Point, Space, overrides_of, parse_grid, parse_sample, parse_space

MAX_NAME = 64 - len("-sweep")
TRAINING_NAME = "training.yaml"  # in the sweep's directory
MAX_PROBLEMS = 8  # a wrong setting is wrong in every trial
ONE_CPU = RoleRequest(role="trial", count=1, num_cpus=1.0, num_gpus=0.0, setting="concurrent")  # its driver works


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSweep:
    """Produced by `check_sweep`, consumed by `run_sweep`."""

    config: SweepConfig
    space: Space
    points: tuple[Point, ...]  # of every trial; empty for a search that finds them on the way
    compared: Compared
    requests: tuple[RoleRequest, ...]  # of the largest trial
    has_roles: bool  # whether trials start processes of their own on the cluster

    @property
    def num_trials(self) -> int:
        return len(self.points) or self.config.num_samples


def load_sweep(
    file: Path, overrides: Sequence[str], grid: Sequence[str], sample: Sequence[str], options: Mapping[str, Any]
) -> CheckedSweep:
    """`rayward sweep FILE [A.B=C ...] --grid ... --sample ...`; `options`: the other settings of `SweepConfig` that were given.

    Raises `ConfigError` with what is wrong: an unknown key, a distribution that cannot be read, a value that the file's kind of
    run refuses in any trial.
    """
    listed, drawn = parse_grid(grid), parse_sample(sample)
    space = parse_space(listed, drawn)
    training = read_yaml(file, overrides)
    base = _first_that_loads(file, overrides, space.points(num_samples=1, seed=0))
    compared = compared_by(base)
    metric = compared.on_the_way if options.get("scheduler") == "asha" else compared.at_the_end
    values = {
        "name": f"{base.name[:MAX_NAME]}-sweep",
        "runs_dir": base.runs_dir,
        "seed": base.seed,
        "metric": metric,
        **options,
        "source": str(file),
        "overrides": list(overrides),
        "training": training,
        "grid": listed,
        "sample": drawn,
    }
    return check_sweep(parse_config(SweepConfig, values, source="sweep"), file, overrides)


def load_resolved_sweep(directory: Path, overrides: Sequence[str]) -> CheckedSweep:
    """What a sweep's directory was started with, but for the overrides, which are of the sweep: `num_samples=16`."""
    config = load_config(SweepConfig, directory / CONFIG_NAME, overrides)
    write_training(directory, config)
    return check_sweep(config, directory / TRAINING_NAME, ())


def write_training(directory: Path, config: SweepConfig) -> Path:
    """The configuration that every trial starts from, as a file that `rayward train` reads."""
    path = directory / TRAINING_NAME
    path.write_text(yaml.safe_dump(config.training, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def check_sweep(config: SweepConfig, file: Path, overrides: Sequence[str]) -> CheckedSweep:
    """Load the configuration of every trial, or of the outermost ones where a search finds them on the way."""
    space = parse_space(config.grid, config.sample)
    is_listed = config.search == "random"
    points = space.points(num_samples=config.num_samples, seed=config.seed) if is_listed else []
    loaded, problems = [], []
    for point in points or space.outermost():
        try:
            loaded.append(load_run_config(file, [*overrides, *overrides_of(point)]))
        except ConfigError as error:
            problems += [f"{problem} [with {' '.join(overrides_of(point))}]" for problem in error.problems]
    if problems:
        more = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        raise ConfigError([*problems[:MAX_PROBLEMS], *more])
    compared = compared_by(loaded[0])
    _check_scheduler(config, compared)
    requests = max((role_requests(each) for each in loaded), key=_size)
    return CheckedSweep(
        config=config,
        space=space,
        points=tuple(points),
        compared=compared,
        requests=tuple(requests if _size(requests)[1] >= ONE_CPU.num_cpus else [*requests, ONE_CPU]),
        has_roles=bool(requests),
    )


def grace_steps(config: SweepConfig, compared: Compared) -> int:
    """Before which ASHA stops no trial."""
    if config.grace_steps is not None:
        return config.grace_steps
    assert compared.last_step is not None, "checked"
    return max(1, compared.last_step // config.reduction_factor**2)


def _first_that_loads(file: Path, overrides: Sequence[str], points: Sequence[Point]) -> TrainingRunConfig:
    """Raises `ConfigError` where none does: what is wrong with the first is wrong with the file, or with all of a setting."""
    first_error: ConfigError | None = None
    for point in points:
        try:
            return load_run_config(file, [*overrides, *overrides_of(point)])
        except ConfigError as error:
            first_error = first_error or error
    assert first_error is not None, "there is a point, be it without settings"
    raise first_error


def _check_scheduler(config: SweepConfig, compared: Compared) -> None:
    if config.scheduler == "none":
        return
    if compared.last_step is None and config.grace_steps is None:
        raise ConfigError("--scheduler asha: how many steps such a run has is not known before; give --grace-steps")
    if config.metric.partition("/")[0] in ("before", "after"):
        raise ConfigError(
            f"--metric {config.metric}: a trial has it when it ends, and --scheduler asha compares trials on the way; "
            f"use {compared.on_the_way}"
        )


def _size(requests: Sequence[RoleRequest]) -> tuple[float, float]:
    return sum(request.total_gpus for request in requests), sum(request.total_cpus for request in requests)
