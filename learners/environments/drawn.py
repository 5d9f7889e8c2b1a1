"""What an environment shows: text of its own, a drawing of ours, or else images."""

import math
from collections.abc import Callable
from typing import Any

import gymnasium
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from learners.environments.film import Film

FILMED = "rgb_array"
MAX_FRAMES = 40  # of text
TRACK_COLUMNS = 61  # odd: the middle is one
POLE_ROWS = 5
ROW_COLUMNS = 2.0  # as wide as a row is high, nearly, on a screen
CART = "[===]"


class Frames:
    """The beginning of an episode. Produced by evaluations, of an environment made with `shown_mode`."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._draw = _drawing(env)
        self._film = Film(env) if env.render_mode == FILMED else None
        self._shown: list[str] = []

    def add(self) -> None:
        """What there is to see now, unless the beginning is over."""
        if self._film is not None:
            self._film.add()
        if self._draw is not None and len(self._shown) < MAX_FRAMES:
            self._shown.append(self._draw())

    def shown(self) -> tuple[str, ...]:
        """Empty where the environment shows nothing."""
        return tuple(filter(None, self._shown))

    def film(self) -> bytes | None:
        """As GIF; None where there are no images."""
        return None if self._film is None else self._film.gif()


def shown_mode(env: gymnasium.Env[Any, Any]) -> str | None:
    """The render mode in which such an environment shows most clearly what happens; None: without it."""
    modes = env.metadata.get("render_modes", [])
    if isinstance(env.unwrapped, CartPoleEnv):  # drawn by us
        return None
    return next((mode for mode in ("ansi", FILMED) if mode in modes), None)


def _drawing(env: gymnasium.Env[Any, Any]) -> Callable[[], str] | None:
    inner = env.unwrapped
    if env.render_mode == "ansi":
        return lambda: str(env.render() or "")
    if isinstance(inner, CartPoleEnv):
        return lambda: draw_cart_pole(inner)
    return None


def draw_cart_pole(env: CartPoleEnv) -> str:
    """The track from end to end, the cart on it, and the pole that leans."""
    assert env.state is not None, "it is drawn after a reset"
    position, _, angle, _ = map(float, env.state)
    middle = TRACK_COLUMNS // 2
    cart = middle + position / env.x_threshold * middle
    rows = [
        _placed("o" if row == POLE_ROWS else "|", cart + row * ROW_COLUMNS * math.tan(angle)) for row in range(POLE_ROWS, 0, -1)
    ]
    numbers = f"position {position:+.2f}, pole {math.degrees(angle):+.1f} degrees"
    return "\n".join([*rows, _placed(CART, cart), "-" * TRACK_COLUMNS, numbers])


def _placed(text: str, column: float) -> str:
    """Centred on a column; what would lie outside is not shown."""
    start = round(column) - len(text) // 2
    line = " " * max(start, 0) + text[max(-start, 0) :]
    return line[:TRACK_COLUMNS]
