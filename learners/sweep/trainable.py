"""What Ray Tune runs for each trial: an actor that starts the trial's process and tells how its metric grows."""

from pathlib import Path
from typing import Any

from ray.tune import Trainable

from learners.sweep.metric import final_value, known_metrics, metric_points
from learners.sweep.record import TrialState
from learners.sweep.trial_process import TrialCommand, TrialProcess

LOOK_S = 0.5  # from one look at a trial's metrics to the next
NEVER = -1  # below every step


class TuneTrial(Trainable):
    """One trial. Its configuration is made by `learners.sweep.tuning.Orders`.

    Results have "state", and where there is a line of metrics "step"; "value" where the scheduler listens, or at the end.
    Without a command it tells again what a trial has done that has ended before: a new scheduler and search have to hear it.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._order = config
        self._run = Path(config["run"])
        self._told: dict[str, Any] = {}  # what is not new any more
        command = config["command"]
        self._process = None if command is None else TrialProcess(TrialCommand(**command))

    def step(self) -> dict[str, Any]:
        point = self._next_point()
        if point is not None:
            step, value = point
            self._told = {"step": step, **({"value": value} if self._order["is_scheduled"] else {})}
            return self._result("running")
        state: TrialState = self._order["state"] if self._process is None else self._process.outcome(wait_s=LOOK_S)
        return self._result("running") if state == "running" else self._ending(state)

    def cleanup(self) -> None:
        if self._process is not None:
            self._process.stop()

    def _next_point(self) -> tuple[int, float] | None:
        """A scheduler hears every line, people the newest.

        The run's last line is not told before its end: whatever a scheduler decides then, the evaluation follows.
        """
        last_step, told = self._order["last_step"], self._told.get("step", NEVER)
        points = metric_points(self._run, self._order["growing"])
        new = [point for point in points if point[0] > told and (last_step is None or point[0] < last_step)]
        return (new[0] if self._order["is_scheduled"] else new[-1]) if new else None

    def _ending(self, state: TrialState) -> dict[str, Any]:
        self._told.pop("value", None)
        points = metric_points(self._run, self._order["growing"])
        if points:
            self._told["step"] = points[-1][0]
        error = None
        if state in ("completed", "stopped"):
            metric = self._order["metric"]
            value = final_value(self._run, metric)
            if value is None:
                state, error = "failed", f"it ended without the metric {metric}; it has {', '.join(known_metrics(self._run))}"
            else:
                self._told["value"] = value
        elif self._process is not None:
            error = self._process.said()
        return {**self._result(state), "error": error, "done": True}

    def _result(self, state: TrialState) -> dict[str, Any]:
        return {**self._told, "state": state, "seconds": 0.0 if self._process is None else self._process.seconds}
