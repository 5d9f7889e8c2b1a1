"""How Tune is told of trials, and what becomes of its answers; without a Ray."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from cluster.processes.placement import Machine, RoleRequest
from learners.sweep import loading, tuning
from learners.sweep.loading import load_sweep
from learners.sweep.record import SweepRecord, Trial
from learners.sweep.search import ListedTrials, SuggestedTrials
from learners.sweep.space import Point, parse_space

LAKE = Path(loading.__file__).parents[2] / "configs" / "train" / "q_learning_frozen_lake.yaml"


@dataclass
class View:
    """Records what is shown."""

    notes: list[str] = field(default_factory=list)
    steps: list[tuple[int, int, Mapping[str, float]]] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, current: int, total: int, metrics: Mapping[str, float]) -> None:
        self.steps.append((current, total, metrics))


@dataclass
class Session:
    view: View = field(default_factory=View)


@dataclass
class TrialOfTune:
    config: dict[str, Any]
    last_result: dict[str, Any] = field(default_factory=dict)


def request(count: int, num_cpus: float, num_gpus: float = 0.0) -> RoleRequest:
    return RoleRequest(role="x", count=count, num_cpus=num_cpus, num_gpus=num_gpus, setting="x.count")


@pytest.mark.parametrize(
    ("requests", "nodes", "limit", "expected"),
    [
        ([request(1, 1.0)], [(2, 0)], 8, 2),
        ([request(1, 1.0)], [(2, 0), (4, 0)], 8, 6),
        ([request(1, 1.0)], [(16, 0)], 3, 3),
        ([request(1, 0.5), request(1, 0.6)], [(2, 0)], 8, 1),  # 2.2 CPUs do not fit
        ([request(1, 2.0)], [(3, 0), (3, 0)], 8, 2),  # 6 CPUs, but no node has two halves of a third
        ([request(1, 1.0, 1.0), request(2, 1.0, 0.5)], [(64, 4)], 8, 2),
        ([request(1, 8.0)], [(2, 0)], 8, 1),  # refused elsewhere
    ],
)
def test_as_many_at_once_as_fit(requests: list[RoleRequest], nodes: list[tuple[int, int]], limit: int, expected: int) -> None:
    machines = [Machine(num_cpus=cpus, num_gpus=gpus) for cpus, gpus in nodes]
    assert tuning.num_at_once(requests, machines, limit=limit) == expected


def test_listed_trials_come_one_after_the_other() -> None:
    search = ListedTrials([{"name": "a"}, {"name": "b"}])
    assert [search.suggest(str(number)) for number in range(3)] == [{"name": "a"}, {"name": "b"}, Searcher.FINISHED]


def test_optuna_hears_earlier_trials_first_and_learns_from_them() -> None:
    space = parse_space({"kind": ("a", "b")}, {"rate": "loguniform(1e-6,1e-2)", "n": "randint(1,4)"})
    earlier = [Trial(name=f"trial-00{n}", settings={"kind": "b", "rate": f"1e-0{n}", "n": str(n)}) for n in (3, 4)]
    asked: list[Trial | Point] = []

    def order_of(trial: Trial | Point) -> dict[str, Any]:
        asked.append(trial)
        return {}

    search = SuggestedTrials(space, earlier, order_of, mode="max", seed=5)
    for number in range(20):
        search.suggest(str(number))
        search.on_trial_result(str(number), {"state": "running"})  # without a value
        search.on_trial_complete(str(number), {"value": 1.0 if number == 0 else 0.0})
    assert asked[:2] == earlier
    new = [point for point in asked[2:] if not isinstance(point, Trial)]
    assert len(new) == 18
    assert all(set(point) == {"kind", "rate", "n"} for point in new)
    assert all(1e-6 <= float(point["rate"]) <= 1e-2 for point in new)


def test_a_resumed_sweep_keeps_its_trials_and_adds_what_is_new(tmp_path: Path) -> None:
    record = SweepRecord(
        tmp_path, metric="a/b", mode="max", trials=[Trial(name="trial-001", settings={"a": "1"}, state="completed")]
    )
    listed = tuning._listed([{"a": "1"}, {"a": "1"}, {"a": "2"}], record)
    assert [(trial.name, trial.settings["a"]) for trial in listed] == [("trial-001", "1"), ("trial-002", "1"), ("trial-003", "2")]
    assert tuning._listed([{"a": "1"}, {"a": "2"}], SweepRecord.read(tmp_path)) == record.trials


@pytest.mark.parametrize(
    ("scheduler", "heard"), [("none", ["trial-002", "trial-003"]), ("asha", ["trial-001", "trial-002", "trial-003"])]
)
def test_what_ended_runs_again_for_nobody_and_is_told_to_a_scheduler(tmp_path: Path, scheduler: str, heard: list[str]) -> None:
    checked = load_sweep(LAKE, [], ["learner.gamma=0.9,0.95,0.99"], [], {"scheduler": scheduler, "runs_dir": str(tmp_path)})
    trials = [
        Trial(name="trial-001", settings={"learner.gamma": "0.9"}, state="completed", value=0.5),
        Trial(name="trial-002", settings={"learner.gamma": "0.95"}, state="interrupted"),
    ]
    record = SweepRecord(tmp_path, metric="a/b", mode="max", trials=trials)
    (tmp_path / "trial-002").mkdir()
    (tmp_path / "trial-002" / "summary.json").write_text(json.dumps({"state": "interrupted"}))
    search = tuning._search(checked, record)
    assert isinstance(search, ListedTrials)
    orders = {order["name"]: order for order in search._left}
    assert list(orders) == heard
    assert orders["trial-002"]["command"]["arguments"] == ("resume", str(tmp_path / "trial-002"))
    new = orders["trial-003"]["command"]
    assert new["arguments"][:3] == ("train", str(tmp_path / "training.yaml"), "learner.gamma=0.99")
    assert new["arguments"][3:] == ("name=trial-003", f"runs_dir={tmp_path}")
    assert new["variables"] == {}  # without roles there is no cluster to join
    if scheduler == "asha":
        assert (orders["trial-001"]["command"], orders["trial-001"]["state"]) == (None, "completed")


def test_each_end_of_a_trial_is_written_down_and_told(tmp_path: Path) -> None:
    trials = [Trial(name=f"trial-00{n}", settings={"a": str(n)}, seconds=2.0) for n in (1, 2, 3)]
    record, session = SweepRecord(tmp_path, metric="score/mean", mode="max", trials=trials), Session()
    follower = tuning._Follower(session, record, 3)  # type: ignore[arg-type]
    given = {trial.name: TrialOfTune({"name": trial.name, "command": {"arguments": ("train",)}}) for trial in trials}
    for trial in given.values():
        follower.on_trial_start(0, [], trial)
    running = {"state": "running", "seconds": 1.0, "step": 4, "value": 0.25}
    follower.on_trial_result(0, [], given["trial-001"], running)
    assert (record.trial("trial-001").step, record.trial("trial-001").seconds) == (4, 3.0)
    ends = {
        "trial-001": running,  # the scheduler stops what runs
        "trial-002": {"state": "completed", "seconds": 5.0, "step": 9, "value": 0.5},
        "trial-003": {"state": "failed", "seconds": 1.0, "error": "no such model"},
    }
    for name, result in ends.items():
        given[name].last_result = result
        follower.on_trial_complete(0, [], given[name])
    assert [(trial.state, trial.value) for trial in record.trials] == [("stopped", 0.25), ("completed", 0.5), ("failed", None)]
    assert session.view.notes[-1] == "trial-003 failed: no such model"
    assert session.view.steps[-1] == (3, 3, {"sweep/best": 0.5})


def test_a_trial_whose_end_was_not_told_is_what_its_run_says(tmp_path: Path) -> None:
    trials = [Trial(name=f"trial-00{n}", settings={}, state="running") for n in (1, 2, 3)]
    trials += [Trial(name=f"trial-00{n}", settings={}, state="stopped", value=0.25) for n in (4, 5)]
    record = SweepRecord(tmp_path, metric="after/score_mean", mode="max", trials=trials)
    for name, summary in {
        "trial-001": {"state": "interrupted"},
        "trial-002": {"state": "completed", "after": {"score_mean": 0.75}},
        "trial-004": {"state": "interrupted"},
        "trial-005": {"state": "completed", "after": {"score_mean": 0.5}},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
        (tmp_path / name / "metrics.jsonl").touch()
    tuning._settle(record)
    assert [(trial.state, trial.value) for trial in record.trials] == [
        ("interrupted", None),
        ("completed", 0.75),
        ("interrupted", None),
        ("stopped", 0.25),
        ("completed", 0.5),
    ]
