"""One Ray for all tests that need one, because each start costs eight seconds; and Ctrl-C for processes that tests start."""

import signal
from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="module")
def local_ray() -> None:
    """Two logical CPUs. Whoever asks for it leaves no actor behind."""
    if not ray.is_initialized():
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)


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


@pytest.fixture(scope="session", autouse=True)
def _last_ray_ends() -> Iterator[None]:
    yield
    ray.shutdown()
