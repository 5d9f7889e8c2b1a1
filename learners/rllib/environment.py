"""The environment as RLlib's processes make it, and where they tell of its exceptions.

An env runner whose environment raises ends, and RLlib starts it again, a thousand times. So it tells the driver before it ends.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import ray
from ray.actor import ActorHandle

from cluster.errors import EnvironmentFailedError

ENVIRONMENT_NAME = "rayward"  # in RLlib's registry


class FailureRecord:
    """What environments have raised. A Ray actor: env runners write, the driver reads."""

    def __init__(self) -> None:
        self._first: str | None = None

    def tell(self, problem: str) -> None:
        self._first = self._first or problem

    def first(self) -> str | None:
        return self._first


def check_environment(record: ActorHandle) -> None:
    """In the driver: raise what an environment has raised in another process."""
    if (problem := ray.get(record.first.remote())) is not None:
        raise EnvironmentFailedError(problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentCreator:
    """What RLlib registers: called in every process that steps environments."""

    make: Callable[[], gymnasium.Env[Any, Any]]
    record: ActorHandle | None  # of a `FailureRecord`; None where the driver steps them itself

    def __call__(self, context: Any) -> gymnasium.Env[Any, Any]:
        env = self.make()
        return env if self.record is None else TellingEnvironment(env, self.record)


class TellingEnvironment(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Writes down what the environment raised, before it raises."""

    def __init__(self, env: gymnasium.Env[Any, Any], record: ActorHandle) -> None:
        super().__init__(env)
        self._record = record

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._telling(lambda: self.env.reset(seed=seed, options=options))

    def step(self, action: Any) -> Any:
        return self._telling(lambda: self.env.step(action))

    def _telling(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except EnvironmentFailedError as error:
            ray.get(self._record.tell.remote(str(error)))
            raise
