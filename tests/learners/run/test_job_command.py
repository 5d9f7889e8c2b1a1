"""What a job runs, and what is refused before anything is uploaded."""

from pathlib import Path

import pytest

from cluster.errors import ConfigError
from learners.run.job_command import resume_command, training_command

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "configs" / "train" / "tiny.yaml"
SHARED = "runs_dir=/mnt/shared/runs"


def test_the_file_is_named_as_it_lies_in_the_uploaded_folder() -> None:
    command = training_command(CONFIG, [SHARED, "name=night"], working_dir=ROOT)
    assert command.arguments == ("train", "configs/train/tiny.yaml", SHARED, "name=night")
    assert (command.name, command.variables) == ("night", ())


def test_a_file_outside_the_uploaded_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lies outside .*--working-dir"):
        training_command(CONFIG, [SHARED], working_dir=tmp_path)


def test_a_run_that_would_be_lost_with_its_job_is_refused() -> None:
    with pytest.raises(ConfigError, match="runs_dir=runs: a job's own folder is removed with the job; give an absolute path"):
        training_command(CONFIG, [], working_dir=ROOT)


def test_a_bad_file_is_told_here() -> None:
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        training_command(CONFIG, [SHARED, "seeed=1"], working_dir=ROOT)


def test_variables_that_scorers_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    path = tmp_path / "keyed.yaml"
    text = CONFIG.read_text()
    scorer = '  - {kind: http, url: "http://127.0.0.1:9/score", headers_from_env: {Authorization: JUDGE_KEY}}\n'
    path.write_text(text.replace("scorers:\n", f"scorers:\n{scorer}"))
    assert training_command(path, [SHARED], working_dir=tmp_path).variables == ("JUDGE_KEY",)


def test_a_run_is_continued_by_its_path_on_the_cluster() -> None:
    command = resume_command(Path("/mnt/shared/runs/night"), ["learner.num_steps=9"])
    assert command.arguments == ("resume", "/mnt/shared/runs/night", "learner.num_steps=9")
    assert command.name == "resume-night"
    with pytest.raises(ConfigError, match="absolute path"):
        resume_command(Path("runs/night"), [])
