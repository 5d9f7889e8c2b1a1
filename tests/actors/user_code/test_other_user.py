"""Children of a user who is not root, for whom the kernel's limits and permissions hold: a real process of another user id."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
USER = "54321"
HANDLERS = """
import os, threading, time

def build():
    return handle

def handle(request):
    match request:
        case "a thread":
            thread = threading.Thread(target=lambda: None)
            thread.start()
            thread.join()
            yield "started"
        case "parent's environment":
            try:
                yield open(f"/proc/{os.getppid()}/environ").read()
            except PermissionError:
                yield "refused"
        case "many threads":
            for _ in range(100):
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            time.sleep(60)
"""
THREADS_OF_THE_USER = """
import threading, time
from actors.user_code.child_process import ChildLimits, ChildProcess

child = ChildProcess("handlers_of_a_test:build", {}, limits=ChildLimits(max_processes=64))
child.start()
for _ in range(200):  # as engines do that start after the scorer
    threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
print(child.call("a thread", timeout_s=20), flush=True)
child.close()
"""
SECRET = """
from actors.user_code.child_process import ChildProcess

child = ChildProcess("handlers_of_a_test:build", {})
print(child.call("parent's environment", timeout_s=20), flush=True)
child.close()
"""
TOO_MANY = """
from actors.user_code.child_process import ChildLimits, ChildLostError, ChildProcess

child = ChildProcess("handlers_of_a_test:build", {}, limits=ChildLimits(max_processes=64))
try:
    child.call("many threads", timeout_s=20)
except ChildLostError as error:
    print(error, flush=True)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """That another user can read, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="rayward-test-"))
    path.chmod(0o755)
    (path / "handlers_of_a_test.py").write_text(HANDLERS)
    yield path
    shutil.rmtree(path)


def run_as_another_user(script: str, folder: Path) -> str:
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv to become another user")
    # The capability to read opens checkouts in a root's own folders; it is none over processes or limits.
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *reading, sys.executable, "-c", script]
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "PATH": os.environ["PATH"], "RAYWARD_SECRET": "s3cret"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_threads_that_its_user_starts_elsewhere_do_not_count_against_a_child(folder: Path) -> None:
    assert run_as_another_user(THREADS_OF_THE_USER, folder) == "['started']\n"


def test_a_child_cannot_read_the_environment_of_its_parent(folder: Path) -> None:
    assert run_as_another_user(SECRET, folder) == "['refused']\n"


def test_a_child_that_starts_more_than_it_may_is_ended(folder: Path) -> None:
    assert "started more than 64 processes and threads" in run_as_another_user(TOO_MANY, folder)
