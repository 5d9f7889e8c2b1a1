"""The command line as a user meets it: exit codes, what goes to which stream, and how fast mistakes are told."""

import json
import os
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.host import doctor
from rayward import app, main

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
HEAVY = ("ray", "torch", "vllm", "transformers", "numpy")
VERBS = (
    "quickstart",
    "train",
    "resume",
    "scale",
    "plan",
    "serve",
    "runs",
    "show",
    "doctor",
    "models",
    "data",
    "config",
    "submit",
    "chat",
)
MAX_TOLD_S = 20.0  # a mistake is told in two seconds; the rest is for loaded test machines


def run_rayward(*arguments: str, cwd: Path, cache: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        **variables,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "RAYWARD_CACHE": str(cache or cwd / "cache"),
        "COLUMNS": "200",
    }
    return subprocess.run(
        [sys.executable, "-m", "rayward", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=120,
        check=False,
    )


def heavy_imports_of(arguments: list[str]) -> set[str]:
    """Which large packages a command line pulls in."""
    command = (
        f"import sys, rayward\ntry:\n    rayward.app({arguments!r}, standalone_mode=False)\nfinally:\n"
        f"    print('HEAVY', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)
    return set(done.stdout.strip().splitlines()[-1].split()[1:])


def test_help_lists_every_verb(tmp_path: Path) -> None:
    done = run_rayward("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    assert CliRunner().invoke(app, [verb, "--help"]).exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["plan", str(CONFIGS / "train" / "tiny.yaml"), "--json"], ["runs", "--help"]],
)
def test_nothing_large_is_imported_before_it_is_needed(arguments: list[str]) -> None:
    assert heavy_imports_of(arguments) == set()


def test_a_driver_imports_ray_and_nothing_that_only_its_actors_use() -> None:
    """Whoever waits for a run waits for its imports first."""
    beside = ("ray.train", "pandas", "torch", "vllm", "transformers")
    modules = "learners.run.commands, learners.run.policy_stage, learners.run.reward_model_stage"
    command = f"import sys, {modules}\nprint('HEAVY', *[name for name in {beside!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)
    assert done.stdout.split() == ["HEAVY"]


@pytest.mark.parametrize(
    "arguments", [["trian"], ["train"], ["plan", "a.yaml", "--no-such-option"], ["show"], ["models", "fetch"]]
)
def test_bad_usage_exits_2(arguments: list[str], tmp_path: Path) -> None:
    done = run_rayward(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_run_with_a_bad_file_is_refused_without_importing_anything_large() -> None:
    command = (
        "import sys, rayward\nfrom cluster.errors import ConfigError\ntry:\n"
        "    rayward.app(['quickstart', '--small', 'seeed=1'], standalone_mode=False)\nexcept ConfigError:\n"
        f"    print('HEAVY', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)
    assert done.stdout.split() == ["HEAVY"]


@pytest.mark.parametrize("verb", ["plan", "train"])
def test_every_problem_of_a_bad_file_is_told_in_seconds(verb: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: x\nmodel: tiny\nseeed: 1\nlearner: {algorithm: reward_model, batch_size: one, optimizer: {lr: 1}}\n")
    started_s = time.monotonic()
    done = run_rayward(verb, str(path), "--json", cwd=tmp_path)
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert (error["kind"], error["exit_code"], len(error["problems"])) == ("ConfigError", 2, 3)
    for problem in ("seeed: unknown key; did you mean 'seed'?", "learner.batch_size: ", "learner.optimizer.lr: unknown key"):
        assert f"error: {path}: {problem}" in done.stderr
        assert sum(told.startswith(f"{path}: {problem}") for told in error["problems"]) == 1
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started_s < MAX_TOLD_S
    assert not (tmp_path / "runs").exists()


def test_an_override_that_names_nothing(tmp_path: Path) -> None:
    done = run_rayward("plan", str(CONFIGS / "train" / "tiny.yaml"), "learner.num_stepz=3", cwd=tmp_path)
    assert done.returncode == 2
    assert "learner.num_stepz: unknown key; did you mean 'num_steps'?" in done.stderr


def test_brackets_in_a_message_are_not_markup(tmp_path: Path) -> None:
    done = run_rayward("plan", "[red]no.yaml", cwd=tmp_path)
    assert "[red]no.yaml: no such configuration file" in done.stderr


def test_plan_prints_one_json_object(tmp_path: Path) -> None:
    done = run_rayward("plan", str(CONFIGS / "train" / "tiny.yaml"), "learner.num_steps=7", "--json", cwd=tmp_path)
    assert done.returncode == 0
    planned = json.loads(done.stdout)["plan"]
    assert planned["batch"]["num_steps"] == 7
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_plan_prints_tables(tmp_path: Path) -> None:
    done = run_rayward("plan", str(CONFIGS / "train" / "reward_model_movie_reviews.yaml"), cwd=tmp_path)
    assert done.returncode == 0
    assert all(title in done.stdout for title in ("Placement", "Batch", "Memory"))


def test_too_few_cpus_stop_a_run_before_it_starts(tmp_path: Path) -> None:
    done = run_rayward("train", str(CONFIGS / "train" / "tiny.yaml"), "generator.num_replicas=4000", cwd=tmp_path)
    assert done.returncode == 2
    assert "placement needs 2000.6 CPUs (0.5 learner + 2000 generator + 0.1 scorer length)" in done.stderr
    assert "lower generator.num_replicas (now 4000)" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "runs").exists()


def test_a_table_is_trained_shown_and_not_resumed_without_ray(tmp_path: Path) -> None:
    config = str(CONFIGS / "train" / "q_learning_cliff_walking.yaml")
    done = run_rayward("train", config, "learner.num_episodes=60", "--json", cwd=tmp_path, RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"]["state"] == "completed"
    assert "train step 60/60  return -" in done.stderr
    shown = run_rayward("show", "q_learning_cliff_walking", cwd=tmp_path).stdout
    assert all(part in shown for part in ("In CliffWalking-v1, without exploration", "return of an episode", "report.html"))
    assert run_rayward("resume", "q_learning_cliff_walking", cwd=tmp_path).returncode == 3


def test_an_environment_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    config = str(CONFIGS / "train" / "q_learning_taxi.yaml")
    done = run_rayward("train", config, "task.env=NoSuchTaxi-v1", cwd=tmp_path)
    assert done.returncode == 2
    assert "task.env=NoSuchTaxi-v1 cannot be made: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_runs_of_a_folder_without_any(tmp_path: Path) -> None:
    assert json.loads(run_rayward("runs", "--json", cwd=tmp_path).stdout) == {"runs": []}
    assert "rayward quickstart" in run_rayward("runs", cwd=tmp_path).stdout


def test_show_finds_a_run_by_its_bare_name(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "night"
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps({"state": "failed", "error": "DataError: no texts"}))
    shown = run_rayward("show", "night", "--json", cwd=tmp_path)
    assert shown.returncode == 0
    assert json.loads(shown.stdout) == {"run": {"state": "failed", "error": "DataError: no texts", "path": "runs/night"}}
    assert "no texts" in run_rayward("show", "night", cwd=tmp_path).stdout


def test_show_of_no_run(tmp_path: Path) -> None:
    done = run_rayward("show", "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere or runs/nowhere is not a run directory" in done.stderr
    assert done.stdout == ""


def test_doctor_prints_one_json_object_and_fails_only_for_what_is_missing(tmp_path: Path) -> None:
    done = run_rayward("doctor", "--json", cwd=tmp_path)
    findings = json.loads(done.stdout)["findings"]
    assert done.returncode == int(any(finding["state"] == "missing" for finding in findings))


def test_doctor_exits_1_when_something_is_missing(tmp_path: Path) -> None:
    done = run_rayward("doctor", "--json", cwd=tmp_path, cache=Path("/proc/rayward"))
    assert done.returncode == 1
    assert {"cache"} == {finding["name"] for finding in json.loads(done.stdout)["findings"] if finding["state"] == "missing"}


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    assert run_rayward("--version", cwd=tmp_path).stdout == f"rayward {version('rayward')}\n"


def test_help_groups_verbs_by_what_a_person_wants_and_names_the_exit_codes(tmp_path: Path) -> None:
    text = run_rayward("--help", cwd=tmp_path).stdout
    groups = [text.index(group) for group in ("Train a policy", "Look at results", "Serve and talk", "Set up and check")]
    assert groups == sorted(groups)
    verbs = [re.search(rf"^\W*{verb} ", text, re.MULTILINE) for verb in ("plan", "show", "serve")]
    assert all(verb is not None and group < verb.start() for verb, group in zip(verbs, groups, strict=False))
    assert "2 bad usage or configuration" in text


def test_every_command_is_in_a_group() -> None:
    assert [command.name for command in app.registered_commands if not isinstance(command.rich_help_panel, str)] == []
    assert [group.name for group in app.registered_groups if not isinstance(group.rich_help_panel, str)] == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rayward tra", {"train"}),
        ("rayward models f", {"fetch"}),
        ("rayward show ni", {"night", "nightly"}),
        ("rayward resume nightl", {"nightly"}),
    ],
)
def test_the_shell_completes_verbs_and_runs(line: str, expected: set[str], tmp_path: Path) -> None:
    for name in ("night", "nightly", "morning"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "summary.json").touch()
    done = run_rayward(cwd=tmp_path, _RAYWARD_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(line.split()) - 1))
    assert set(done.stdout.split()) == expected


def test_quiet_and_verbose_exclude_each_other(tmp_path: Path) -> None:
    done = run_rayward("-q", "-v", "runs", cwd=tmp_path)
    assert done.returncode == 2
    assert "exclude each other" in done.stderr


def test_verbose_shows_the_traceback_of_an_error(tmp_path: Path) -> None:
    done = run_rayward("-v", "plan", "no.yaml", cwd=tmp_path)
    assert "Traceback" in done.stderr
    assert "error: no.yaml: no such configuration file" in done.stderr


@pytest.mark.parametrize(("is_quiet", "said"), [(False, "fetching\n"), (True, "")])
def test_quiet_drops_progress(is_quiet: bool, said: str) -> None:
    command = (
        f"from rayward.output import set_up_log\nset_up_log(verbose=False, quiet={is_quiet})\n"
        "from actors.sources.fetching import announced\nwith announced('fetching'):\n    pass"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True)
    assert done.stderr == said


def test_what_nobody_foresaw_is_one_line_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYWARD_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["rayward", "doctor", "--json"])
    monkeypatch.setattr(doctor, "diagnose", lambda: 1 / 0)
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    (file,) = (tmp_path / "errors").iterdir()
    line = f"unexpected ZeroDivisionError: division by zero; the traceback is in {file}"
    assert ended.value.code == 1
    assert said.err == f"error: {line}\n"
    assert json.loads(said.out) == {"error": {"kind": "UnexpectedError", "problems": [line], "exit_code": 1}}
    assert "ZeroDivisionError" in file.read_text()
