"""A run directory has one owner, is never overwritten, and says truly how its run ended."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.errors import CannotResumeError, ConfigError, DataError, NotWrittenError, RunDirectoryInUseError
from cluster.storage import run_directory, run_lock
from cluster.storage.run_directory import FOLDERS, RunDirectory, check_not_in_use, read_summary

REPOSITORY = Path(__file__).parents[3]


def test_a_run_that_ends_well_is_completed(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, "first") as run:
        assert run.read_summary()["state"] == "running"
        assert all((run.path / folder).is_dir() for folder in FOLDERS)
        run.write_config({"name": "first", "betas": (0.9, 0.95)})
        run.write_summary({"wall_s": {"train": 1.5}})
        run.write_summary({"seed": 3})
    summary = read_summary(tmp_path / "first")
    assert (summary["state"], summary["wall_s"], summary["seed"]) == ("completed", {"train": 1.5}, 3)
    assert yaml.safe_load((tmp_path / "first" / "config.yaml").read_text()) == {"name": "first", "betas": [0.9, 0.95]}


@pytest.mark.parametrize(("error", "state"), [(KeyboardInterrupt(), "interrupted"), (RuntimeError("broken"), "failed")])
def test_an_exception_decides_the_state_and_is_raised_on(tmp_path: Path, error: BaseException, state: str) -> None:
    with pytest.raises(type(error)), RunDirectory.create(tmp_path, "run"):
        raise error
    assert read_summary(tmp_path / "run")["state"] == state


def test_an_earlier_run_is_kept_and_the_new_one_gets_a_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    names = []
    for seed in (1, 2, 3):
        with RunDirectory.create(tmp_path, "run") as run:
            run.write_summary({"seed": seed})
            names.append(run.name)
    assert names == ["run", "run-2", "run-3"]
    assert read_summary(tmp_path / "run")["seed"] == 1
    assert "run-3" in caplog.text


def test_a_live_owner_is_named(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, "run"), pytest.raises(RunDirectoryInUseError, match=f"pid {os.getpid()}") as caught:
        RunDirectory.create(tmp_path, "run")
    assert caught.value.exit_code == 4


def test_a_look_beforehand_refuses_the_same_and_takes_nothing(tmp_path: Path) -> None:
    check_not_in_use(tmp_path, "run")
    assert list(tmp_path.iterdir()) == []
    with RunDirectory.create(tmp_path, "run"):
        pass
    check_not_in_use(tmp_path, "run")
    with RunDirectory.create(tmp_path, "run") as second:
        assert second.name == "run-2"
        with pytest.raises(RunDirectoryInUseError, match="run-2 is in use"):
            check_not_in_use(tmp_path, "run")


def test_a_numbered_run_that_is_alive_is_in_use_too(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, "run"):
        pass
    with RunDirectory.create(tmp_path, "run"), pytest.raises(RunDirectoryInUseError, match="run-2"):
        RunDirectory.create(tmp_path, "run")


def test_a_killed_owner_frees_its_lock_and_its_run_is_interrupted(tmp_path: Path) -> None:
    code = (
        "import os, sys; from cluster.storage.run_directory import RunDirectory; "
        "RunDirectory.create(sys.argv[1], 'run'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, check=False, timeout=60)
    assert read_summary(tmp_path / "run")["state"] == "running"
    with RunDirectory.create(tmp_path, "run") as run:
        assert run.name == "run-2"
    assert read_summary(tmp_path / "run")["state"] == "interrupted"
    with RunDirectory.open(tmp_path / "run") as resumed:
        assert resumed.read_summary()["state"] == "running"


def test_an_end_at_once_leaves_an_interrupted_run_that_opens_again(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "demo")
    run.mark_interrupted()
    assert (run.read_summary()["state"], "ended_at" in run.read_summary()) == ("interrupted", True)
    with run:
        pass
    assert run.read_summary()["state"] == "interrupted"
    with RunDirectory.open(run.path) as again:
        assert again.read_summary()["state"] == "running"
    again.mark_interrupted()
    assert again.read_summary()["state"] == "completed"


@pytest.fixture
def quick_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "RENEW_S", 0.05)
    monkeypatch.setattr(run_lock, "SILENCE_S", 1.0)


@pytest.mark.usefixtures("quick_signs")
def test_a_killed_pod_resumes_under_a_new_host_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with pytest.raises(KeyboardInterrupt), RunDirectory.create(tmp_path, "run") as run:
        raise KeyboardInterrupt
    (run.path / "run.lock").write_text(json.dumps({"pid": 12, "host": "elsewhere", "started_at": "2026-01-01T00:00:00+00:00"}))
    with RunDirectory.open(run.path) as resumed:
        assert resumed.read_summary()["state"] == "running"
    assert "pid 12 on elsewhere, which is gone" in caplog.text


@pytest.mark.usefixtures("quick_signs")
def test_a_live_owner_on_another_host_is_seen_where_locks_do_not_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock.fcntl, "flock", lambda descriptor, operation: None)
    monkeypatch.setattr(run_lock.socket, "gethostname", lambda: "elsewhere")
    with RunDirectory.create(tmp_path, "run"):
        monkeypatch.setattr(run_lock.socket, "gethostname", lambda: "here")
        with pytest.raises(RunDirectoryInUseError, match=re.escape(f"pid {os.getpid()} on elsewhere")):
            RunDirectory.create(tmp_path, "run")


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with RunDirectory.create(tmp_path, "run") as run:
        assert run.name == "run-2"
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_only_runs_that_did_not_complete_open_again(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, "run") as run:
        pass
    with pytest.raises(CannotResumeError, match="completed"):
        RunDirectory.open(run.path)
    with pytest.raises(DataError, match=r"summary\.json"):
        RunDirectory.open(tmp_path)


def test_a_completed_run_cannot_become_failed(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, "run") as run:
        run.write_summary({"state": "completed"})
        with pytest.raises(ValueError, match="completed run cannot become 'failed'"):
            run.write_summary({"state": "failed"})


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 65, "line\nbreak"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="run name"):
        RunDirectory.create(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_lines_that_a_full_disk_has_torn_are_cut_when_the_run_opens_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt), RunDirectory.create(tmp_path, "run") as run:
        raise KeyboardInterrupt
    metrics, ledger = run.path / "metrics.jsonl", run.path / "trajectories" / "step-000000.jsonl"
    ledger.parent.mkdir()
    for file in (metrics, ledger):
        file.write_text('{"step": 0}\n{"st')
    with RunDirectory.open(run.path):
        assert metrics.read_text() == ledger.read_text() == '{"step": 0}\n'
    assert f"{metrics}:2: the last line is torn" in caplog.text
    assert f"{ledger}:2: the last line is torn" in caplog.text


def test_a_summary_that_cannot_be_written_does_not_hide_what_ended_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, content: str) -> None:
        raise NotWrittenError(f"{path} could not be written")

    run = RunDirectory.create(tmp_path, "run")
    monkeypatch.setattr(run_directory, "write_atomically", full)
    with pytest.raises(RuntimeError, match="broken"), run:
        raise RuntimeError("broken")
    assert "summary.json could not be written" in caplog.text
    monkeypatch.undo()
    with RunDirectory.open(run.path):  # the lock was let go
        pass
