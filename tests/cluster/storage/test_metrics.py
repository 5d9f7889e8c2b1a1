"""Metrics are on disk when `log` returns; stage seconds add up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import DataError, NotWrittenError
from cluster.storage.metrics import MetricsLog, StageClock

REPOSITORY = Path(__file__).parents[3]


def test_one_flat_line_a_step_is_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, tmp_path / "tensorboard") as log:
        log.log(1, {"score/mean": 0.5}, stage="train")
        assert json.loads(path.read_text()) == {"step": 1, "stage": "train", "score/mean": 0.5}
        log.log(2, {"score/mean": float("nan"), "policy/clip_frac": 0.1})
    lines = path.read_text().splitlines()
    assert json.loads(lines[1]) == {"step": 2, "score/mean": None, "policy/clip_frac": 0.1}


def test_a_log_opened_again_appends(tmp_path: Path) -> None:
    for step in (1, 2):
        with MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as log:
            log.log(step, {"score/mean": float(step)})
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_lines_that_are_given_up_are_gone_and_others_follow(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, tmp_path / "tensorboard") as log:
        for step in range(4):
            log.log(step, {"score/mean": float(step)})
        log.discard(lambda line: line["step"] >= 2, from_step=2)
        log.log(2, {"score/mean": 20.0})
    assert [json.loads(line)["score/mean"] for line in path.read_text().splitlines()] == [0.0, 1.0, 20.0]


def test_tensorboard_hides_what_was_given_up(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as log:
        for step in range(4):
            log.log(step, {"score/mean": float(step)})
        log.discard(lambda line: line["step"] >= 2, from_step=2)
        log.log(2, {"score/mean": 20.0})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [tensor.step for tensor in events.Scalars("score/mean")] == [0, 1, 2]


def test_tensorboard_reads_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    with MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as log:
        log.log(3, {"score/mean": 0.5, "policy/clip_frac": 0.25})
    (event_file,) = (tmp_path / "tensorboard").iterdir()
    scalars = {
        (event.step, value.tag): value.simple_value
        for event in LegacyEventFileLoader(str(event_file)).Load()
        for value in event.summary.value
    }
    assert scalars == {(3, "score/mean"): 0.5, (3, "policy/clip_frac"): 0.25}


def test_metrics_do_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cluster.storage.metrics import MetricsLog; "
        "MetricsLog(Path('m.jsonl'), Path('tb')).close(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)}, check=True, timeout=60)


def test_stage_seconds_add_up_also_through_exceptions() -> None:
    ticks = iter([0.0, 2.0, 10.0, 11.0, 20.0, 25.0])
    clock = StageClock(now_s=lambda: next(ticks))
    with clock.stage("rollout"):
        pass
    with pytest.raises(RuntimeError), clock.stage("update"):
        raise RuntimeError
    with clock.stage("rollout"):
        pass
    assert clock.wall_s == {"rollout": 7.0, "update": 1.0}  # 2 + 5; 1


def test_a_disk_that_takes_no_more_is_named_and_closing_says_nothing_else(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as log:
        log.log(1, {"score/mean": 0.5})
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
        with pytest.raises(NotWrittenError, match=r"metrics\.jsonl could not be written: No space left on device; .* MiB"):
            log.log(2, {"score/mean": 0.5})


def test_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as log:
        log.log(1, {"score/mean": 0.5})
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
        with pytest.raises(DataError, match=r"metrics\.jsonl:2"):
            log.discard(lambda line: line["step"] >= 2, from_step=2)
