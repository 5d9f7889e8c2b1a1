"""Children that answer, fail, hang, and end: real processes."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from actors.user_code.child_process import (
    ChildFailedError,
    ChildLostError,
    ChildProcess,
    ChildStartError,
    ChildTimeoutError,
)

HANDLERS = """
import os, signal, subprocess, sys, time

def build(*, refuse=False):
    if refuse:
        raise LookupError("nothing to build")
    return handle

def handle(request):
    match request:
        case "pid":
            yield os.getpid()
        case "pid of a grandchild, then hang":
            yield subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid
            time.sleep(60)
        case "raise":
            yield 1
            raise KeyError("lost")
        case "exit":
            yield 1
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "print":
            print("noise on stdout")
            yield "quiet"
        case "nan":
            yield float("nan")
        case _:
            yield from request
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ChildProcess]]:
    (tmp_path / "handlers_of_a_test.py").write_text(HANDLERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    children = []

    def start(**settings: bool) -> ChildProcess:
        children.append(ChildProcess("handlers_of_a_test:build", settings))
        return children[-1]

    yield start
    for each in children:
        each.close()


def has_ended(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
    return False


def test_every_result_comes_back_in_order(child: Callable[..., ChildProcess]) -> None:
    process = child()
    assert process.call([1, "two", None, {"three": 3.5}], timeout_s=10) == [1, "two", None, {"three": 3.5}]
    assert process.call([], timeout_s=10) == []


def test_one_process_serves_all_calls(child: Callable[..., ChildProcess]) -> None:
    process = child()
    (first,), (second,) = process.call("pid", timeout_s=10), process.call("pid", timeout_s=10)
    assert first == second != os.getpid()


def test_what_a_handler_raises_is_told_and_the_process_lives(child: Callable[..., ChildProcess]) -> None:
    process = child()
    before = process.call("pid", timeout_s=10)
    with pytest.raises(ChildFailedError, match="KeyError: 'lost'") as caught:
        process.call("raise", timeout_s=10)
    assert caught.value.results == [1]
    assert process.call("pid", timeout_s=10) == before


def test_a_number_that_json_does_not_have_is_a_failure(child: Callable[..., ChildProcess]) -> None:
    with pytest.raises(ChildFailedError, match="not JSON compliant"):
        child().call("nan", timeout_s=10)


def test_a_hang_is_killed_with_all_it_started_and_the_next_call_works(child: Callable[..., ChildProcess]) -> None:
    process = child()
    (hung,) = process.call("pid", timeout_s=10)
    with pytest.raises(ChildTimeoutError, match=r"no reply within 0.3 s") as caught:
        process.call("pid of a grandchild, then hang", timeout_s=0.3)
    (grandchild,) = caught.value.results
    assert has_ended(hung)
    assert has_ended(grandchild)
    assert process.call(["again"], timeout_s=10) == ["again"]


@pytest.mark.parametrize(
    ("request_", "results", "message"), [("exit", [1], "ended with status 3"), ("kill", [], "was ended by SIGKILL")]
)
def test_an_end_is_told_and_the_next_call_works(
    child: Callable[..., ChildProcess], request_: str, results: list[int], message: str
) -> None:
    process = child()
    with pytest.raises(ChildLostError, match=message) as caught:
        process.call(request_, timeout_s=10)
    assert caught.value.results == results
    assert process.call(["again"], timeout_s=10) == ["again"]


def test_a_handler_that_cannot_be_built_is_told(child: Callable[..., ChildProcess]) -> None:
    with pytest.raises(ChildStartError, match="could not start: LookupError: nothing to build"):
        child(refuse=True).start()


def test_what_a_handler_prints_does_not_reach_our_stdout(
    child: Callable[..., ChildProcess], capfd: pytest.CaptureFixture[str]
) -> None:
    process = child()
    assert process.call("print", timeout_s=10) == ["quiet"]
    process.close()
    assert capfd.readouterr().out == ""


def test_a_child_ends_when_its_parent_hangs_up(child: Callable[..., ChildProcess]) -> None:
    process = child()
    (pid,) = process.call("pid", timeout_s=10)
    assert process._running is not None
    process._running.connection.close()  # what the kernel does when a parent is killed
    assert has_ended(pid)
