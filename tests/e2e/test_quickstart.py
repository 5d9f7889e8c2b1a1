"""The whole road on the tiny model, through the command line, stopped and resumed on the way: real Ray, vLLM, Ray Train."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cluster.storage.ledger import read_ledger

COMMAND = [sys.executable, "-m", "rayward"]
ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 3  # of quickstart_small.yaml, two minibatches each
INTERRUPTED = 130

pytestmark = [
    pytest.mark.cold_start,
    pytest.mark.timeout(600),  # one test pays for the run of all
    pytest.mark.usefixtures("ctrl_c_reaches_children"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppedRun:
    """How a run ended that got a signal."""

    path: Path
    last_line: str  # of what it said
    state: str
    left: list[psutil.Process]  # still there a while after it had ended


def stop(
    arguments: list[str], path: Path, *, moment: str, send: Callable[[int, int], None], number: signal.Signals
) -> StoppedRun:
    """Start a command, and send the signal when a line of its view begins with `moment`."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    seen = []
    assert process.stderr is not None
    for line in process.stderr:  # the view's lines, one a change
        seen.append(line)
        if line.startswith(moment):
            break
    else:
        raise AssertionError(f"it has ended and never said {moment}: {''.join(seen)}")
    children = psutil.Process(process.pid).children(recursive=True)
    send(process.pid, number)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED, "".join(seen) + rest
    _, left = psutil.wait_procs(children, timeout=15)
    state = json.loads((path / "summary.json").read_text())["state"]
    return StoppedRun(path=path, last_line=rest.strip().splitlines()[-1], state=state, left=left)


@pytest.fixture(scope="module")
def terminated_run(tmp_path_factory: pytest.TempPathFactory, ctrl_c_reaches_children: None) -> StoppedRun:
    """A supervisor sends SIGTERM to the process alone, while Ray Train trains the reward model."""
    runs_dir = tmp_path_factory.mktemp("runs")
    command = ["quickstart", "--small", f"runs_dir={runs_dir}"]
    return stop(command, runs_dir / "quickstart-small", moment="reward model step", send=os.kill, number=signal.SIGTERM)


@pytest.fixture(scope="module")
def interrupted_run(terminated_run: StoppedRun) -> StoppedRun:
    """A terminal sends Ctrl-C to the whole group of the resumed run, while every role is up."""
    path = terminated_run.path
    return stop(["resume", str(path)], path, moment="train step", send=os.killpg, number=signal.SIGINT)


@pytest.fixture(scope="module")
def finished_run(interrupted_run: StoppedRun) -> tuple[Path, dict]:
    """The same run once more, to its end."""
    path = interrupted_run.path
    done = subprocess.run(
        [*COMMAND, "resume", str(path), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return path, json.loads(done.stdout)["run"]  # one JSON object and nothing else


@pytest.mark.parametrize("stopped", ["terminated_run", "interrupted_run"])
def test_a_signal_stops_the_run_cleanly_and_leaves_no_process(request: pytest.FixtureRequest, stopped: str) -> None:
    run: StoppedRun = request.getfixturevalue(stopped)
    assert run.last_line.startswith("error: interrupted")
    assert run.left == []
    assert run.state == "interrupted"


def test_the_summary_says_what_was_learned_and_what_it_cost(finished_run: tuple[Path, dict]) -> None:
    _, summary = finished_run
    assert summary["state"] == "completed"
    assert {"accuracy", "human_agreement"} <= summary["reward_model"].keys()
    for moment in ("before", "after"):
        expected = {"score_mean", "score_std"}
        expected |= {"kl_nats_per_completion", "completion_tokens_mean", "distinct_2"}
        assert expected <= summary[moment].keys()
        assert summary[moment]["judge_means"].keys() == summary[moment]["judge_shares"].keys() == {"vader"}
    assert summary["before"]["kl_nats_per_completion"] == pytest.approx(0, abs=1e-6)  # the start is the reference
    assert summary["wall_s"].keys() == {"reward model", "start", "evaluate before", "train", "evaluate after", "export"}
    assert {"ray", "torch", "transformers", "python"} <= summary["versions"].keys()


def test_every_trajectory_is_in_the_ledger_once(finished_run: tuple[Path, dict]) -> None:
    path, _ = finished_run
    entries = list(read_ledger(path / "trajectories"))
    assert len({entry.key for entry in entries}) == len(entries) == NUM_STEPS * 8 * 2  # steps x prompts x samples
    # On-policy, though the run was stopped: step 0 is sampled by the start, step 1 after the two minibatches of step 0.
    assert {(entry.step, version) for entry in entries for _, version in entry.stretches} == {
        (step, 2 * step) for step in range(NUM_STEPS)
    }


def test_the_run_directory_holds_what_the_readme_says(finished_run: tuple[Path, dict]) -> None:
    path, _ = finished_run
    for name in ("config.yaml", "metrics.jsonl", "report.html", "report.png", "evaluation/before.json", "evaluation/after.json"):
        assert (path / name).stat().st_size > 0, name
    assert list((path / "tensorboard").iterdir())
    assert list((path / "logs" / "ray").iterdir())


def test_the_exported_policy_loads_as_it_is(finished_run: tuple[Path, dict]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path, _ = finished_run
    (folder,) = (path / "policies").iterdir()
    assert folder.name == f"v{2 * NUM_STEPS:06d}"
    text = "A film"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(text, return_tensors="pt")
    assert AutoModelForCausalLM.from_pretrained(folder)(**tokens).logits.isfinite().all()
    assert tokenizer.decode(tokens["input_ids"][0]) == text
