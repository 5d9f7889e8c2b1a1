"""Children of a parent that is not root, and of one that is: what they may start, and what they may read.

Only root can start a process as someone else, so these tests run as root, as they do in a container.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.user_code.separate_user import FIRST_USER_ID

ROOT = Path(__file__).resolve().parents[3]
SOMEONE = 12345  # needs no entry in /etc/passwd
SECRET = "do-not-tell"

HANDLERS = """
import os, threading

def build():
    return handle

def handle(request):
    match request:
        case "threads":
            over = threading.Event()
            threads = [threading.Thread(target=over.wait) for _ in range(4)]
            for thread in threads:
                thread.start()
            over.set()
            yield len(threads)
        case "user":
            yield os.getuid()
            yield os.getgid()
            yield os.getgroups()
            yield os.stat(".").st_uid
        case path:
            try:
                guard = open(f"/proc/{os.getppid()}/status").read()
                parent = next(line.split()[1] for line in guard.splitlines() if line.startswith("PPid:"))
                yield open(path.replace("PARENT", parent)).read()
            except PermissionError:
                yield "refused"
"""

PARENT = """
import json, sys, threading
from actors.user_code.child_process import ChildLimits, ChildProcess

request, num_threads, separate = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
child = ChildProcess("handlers_of_a_test:build", {}, limits=ChildLimits(max_processes=16), separate=separate)
child.start()
over = threading.Event()
for _ in range(num_threads):  # as an engine does, after the scorer has started
    threading.Thread(target=over.wait, daemon=True).start()
print(json.dumps(child.call(request, timeout_s=20)))
child.close()
"""

Ask = Callable[..., list[Any]]


@pytest.fixture
def ask() -> Iterator[Ask]:
    """A child's results for one request, where its parent runs as `user`."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process as another user")
    python = next((each for each in (sys.executable, shutil.which("python3", path="/usr/bin")) if each and is_public(each)), None)
    packages = str(Path(psutil.__file__).parents[1])
    if python is None or not is_public(packages) or not is_public(str(ROOT)):
        pytest.skip("Python, its packages or this checkout lie where other users may not read, such as under /root")
    with tempfile.TemporaryDirectory(prefix="rayward-test-") as folder:
        Path(folder).chmod(0o755)
        Path(folder, "handlers_of_a_test.py").write_text(HANDLERS)

        def run(request: str, *, user: int, num_threads: int = 0, separate: bool = True) -> list[Any]:
            path = os.pathsep.join([str(ROOT), folder, packages])
            return json.loads(
                subprocess.run(
                    [python, "-B", "-c", PARENT, request, str(num_threads), str(separate)],
                    user=user,
                    group=user,
                    extra_groups=[],
                    env={"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "A_SECRET": SECRET},
                    cwd=folder,
                    stdout=subprocess.PIPE,
                    check=True,
                    timeout=60,
                ).stdout
            )

        yield run


def is_public(path: str) -> bool:
    every = {each for start in (Path(path).absolute(), Path(path).resolve()) for each in (start, *start.parents)}
    return all(each.stat().st_mode & (stat.S_IXOTH if each.is_dir() else stat.S_IROTH) for each in every)


def test_threads_that_the_user_starts_elsewhere_do_not_count(ask: Ask) -> None:
    assert ask("threads", user=SOMEONE, num_threads=200) == [4]


def test_a_parent_that_is_not_root_hides_its_environment(ask: Ask) -> None:
    assert ask("user", user=SOMEONE)[0] == SOMEONE
    assert ask("/proc/PARENT/environ", user=SOMEONE) == ["refused"]


def test_root_starts_its_child_as_a_user_of_its_own(ask: Ask) -> None:
    user, group, groups, owner_of_folder = ask("user", user=0)
    assert user > FIRST_USER_ID
    assert (group, groups, owner_of_folder) == (user, [], user)
    assert ask("user", user=0, separate=False)[0] == 0


def test_a_child_of_root_reads_neither_its_environment_nor_its_files(ask: Ask) -> None:
    assert ask("/proc/PARENT/environ", user=0) == ["refused"]
    with tempfile.NamedTemporaryFile() as token:  # mode 0600, as that of Ray's token
        assert ask(token.name, user=0) == ["refused"]
