"""What surrounds a run: which variables its workers need, and what is left of an end that nobody foresaw."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.errors import ConfigError, DataError, UnexpectedError
from cluster.processes.placement import Machine, RoleRequest
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


@pytest.fixture
def small_cluster(monkeypatch: pytest.MonkeyPatch) -> list[RoleRequest]:
    """Of one CPU; returns what asks for two."""
    monkeypatch.setattr(session, "ray_cluster", lambda: Machine(num_cpus=1, num_gpus=0, name="the cluster"))
    monkeypatch.setattr(session, "cluster_nodes", lambda: [Machine(num_cpus=1, num_gpus=0)])
    return [RoleRequest(role="generator", count=2, num_cpus=1, num_gpus=0, setting="generator.num_replicas")]


def test_a_cluster_that_is_too_small_is_refused_with_what_helps_where_it_grows(small_cluster: list[RoleRequest]) -> None:
    with pytest.raises(ConfigError) as refused:
        session._check_cluster(load_run_config(CONFIG), small_cluster, note=print)
    problem, help_ = refused.value.problems
    assert problem.startswith("placement needs 2 CPUs (2 generator), the cluster has 1")
    assert help_ == "on a cluster that adds nodes, set wait_for_nodes_s"


def test_a_cluster_that_adds_nodes_is_waited_for(small_cluster: list[RoleRequest]) -> None:
    notes: list[str] = []
    session._check_cluster(load_run_config(CONFIG, ["wait_for_nodes_s=600"]), small_cluster, note=notes.append)
    (note,) = notes
    assert note.startswith("the cluster is too small yet: placement needs 2 CPUs")
    assert note.endswith("it is asked for nodes, for 600 s at most")
