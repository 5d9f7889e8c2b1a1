"""What trials are compared by, read from a run's files."""

import json
from pathlib import Path

from learners.sweep.metric import final_value, known_metrics, metric_points


def write_run(path: Path) -> Path:
    lines = [
        {"step": 0, "stage": "evaluation", "evaluation/score_mean": 0.1},
        {"step": 0, "score/mean": 0.2},
        {"step": 1, "score/mean": None},
        {"step": 2, "score/mean": 0.4},
    ]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 3, "sco')
    summary = {"state": "completed", "after": {"score_mean": 0.5, "return_std": None}, "reward_model": {"accuracy": 0.6}}
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def test_a_metric_grows_line_by_line(tmp_path: Path) -> None:
    assert metric_points(tmp_path, "score/mean") == []
    assert metric_points(write_run(tmp_path), "score/mean") == [(0, 0.2), (2, 0.4)]


def test_a_run_is_judged_by_its_summary_or_its_last_line(tmp_path: Path) -> None:
    write_run(tmp_path)
    expected = {"after/score_mean": 0.5, "reward_model/accuracy": 0.6, "score/mean": 0.4, "a/b": None}
    assert {metric: final_value(tmp_path, metric) for metric in expected} == expected
    assert known_metrics(tmp_path) == ["after/score_mean", "evaluation/score_mean", "reward_model/accuracy", "score/mean"]
