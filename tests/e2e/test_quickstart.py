"""The whole road on the tiny model, through the command line: real Ray, vLLM, Ray Train."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cluster.storage.ledger import read_ledger

COMMAND = [sys.executable, "-m", "rayward"]
ROOT = Path(__file__).resolve().parents[2]
FASTER = ["reward_model.num_epochs=0.02", "reward_model.num_eval_pairs=100", "policy.learner.num_steps=2"]
INTERRUPTED = 130

pytestmark = pytest.mark.usefixtures("ctrl_c_reaches_children")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    runs_dir = tmp_path_factory.mktemp("runs")
    done = subprocess.run(
        [*COMMAND, "quickstart", "--small", "--json", f"runs_dir={runs_dir}", *FASTER],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return runs_dir / "quickstart-small", json.loads(done.stdout)["run"]  # one JSON object and nothing else


@pytest.mark.timeout(600)
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
    assert len({entry.key for entry in entries}) == len(entries) == 2 * 8 * 2  # steps x prompts x samples
    # On-policy: step 0 is sampled by the start, step 1 after the two minibatches of step 0.
    assert {(entry.step, entry.policy_version) for entry in entries} == {(0, 0), (1, 2)}


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
    assert folder.name == "v000004"  # 2 steps x 2 minibatches
    text = "A film"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(text, return_tensors="pt")
    assert AutoModelForCausalLM.from_pretrained(folder)(**tokens).logits.isfinite().all()
    assert tokenizer.decode(tokens["input_ids"][0]) == text


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("verb", "moment", "send", "number"),
    [
        # A terminal sends Ctrl-C to the whole group, a supervisor its SIGTERM to the process alone.
        (["train", "configs/train/tiny.yaml", "learner.num_steps=500"], "train step", os.killpg, signal.SIGINT),
        (["quickstart", "--small"], "reward model step", os.kill, signal.SIGTERM),
    ],
)
def test_a_signal_stops_the_run_cleanly_and_leaves_no_process(
    tmp_path: Path, verb: list[str], moment: str, send: Callable[[int, int], None], number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [*COMMAND, *verb, f"runs_dir={tmp_path}", "name=stopped"],
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
    children = psutil.Process(process.pid).children(recursive=True)
    send(process.pid, number)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED, "".join(seen) + rest
    assert rest.strip().splitlines()[-1].startswith("error: interrupted")
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive
    assert json.loads((tmp_path / "stopped" / "summary.json").read_text())["state"] == "interrupted"
