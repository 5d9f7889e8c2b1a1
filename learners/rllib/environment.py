"""Environments as RLlib's processes make them, and where they tell of their exceptions.

An env runner whose environment raises ends, and RLlib starts it again, a thousand times. So it tells the driver before it ends.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import gymnasium
import ray
from gymnasium.vector import VectorEnv, VectorWrapper
from ray.actor import ActorHandle

from cluster.errors import RaywardError

ENVIRONMENT_NAME = "rayward"  # in RLlib's registry
AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Environments that one call steps together. RLlib calls one after the other where there is no such call."""

    make: Callable[[int], VectorEnv[Any, Any, Any]]  # of their number


MakeEnvironment = Callable[[], gymnasium.Env[Any, Any]] | SideBySide


class FailureRecord:
    """What environments have raised. A Ray actor: env runners write, the driver reads."""

    def __init__(self) -> None:
        self._first: RaywardError | None = None

    def tell(self, error: RaywardError) -> None:
        self._first = self._first or error

    def first(self) -> RaywardError | None:
        return self._first


def check_environment(record: ActorHandle) -> None:
    """In the driver: raise what an environment has raised in another process."""
    error: RaywardError | None = ray.get(record.first.remote())
    if error is not None:
        raise error


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentCreator:
    """What RLlib registers: called in every process that steps environments."""

    make: MakeEnvironment
    record: ActorHandle | None  # of a `FailureRecord`; None where the driver steps them itself

    def __call__(self, context: Any) -> Any:
        """`context`: RLlib's, with the number of environments where they are stepped together."""
        if isinstance(self.make, SideBySide):
            several = self.make.make(context["num_envs"])
            return several if self.record is None else TellingEnvironments(several, self.record)
        env = self.make()
        return env if self.record is None else TellingEnvironment(env, self.record)


class TellingEnvironment(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Writes down what the environment raised, before it raises."""

    def __init__(self, env: gymnasium.Env[Any, Any], record: ActorHandle) -> None:
        super().__init__(env)
        self._record = record

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return _telling(self._record, lambda: self.env.reset(seed=seed, options=options))

    def step(self, action: Any) -> Any:
        return _telling(self._record, lambda: self.env.step(action))


class TellingEnvironments(VectorWrapper):
    """The same of several."""

    def __init__(self, envs: VectorEnv[Any, Any, Any], record: ActorHandle) -> None:
        super().__init__(envs)
        self._record = record

    def step(self, actions: Any) -> Any:
        return _telling(self._record, lambda: self.env.step(actions))


def _telling(record: ActorHandle, call: Callable[[], AnswerT]) -> AnswerT:
    try:
        return call()
    except RaywardError as error:
        ray.get(record.tell.remote(error))
        raise
