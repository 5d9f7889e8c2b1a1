"""What an environment raises is told as its own, with the line that raised it."""

import pytest

from cluster.errors import EnvironmentFailedError
from learners.environments.told_errors import ToldErrors
from tests.learners.environments.failing import Mistaken


def test_a_step_that_raises_is_told_with_its_line() -> None:
    env = ToldErrors(Mistaken(fails_at_step=2), "Mistaken-v0")
    env.reset()
    env.step(0)
    said = r"task\.env=Mistaken-v0 raised ZeroDivisionError in step: the wind has no speed \(.*failing\.py:\d+\); correct the env"
    with pytest.raises(EnvironmentFailedError, match=said) as caught:
        env.step(0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_reset_that_raises_is_told_as_well() -> None:
    with pytest.raises(EnvironmentFailedError, match=r"raised KeyError in reset: 'no map' \(.*failing\.py"):
        ToldErrors(Mistaken(fails_at_reset=True), "Mistaken-v0").reset()
