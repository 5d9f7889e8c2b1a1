"""Spawned lightly: the parent's main module stays out of the new process, and comes back in the parent."""

import gc
import multiprocessing
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from actors.generation import engine_process
from actors.generation.engine_process import OBJECTS_BETWEEN_PASSES, spawned_lightly

PARENT = """
import ray
from tests.actors.generation.test_engine_process import spawn
if __name__ == "__main__":
    print(spawn(lightly=True), spawn(lightly=False))
"""


def tell(answers: Connection) -> None:
    """Runs in the spawned process: whether it has Ray, and how its collector is set."""
    answers.send(("ray" in sys.modules, gc.get_threshold()[0]))


def spawn(*, lightly: bool) -> tuple[bool, int]:
    context = multiprocessing.get_context("spawn")
    answers, theirs = context.Pipe(duplex=False)
    process = context.Process(target=tell, args=(theirs,))
    if lightly:
        with spawned_lightly():
            process.start()
    else:
        process.start()
    told: tuple[bool, int] = answers.recv()
    process.join()
    return told


def test_the_main_module_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = Path(engine_process.__file__).parents[2]
    found = subprocess.run(
        [sys.executable, script], cwd=root, env={"PYTHONPATH": str(root)}, stdout=subprocess.PIPE, text=True, check=True
    )
    assert found.stdout.split("\n")[0] == f"{(False, OBJECTS_BETWEEN_PASSES)} {(True, gc.get_threshold()[0])}"


def test_the_parent_keeps_its_main_module() -> None:
    main = sys.modules["__main__"]
    with spawned_lightly():
        assert sys.modules["__main__"] is not main
    assert sys.modules["__main__"] is main
