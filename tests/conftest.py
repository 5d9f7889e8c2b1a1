"""One Ray for all tests that need one, because each start costs eight seconds."""

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


@pytest.fixture(scope="session", autouse=True)
def _last_ray_ends() -> Iterator[None]:
    yield
    ray.shutdown()
