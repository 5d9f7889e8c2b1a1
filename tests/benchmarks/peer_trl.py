"""A GRPO step of ours against one of TRL's, on the same work, one after the other.

Run: python -m tests.benchmarks.peer_trl [--steps 4], with nothing beside. TRL lives in `.venv-trl`, an environment of its own
that this makes on its first run and that borrows torch and transformers from ours. Prints the ratio of medians; above 1 ours is
faster.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import sysconfig
from pathlib import Path

from actors.sources.models import resolve_model
from actors.sources.movie_reviews import load_movie_reviews
from learners.run.memory_estimate import local_model_shape
from tests.benchmarks.step import DTYPE, KL_COEF, MODEL, NUM_PROMPTS, NUM_SAMPLES, NUM_TOKENS, measure

TRL = "trl==1.16.0"
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-trl"
NUM_WORDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4)
    num_steps = parser.parse_args().steps
    model = resolve_model(MODEL)
    shape = local_model_shape(MODEL)
    assert shape is not None, "the model was fetched just now"
    theirs_s = statistics.median(trl_steps(model, num_steps=num_steps + 1)[1:])
    ours_s = measure("grpo", num_steps=num_steps, shape=shape).step_s
    sys.stdout.write(f"TRL {theirs_s:.1f} s a step, Rayward {ours_s:.1f} s, both in {DTYPE}: ratio {theirs_s / ours_s:.2f}\n")


def trl_steps(model: str, *, num_steps: int) -> list[float]:
    """Seconds of each step of TRL's trainer."""
    snippets = random.Random(0).sample(load_movie_reviews(), NUM_PROMPTS * num_steps)
    work = {
        "model": model,
        "num_prompts": NUM_PROMPTS,
        "num_samples": NUM_SAMPLES,
        "num_tokens": NUM_TOKENS,
        "kl_coef": KL_COEF,
        "dtype": DTYPE,
        "num_steps": num_steps,
        "prompts": [" ".join(snippet.text.split()[:NUM_WORDS]) for snippet in snippets],
    }
    child = [str(trl_python()), str(Path(__file__).with_name("peer_trl_child.py"))]
    done = subprocess.run(child, input=json.dumps(work), stdout=subprocess.PIPE, text=True, check=True)
    steps: list[float] = json.loads(done.stdout)["step_s"]
    return steps


def trl_python() -> Path:
    """The interpreter of TRL's environment."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        (site,) = (ENVIRONMENT / "lib").glob("python*/site-packages")
        (site / "rayward.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", TRL], check=True)
    return python


if __name__ == "__main__":
    main()
