"""An environment whose exceptions are told as what they are: its author's, to be corrected there."""

import traceback
from collections.abc import Callable
from typing import Any

import gymnasium

from cluster.errors import EnvironmentFailedError


class ToldErrors(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Raises `EnvironmentFailedError` in the place of whatever the environment raises."""

    def __init__(self, env: gymnasium.Env[Any, Any], name: str) -> None:
        super().__init__(env)
        self._name = name

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._told("reset", lambda: self.env.reset(seed=seed, options=options))

    def step(self, action: Any) -> Any:
        return self._told("step", lambda: self.env.step(action))

    def _told(self, method: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # whatever an environment raises
            last = traceback.extract_tb(error.__traceback__)[-1]
            said = " ".join(str(error).split()).rstrip(".")
            raise EnvironmentFailedError(
                f"task.env={self._name} raised {type(error).__name__} in {method}: {said} ({last.filename}:{last.lineno}); "
                "correct the environment, then resume the run"
            ) from error
