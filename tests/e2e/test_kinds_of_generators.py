"""A run whose generators are of two kinds, one with room for four times as many sequences: real engines of the tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.storage.ledger import audit_ledger

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS, NUM_TRAINED = 2, 16
KINDS = [
    {"name": "wide", "num_cpus": 0.25, "dtype": "float32", "max_model_tokens": 128, "max_num_sequences": 8},
    {"name": "narrow", "num_cpus": 0.25, "dtype": "float32", "max_model_tokens": 128, "max_num_sequences": 2},
]

pytestmark = [pytest.mark.cold_start, pytest.mark.timeout(600), pytest.mark.usefixtures("ctrl_c_reaches_children")]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = yaml.safe_load((ROOT / "configs" / "train" / "tiny.yaml").read_text())
    del values["generator"]
    values |= {"name": "two-kinds", "generators": KINDS, "evaluation": {"num_prompts": 4, "num_shown": 2}}
    values["learner"] |= {"num_steps": NUM_STEPS}
    path = tmp_path_factory.mktemp("config") / "two_kinds.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def run(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs_dir = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "rayward", "train", str(config), f"runs_dir={runs_dir}"]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return runs_dir / "two-kinds"


def test_each_trajectory_is_trained_on_once(run: Path) -> None:
    audit = audit_ledger(run / "trajectories", max_staleness=0)
    assert audit.problems == ()
    assert audit.num_trained == NUM_STEPS * NUM_TRAINED


def test_both_kinds_stand_in_the_records_and_in_the_report(run: Path) -> None:
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    assert [kind["name"] for kind in recorded["generators"]] == ["wide", "narrow"]
    assert "generator" not in recorded
    assert json.loads((run / "summary.json").read_text())["state"] == "completed"
    page = (run / "report.html").read_text()
    assert "wide" in page
    assert "narrow" in page
