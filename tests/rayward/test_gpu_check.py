"""`make gpu-check` where there is no GPU, and the table that it prints where there is one."""

import subprocess
import sys
from pathlib import Path

from tests.gpu.table import Row, table

ROOT = Path(__file__).resolve().parents[2]


def test_without_a_gpu_it_says_so_and_installs_nothing(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "gpu_check.py", "--venv", venv],
        env={"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("gpu-check: this machine has no NVIDIA GPU that this process may use")
    assert "Traceback" not in done.stderr
    assert not venv.exists()


def test_without_a_gpu_its_tests_are_not_collected() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "tests/gpu"],
        cwd=ROOT,
        env={"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no tests collected" in done.stdout
    assert "error" not in done.stdout.lower()


def test_the_table_names_the_machine_and_what_was_measured() -> None:
    rows = [
        Row(check="tests/gpu/test_gpu_runs.py::test_weights_by_nccl", outcome="not run", measured={"because it": "needs 2 GPUs"}),
        Row(
            check="tests/gpu/test_gpu_learner.py::test_a_ppo_step[SmolLM2-135M]",
            outcome="passed",
            measured={"peak": "3.1 GiB", "MFU": "12.0%"},
        ),
    ]
    assert table(rows, machine=["1 x NVIDIA T (16 GiB)", "torch 3"]) == [
        "1 x NVIDIA T (16 GiB); torch 3",
        "",
        "| check | outcome | measured |",
        "|---|---|---|",
        "| weights by nccl | not run | because it needs 2 GPUs |",
        "| a ppo step (SmolLM2-135M) | passed | peak 3.1 GiB, MFU 12.0% |",
    ]
