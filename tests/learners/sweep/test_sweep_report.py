"""The table and the picture of a sweep, from its files only."""

import json
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from cluster.storage.run_directory import RunDirectory
from learners.report.terminal import list_runs
from learners.sweep import loading
from learners.sweep.figure import Placed, draw_sweep, place
from learners.sweep.loading import CheckedSweep, load_sweep
from learners.sweep.record import SweepRecord
from learners.sweep.space import Range
from learners.sweep.terminal import _short, sweep_report, sweep_view

CONFIGS = Path(loading.__file__).parents[2] / "configs" / "train"


@pytest.fixture
def swept(tmp_path: Path) -> tuple[Path, SweepRecord, CheckedSweep]:
    """Three trials over two settings; the second is best, the third has failed."""
    file = CONFIGS / "q_learning_frozen_lake.yaml"
    checked = load_sweep(
        file, ["seed=7"], ["task.options.map_name=4x4,'[8,8]'"], ["learner.gamma=uniform(0.8,0.99)"], {"num_samples": 2}
    )
    with RunDirectory.create(tmp_path, "lake-sweep") as run:
        run.write_summary({"best": {"trial": "trial-002", "value": 0.5}})
        run.write_config(yaml.safe_load(yaml.safe_dump(checked.config.model_dump(mode="json"))))
        record = SweepRecord(run.path, metric="after/return_mean", mode="max")
        for number, point in enumerate(checked.points[:3]):
            trial = record.add(point)
            (run.path / trial.name).mkdir()
            line = json.dumps({"step": 1, "episode/discounted_return_mean": 0.1 * number})
            (run.path / trial.name / "metrics.jsonl").write_text(f"{line}\n")
            ended = (
                {"state": "completed", "value": 0.25 * (number + 1)} if number < 2 else {"state": "failed", "error": "why\x1b"}
            )
            record.change(trial.name, seconds=65.0, step=1, **ended)
    return run.path, record, checked


def test_the_report_has_the_best_first_and_its_command_line(swept: tuple[Path, SweepRecord, CheckedSweep]) -> None:
    path, record, checked = swept
    report = sweep_report(path)
    assert [trial["name"] for trial in report["trials"]] == ["trial-002", "trial-001", "trial-003"]
    gamma = record.trial("trial-002").settings["learner.gamma"]
    command = f"rayward train {checked.config.source} seed=7 'task.options.map_name='\"'\"'[8,8]'\"'\"'' learner.gamma={gamma}"
    assert report["best"] == {"trial": "trial-002", "value": 0.5, "run": str(path / "trial-002"), "command": command}
    json.dumps(report)
    assert list_runs(path.parent)[0]["result"] == {"best": 0.5}


def test_the_table_shows_every_trial(swept: tuple[Path, SweepRecord, CheckedSweep]) -> None:
    text = StringIO()
    Console(file=text, width=160).print(sweep_view(sweep_report(swept[0])))
    shown = text.getvalue()
    for word in ("lake-sweep", "completed", "trial-003", "failed", "0.25", "1m05s", "rayward train", "why"):
        assert word in shown
    assert "\x1b" not in shown
    assert "map_name" in shown
    assert _short(["a.start", "b.start", "c.gamma"]) == ["a.start", "b.start", "gamma"]


def test_the_picture_is_drawn_also_of_a_sweep_without_a_result(
    swept: tuple[Path, SweepRecord, CheckedSweep], tmp_path: Path
) -> None:
    _, record, checked = swept
    assert draw_sweep(record, checked).startswith(b"\x89PNG")
    empty = SweepRecord(tmp_path, metric="after/return_mean", mode="max")
    assert draw_sweep(empty, checked).startswith(b"\x89PNG")


def test_numbers_stand_at_their_size_and_words_in_their_order() -> None:
    linear = Range(low=0.1, high=1000.0, is_log=False, is_whole=False)
    assert place(["1e-5", "1e-3"], None) == Placed(positions=(1e-5, 1e-3), is_log=True, labels=())
    assert place(["1", "2"], None).is_log is False
    assert place(["0.1", "1000"], linear).is_log is False
    assert place(["ppo", "grpo", "ppo"], None) == Placed(positions=(0.0, 1.0, 0.0), is_log=False, labels=("ppo", "grpo"))
