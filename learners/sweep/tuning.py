"""A sweep's trials, run by Ray Tune: as many at once as fit, each seen until its end, all of it in the sweep's record."""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from cluster.errors import ConfigError
from cluster.processes.placement import Machine, RoleRequest, place_on_nodes
from cluster.processes.runtime import cluster_nodes
from cluster.storage.run_directory import SUMMARY_NAME, read_summary
from learners.run.session import Session
from learners.sweep.loading import TRAINING_NAME, CheckedSweep, grace_steps
from learners.sweep.metric import final_value
from learners.sweep.record import DONE, SweepRecord, Trial, best_of
from learners.sweep.search import VALUE, ListedTrials, Order, SuggestedTrials
from learners.sweep.space import Point, overrides_of
from learners.sweep.trainable import TuneTrial
from learners.sweep.trial_process import CLEAN_END_S, TrialCommand

ALL_END_S = CLEAN_END_S + 3.0  # trials end side by side; then Tune's actors do
END_OF_STEPS = 10**9  # ASHA ends a trial there; a trial's steps end before
MIB = 2**20
PROGRESS_S = 2.0  # from one line of a trial's progress in the record to the next
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # a sweep has its own, also for SIGTERM
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials write their metrics themselves
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # there is none before the first step
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # nothing reads Tune's own state
}


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What each trial's actor is told."""

    checked: CheckedSweep
    record: SweepRecord

    def of(self, trial: Trial | Point) -> Order:
        """Of a trial that the record knows, or of a new one with these settings."""
        if not isinstance(trial, Trial):
            trial = self.record.add(trial)
        run = self.record.directory.absolute() / trial.name
        config, compared = self.checked.config, self.checked.compared
        has_ended = trial.state in DONE
        return {
            "name": trial.name,
            "run": str(run),
            "state": trial.state,
            "command": None if has_ended else asdict(self._command(trial, run)),
            "metric": config.metric,
            "growing": config.metric if config.scheduler == "asha" else compared.on_the_way,
            "is_scheduled": config.scheduler == "asha",
            "last_step": compared.last_step,
        }

    def _command(self, trial: Trial, run: Path) -> TrialCommand:
        training = run.parent / TRAINING_NAME
        first = ("train", str(training), *overrides_of(trial.settings), f"name={run.name}", f"runs_dir={run.parent}")
        joins = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address} if self.checked.has_roles else {}
        return TrialCommand(
            arguments=("resume", str(run)) if (run / SUMMARY_NAME).is_file() else first,
            folder=str(Path.cwd()),
            log=str(run.parent / "logs" / f"{trial.name}.log"),
            variables=joins,
        )


class _InterruptStopper(tune.Stopper):
    """Ctrl-C or SIGTERM ends every trial."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._session.interrupts.has_come

    def __getstate__(self) -> dict[str, Any]:
        return {}  # of Tune's own state, which nothing reads


class _Follower(tune.Callback):
    """Writes down what becomes of trials, and shows it."""

    def __init__(self, session: Session, record: SweepRecord, num_trials: int) -> None:
        self._session = session
        self._record = record
        self._num_trials = num_trials
        self._earlier_s: dict[str, float] = {}
        self._told_s: dict[str, float] = {}  # when a trial's progress was last written down

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        known = self._record.trial(trial.config["name"])
        self._earlier_s[known.name] = known.seconds
        if trial.config["command"] is not None:
            self._record.change(known.name, state="running", error=None)
            settings = " ".join(overrides_of(known.settings))
            self._session.view.note(f"{known.name} {trial.config['command']['arguments'][0]}  {settings}")

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        if trial.config["command"] is not None and result["state"] == "running" and "step" in result:
            name = trial.config["name"]
            if time.monotonic() - self._told_s.get(name, 0.0) > PROGRESS_S:
                self._told_s[name] = time.monotonic()
                self._record.change(name, step=result["step"], value=result.get(VALUE), seconds=self._seconds(name, result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.config["command"] is None:
            return
        result, name = trial.last_result, trial.config["name"]
        state = "stopped" if result["state"] == "running" else result["state"]  # the scheduler stops what runs
        values = {"step": result.get("step"), "value": result.get(VALUE), "error": result.get("error")}
        self._tell(self._record.change(name, state=state, seconds=self._seconds(name, result), **values))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["name"]
        log = self._record.directory / "logs" / "driver.log"
        self._tell(self._record.change(name, state="failed", error=f"the actor that watched it was lost; {log} says more"))

    def _seconds(self, name: str, result: dict[str, Any]) -> float:
        return self._earlier_s[name] + float(result["seconds"])

    def _tell(self, trial: Trial) -> None:
        shown = "" if trial.value is None else f"  {self._record.metric} {trial.value:.4g}"
        self._session.view.note(f"{trial.name} {trial.state}{shown}" + (f": {trial.error}" if trial.error else ""))
        best = best_of(self._record)
        num_ended = sum(each.state in (*DONE, "failed") for each in self._record.trials)
        metrics = {} if best is None or best.value is None else {"sweep/best": best.value}
        self._session.view.step(num_ended, self._num_trials, metrics)


def tune_trials(session: Session, checked: CheckedSweep, record: SweepRecord) -> None:
    """Run every trial that has not ended. On an interrupt every trial ends as an interrupted run; then it raises."""
    os.environ.update(TUNE_ENVIRONMENT)
    config = checked.config
    num_trials = max(checked.num_trials, len(record.trials))
    at_once = num_at_once(checked.requests, cluster_nodes(), limit=min(config.concurrent or num_trials, num_trials))
    session.view.note(f"{num_trials} trials, {at_once} at once, compared by {config.metric} ({config.mode})")
    search = _search(checked, record)
    with session.interrupts.deferred(ALL_END_S):
        try:
            tune.run(
                TuneTrial,
                search_alg=search,
                scheduler=_scheduler(checked),
                num_samples=num_trials,
                max_concurrent_trials=at_once,
                # A trial with roles reserves nothing itself: its run does, and a share of a CPU may be what that lacks.
                resources_per_trial=tune.PlacementGroupFactory([{"memory": MIB} if checked.has_roles else {"CPU": 1}]),
                stop=_InterruptStopper(session),
                callbacks=[_Follower(session, record, num_trials)],
                storage_path=str(session.ray.shared_folder()),
                verbose=0,
                raise_on_failed_trial=False,
            )
        finally:
            _settle(record)


def num_at_once(requests: Sequence[RoleRequest], nodes: Sequence[Machine], *, limit: int) -> int:
    """How many trials that ask for `requests` fit on the nodes side by side; at least 1, at most `limit`."""
    number = 1
    while number < limit:
        try:
            place_on_nodes([replace(request, count=request.count * (number + 1)) for request in requests], nodes)
        except ConfigError:
            break
        number += 1
    return number


def _search(checked: CheckedSweep, record: SweepRecord) -> ListedTrials | SuggestedTrials:
    orders, config = Orders(checked=checked, record=record), checked.config
    if config.search == "optuna":
        return SuggestedTrials(checked.space, record.trials, orders.of, mode=config.mode, seed=config.seed)
    listed = _listed(checked.points, record)
    if config.scheduler == "none":  # nobody has to hear again what ended before
        listed = [trial for trial in listed if trial.state not in DONE]
    return ListedTrials([orders.of(trial) for trial in listed])


def _listed(points: Sequence[Point], record: SweepRecord) -> list[Trial]:
    """Those of the record first, then new ones for the points that it does not have."""
    known = record.trials
    unmatched = list(known)
    for point in points:
        match = next((trial for trial in unmatched if trial.settings == point), None)
        if match is None:
            known.append(record.add(point))
        else:
            unmatched.remove(match)
    return known


def _scheduler(checked: CheckedSweep) -> TrialScheduler:
    config = checked.config
    if config.scheduler == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="step",
        metric=VALUE,
        mode=config.mode,
        max_t=END_OF_STEPS,
        grace_period=grace_steps(config, checked.compared),
        reduction_factor=config.reduction_factor,
    )


def _settle(record: SweepRecord) -> None:
    """Whatever has not told its end was interrupted. It may have come through before it heard that it is to stop."""
    for trial in record.trials:
        run = record.directory / trial.name
        if trial.state in ("running", "stopped"):
            is_complete = (run / SUMMARY_NAME).is_file() and read_summary(run)["state"] == "completed"
            value = final_value(run, record.metric) if is_complete else None
            if value is not None:
                record.change(trial.name, state="completed", value=value)
            elif trial.state == "running":
                record.change(trial.name, state="interrupted", value=None)
