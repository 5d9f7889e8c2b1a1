"""What surrounds a run: which variables its workers need, and what is left of an end that nobody foresaw."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.errors import DataError, UnexpectedError
from cluster.storage.run_directory import read_summary
from learners.run import plan, session
from learners.run.session import named_variables, open_session
from learners.settings.run import PolicyRunConfig, load_run_config

CONFIG = Path(plan.__file__).parents[2] / "configs" / "train" / "tiny.yaml"


def test_variables_that_scorers_name_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    scorers: list[dict[str, Any]] = [
        {"kind": "http", "url": "http://127.0.0.1:9/score", "headers_from_env": {"Authorization": "JUDGE_KEY"}},
        {"kind": "python", "path": "tests.faults.bad_rewards:huge", "environment": ["OWN_KEY"]},
        {"kind": "function", "function": "length"},
    ]
    values = load_run_config(CONFIG).model_dump(mode="json") | {"scorers": scorers}
    assert named_variables(PolicyRunConfig.model_validate(values)) == ["JUDGE_KEY", "OWN_KEY"]


def test_an_unforeseen_end_is_a_file_in_the_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "versions", lambda: 1 / 0)  # the first thing that a session asks for
    config = load_run_config(CONFIG, [f"runs_dir={tmp_path}", "name=odd"])
    with pytest.raises(UnexpectedError) as caught, open_session(config, stages=["train"], requests=[]):
        pass
    (file,) = (tmp_path / "odd" / "logs").glob("error-*.txt")
    assert str(file) in str(caught.value)
    summary = read_summary(tmp_path / "odd")
    assert (summary["state"], summary["error"]) == ("failed", "ZeroDivisionError: division by zero")


@pytest.mark.parametrize(("level", "is_quiet"), [(logging.NOTSET, False), (logging.WARNING, True)])
def test_a_quiet_command_has_no_live_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: int, is_quiet: bool) -> None:
    consoles: list[Console] = []

    def fail(stages: Sequence[str], run_dir: Path, console: Console) -> None:
        consoles.append(console)
        raise DataError("before Ray starts")

    monkeypatch.setattr(session, "build_view", fail)
    monkeypatch.setattr(session.command_log, "level", level)
    config = load_run_config(CONFIG, [f"runs_dir={tmp_path}"])
    with pytest.raises(DataError), open_session(config, stages=["train"], requests=[]):
        pass
    assert [console.quiet for console in consoles] == [is_quiet]
