"""One Ray a worker for all tests that need one, because each start costs eight seconds; none for tests that do not say that they
start one; and Ctrl-C for processes that tests start.
"""

import gc
import os
import signal
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.processes.collector_pause import collector_paused
from cluster.processes.runtime import WORKER_ENVIRONMENT

# Where Ray wants a folder, a path below a file. Its name is what the error says.
NO_FOLDER = Path(__file__) / "mark_this_test_as_cold_start"


def pytest_configure() -> None:
    """Workers share the cores: with a thread for each core in each of them, threads wait for one another. And Ray's processes
    yield to all others (nice 15): beside the tests of the other worker their start takes several times as long."""
    os.environ.setdefault("RAY_worker_niceness", "0")
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What test files import stays, so the cycle collector leaves it alone, now and later."""
    with collector_paused():
        return (yield)


@pytest.hookimpl(tryfirst=True)  # a worker of xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a Ray go to one worker, as do those of a file that starts its own. They come first: the many short tests
    after them leave neither worker idle at the end."""
    for item in items:
        shares_ray = "local_ray" in getattr(item, "fixturenames", ())
        if shares_ray or item.get_closest_marker("faults"):
            item.add_marker(pytest.mark.cold_start)
        if item.get_closest_marker("cold_start"):
            item.add_marker(pytest.mark.xdist_group("local_ray" if shares_ray else item.path.stem))
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    if item.get_closest_marker("cold_start") is None:
        return 2
    return 0 if "local_ray" in getattr(item, "fixturenames", ()) else 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Any other test that starts a Ray fails at once, be it in a child process: `make test-fast` has no cold start. Around
    fixtures of every scope, for one of a module may start Ray as well."""
    with pytest.MonkeyPatch.context() as environment:
        if item.get_closest_marker("cold_start") is None:
            environment.setenv("RAY_TMPDIR", str(NO_FOLDER))
        return (yield)


@pytest.fixture(scope="session")
def ray_of_tests() -> Iterator[str]:
    """The address of a Ray with two logical CPUs, which modules join one after the other."""
    with pytest.MonkeyPatch.context() as environment:  # daemons pass it on
        for name, value in WORKER_ENVIRONMENT.items():
            environment.setenv(name, os.environ.get(name, value))
        environment.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)  # workers find modules of tests
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def ray_to_join(ray_of_tests: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs join the Ray of tests, as they would a cluster. For those in which RLlib starts no process: it keeps what belongs to
    the first job that a process was, and each run here is another one."""
    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", ray_of_tests)


@pytest.fixture(scope="module")
def local_ray(ray_of_tests: str) -> Iterator[None]:
    """This process has joined. A module that leaves an actor on a CPU fails itself, and not the next that waits for room."""
    if not ray.is_initialized():
        ray.init(address=ray_of_tests, log_to_driver=False, configure_logging=False)
    yield
    if not ray.is_initialized():
        return
    gc.collect()  # a handle in a reference cycle keeps its actor
    deadline_s = time.monotonic() + 30
    while (free := ray.available_resources().get("CPU", 0.0)) < 2:  # it lags behind what has ended
        if time.monotonic() > deadline_s:
            pytest.fail(f"actors of this module still hold {2 - free:g} of 2 CPUs; end each with ray.kill")
        time.sleep(0.1)


@pytest.fixture(scope="module")
def no_ray() -> None:
    """For tests that start one of their own."""
    ray.shutdown()


@pytest.fixture(scope="module")
def ctrl_c_reaches_children() -> Iterator[None]:
    """Processes that tests start react to SIGINT, also under `nohup make test &`, where a shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # an ignored signal is inherited, a handler is not
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _threads_stay() -> Iterator[None]:
    """Learners and scorers set torch's threads for their whole process; the next test shares its cores with the other worker."""
    torch = sys.modules.get("torch")
    before = None if torch is None else torch.get_num_threads()
    yield
    if torch is not None:
        torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _last_ray_ends() -> Iterator[None]:
    yield
    ray.shutdown()
