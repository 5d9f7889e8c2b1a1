"""What a job on a cluster runs, checked here before anything is uploaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ConfigError
from learners.settings.run import load_run_config


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCommand:
    """Produced by `training_command` and `resume_command`, consumed by `rayward submit`."""

    name: str  # the job's identifier begins with it
    arguments: tuple[str, ...]  # after `python -m rayward`
    variables: tuple[str, ...]  # that scorers read; they are never sent, so the cluster must have them


def training_command(config: Path, overrides: Sequence[str], *, working_dir: Path) -> JobCommand:
    """`rayward train` in `working_dir`, which is uploaded. Raises `ConfigError` for what would be known too late there."""
    loaded = load_run_config(config, overrides)

    from learners.run.session import named_variables  # a second: a mistake in the configuration is told before it

    file, folder = config.resolve(), working_dir.resolve()
    if not file.is_relative_to(folder):
        raise ConfigError(f"{config} lies outside {folder}, which is uploaded; name a folder that holds it with --working-dir")
    if not Path(loaded.runs_dir).is_absolute():
        raise ConfigError(
            f"runs_dir={loaded.runs_dir}: a job's own folder is removed with the job; give an absolute path that all machines of "
            "the cluster share, for example runs_dir=/mnt/shared/runs"
        )
    return JobCommand(
        name=loaded.name,
        arguments=("train", file.relative_to(folder).as_posix(), *overrides),
        variables=tuple(named_variables(loaded)),
    )


def resume_command(run: Path, overrides: Sequence[str]) -> JobCommand:
    """`rayward resume` of a run directory on the cluster."""
    if not run.is_absolute():
        raise ConfigError(f"{run}: give the absolute path of the run directory on the cluster")
    return JobCommand(name=f"resume-{run.name}", arguments=("resume", str(run), *overrides), variables=())
