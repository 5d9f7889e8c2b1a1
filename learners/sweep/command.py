"""The command that runs a sweep, new, resumed or from its first trial again."""

from collections.abc import Sequence
from pathlib import Path

from actors.sources.fetching import announced
from cluster.errors import RaywardError, RunInterruptedError
from cluster.storage.atomic_file import write_atomically
from cluster.storage.run_directory import RunDirectory, find_run
from cluster.storage.run_lock import RunLock
from learners.run.session import Session, open_session
from learners.sweep.figure import draw_sweep
from learners.sweep.loading import CheckedSweep, load_resolved_sweep, write_training
from learners.sweep.record import SWEEP_NAME, SweepRecord, Trial, best_of
from learners.sweep.tuning import ALL_END_S, tune_trials

SWEEP_STAGES = ("trials",)
PICTURE_NAME = "report.png"
END_S = ALL_END_S + 5.0  # of the whole sweep after an interrupt, with its Ray


def run_sweep(checked: CheckedSweep, *, resumed: RunDirectory | None = None) -> Path:
    """Run every trial. Returns the sweep's directory. A trial that fails is told and ends nothing else.

    Raises `RaywardError` where no trial has come to a value, `RunInterruptedError` where one was interrupted.
    """
    config = checked.config
    with open_session(config, stages=SWEEP_STAGES, requests=checked.requests, resumed=resumed, end_s=END_S) as session:
        write_training(session.path, config)
        is_new = not (session.path / SWEEP_NAME).is_file()
        trials = [] if is_new else SweepRecord.read(session.path).trials
        record = SweepRecord(session.path, metric=config.metric, mode=config.mode, trials=trials)
        record.write()
        with session.stage("trials"):
            tune_trials(session, checked, record)
        _conclude(session, record)
    with announced("drawing the trials"):
        write_atomically(session.path / PICTURE_NAME, draw_sweep(record, checked))
    return session.path


def resume_sweep(sweep: Path, overrides: Sequence[str], *, fresh: bool) -> Path:
    """Go on with a sweep: trials that ended stay, interrupted and failed ones are resumed, others begin.

    `fresh`: from the first trial again, what there was set aside. `overrides` are of the sweep, for example num_samples=16.
    """
    path = find_run(sweep)
    RunLock(path).release()  # a sweep that lives is refused first
    checked = load_resolved_sweep(path, overrides)
    resumed = RunDirectory.open(path)
    if fresh:
        resumed.set_aside()
    resumed.write_config(checked.config.model_dump(mode="json"))
    return run_sweep(checked, resumed=resumed)


def _conclude(session: Session, record: SweepRecord) -> None:
    """The best trial into the summary."""
    best = best_of(record)
    if best is not None:
        session.directory.write_summary({"best": {"trial": best.name, "value": best.value, "settings": best.settings}})
    interrupted = [trial.name for trial in record.trials if trial.state == "interrupted"]
    if interrupted:
        raise RunInterruptedError(f"{', '.join(interrupted)} did not come to an end; go on with: rayward resume {session.path}")
    if best is None:
        raise RaywardError(f"no trial came to a value; {_why(record.trials)}")


def _why(trials: Sequence[Trial]) -> str:
    return "; ".join(f"{trial.name}: {trial.error}" for trial in trials if trial.error) or "none has ended"
