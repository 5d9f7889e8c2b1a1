"""What `rayward scale` writes for a run that lives, and what it refuses."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.errors import ConfigError, DataError
from cluster.storage.run_directory import RunDirectory
from learners.run.sizing.scale_request import request_scale, wanted_numbers
from learners.settings.run import load_run_config

CONFIGS = Path(__file__).parents[4] / "configs" / "train"
RunStarter = Callable[..., Path]


@pytest.fixture
def living_run(tmp_path: Path) -> Iterator[RunStarter]:
    """A run directory with its lock held."""
    opened: list[RunDirectory] = []

    def start(*overrides: str, config: str = "tiny.yaml") -> Path:
        loaded = load_run_config(CONFIGS / config, overrides)
        opened.append(RunDirectory.create(tmp_path, "run"))
        opened[-1].__enter__()
        opened[-1].write_config({**loaded.model_dump(mode="json"), "name": "run"})
        opened[-1].write_summary({})
        return opened[-1].path

    yield start
    for directory in opened:
        directory.__exit__(None, None, None)


def test_numbers_are_kept_for_the_driver_and_for_a_resumed_one(living_run: RunStarter) -> None:
    run = living_run("generator.max_replicas=6", "scorers=[{kind: function, function: length, max_replicas: 3}]")
    assert request_scale(run, ["generators=6"]) == {"generators": 6}
    assert request_scale(run, ["scorers.length=2"]) == {"generators": 6, "scorers.length": 2}
    assert request_scale(run, ["generators=1"]) == wanted_numbers(run) == {"generators": 1, "scorers.length": 2}


@pytest.mark.parametrize(
    ("overrides", "assignment", "problem"),
    [
        (["generator.max_replicas=3"], "generators=4", "from 1 to 3; for more, resume the run with generator.max_replicas=4"),
        ([], "generators=2", "from 1 to 1; for more, resume the run with generator.max_replicas=2"),
        ([], "generators=0", "from 1 to 1"),
        ([], "generators=-1", "from 1 to 1"),
        ([], "generators=two", "from 1 to 1"),
        ([], "generators", "from 1 to 1"),
        ([], "scorers.length=7", "resume the run with scorers.0.max_replicas=7"),
        ([], "learner=2", "the run has generators, scorers.length; write generators=2"),
        (
            ["generator.weight_transfer=ipc", "generator.num_gpus=0.5", "learner.workers.num_gpus=0.5"],
            "generators=1",
            "generator.weight_transfer=ipc ties each generator to a learner rank's GPU",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    living_run: RunStarter, overrides: list[str], assignment: str, problem: str
) -> None:
    run = living_run("scorers=[{kind: function, function: length}]", *overrides)
    with pytest.raises(ConfigError) as refused:
        request_scale(run, [assignment])
    assert problem in str(refused.value)
    assert wanted_numbers(run) == {}


def test_every_problem_is_told_at_once(living_run: RunStarter) -> None:
    with pytest.raises(ConfigError) as refused:
        request_scale(living_run(), ["generators=9", "nobody=1"])
    assert len(refused.value.problems) == 2


def test_a_run_that_is_over_is_refused(living_run: RunStarter, tmp_path: Path) -> None:
    run = living_run("generator.max_replicas=2")
    (tmp_path / "other").mkdir()
    for name in ("config.yaml", "summary.json"):
        (tmp_path / "other" / name).write_bytes((run / name).read_bytes())
    with pytest.raises(ConfigError, match="other is not running; set generator.num_replicas"):
        request_scale(tmp_path / "other", ["generators=2"])


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a run directory"):
        request_scale(tmp_path, ["generators=2"])
