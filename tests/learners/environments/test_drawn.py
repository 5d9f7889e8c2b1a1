"""What is shown of environments: CartPole as text, the cart where it is on the track and the pole as it leans; others as film."""

import io
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.error import DependencyNotInstalled
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from learners.environments.drawn import MAX_FRAMES, TRACK_COLUMNS, Frames, draw_cart_pole, shown_mode
from learners.environments.film import MAX_IMAGES


@pytest.mark.parametrize(
    ("position", "angle", "cart_column", "top_column"),
    [
        (0.0, 0.0, 30, 30),  # the middle of 61 columns, upright
        (1.2, 0.0, 45, 45),  # half way to the end at 2.4
        (0.0, 0.2, 30, 32),  # five rows of two columns, times tan(0.2) = 0.203
        (0.0, -0.2, 30, 28),
    ],
)
def test_cart_and_pole_are_where_they_are(position: float, angle: float, cart_column: int, top_column: int) -> None:
    env = CartPoleEnv()
    env.state = np.array([position, 0.0, angle, 0.0])
    lines = draw_cart_pole(env).splitlines()
    assert lines[0].index("o") == top_column
    assert lines[5].index("[") + 2 == cart_column
    assert lines[6] == "-" * TRACK_COLUMNS
    assert lines[7] == f"position {position:+.2f}, pole {np.degrees(angle):+.1f} degrees"


def test_what_leaves_the_track_is_cut() -> None:
    env = CartPoleEnv()
    env.state = np.array([2.5, 0.0, 0.2, 0.0])
    assert max(map(len, draw_cart_pole(env).splitlines()[:-1])) == TRACK_COLUMNS


def test_the_beginning_of_an_episode_is_kept() -> None:
    env = gymnasium.make("CartPole-v1")
    assert shown_mode(env) is None
    env.reset(seed=0)
    frames = Frames(env)
    for _ in range(MAX_FRAMES + 5):
        frames.add()
    assert len(frames.shown()) == MAX_FRAMES


class Walk(gymnasium.Env[int, int]):
    """Draws itself as an image: a white column where it is, one further with each step."""

    def __init__(self, render_mode: str | None = None) -> None:
        self.metadata = {"render_modes": ["human", "rgb_array"]}
        self.render_mode = render_mode
        self.at = 0

    def render(self) -> Any:
        pixels = np.zeros((300, 640, 3), np.uint8)
        pixels[:, self.at * 64 : self.at * 64 + 64] = 255
        return pixels


def test_an_environment_of_images_is_filmed() -> None:
    env = Walk(shown_mode(Walk()))
    frames = Frames(env)
    for at in range(3):
        env.at = at
        frames.add()
    gif = frames.film()
    assert gif is not None
    film = Image.open(io.BytesIO(gif))
    assert isinstance(film, GifImageFile)
    assert (film.n_frames, film.size) == (3, (320, 150))
    film.seek(2)
    row = np.array(film.convert("L"))[75]
    assert [int(column) for column in np.flatnonzero(row > 128)] == list(range(64, 96))  # the third column, at half the size
    assert frames.shown() == ()


def test_a_long_film_is_cut() -> None:
    frames = Frames(Walk("rgb_array"))
    for _ in range(MAX_IMAGES + 5):
        frames.add()
    film = Image.open(io.BytesIO(frames.film() or b""))
    assert isinstance(film, GifImageFile)
    assert film.n_frames <= MAX_IMAGES  # equal images become one that is shown for longer


def test_an_environment_that_cannot_draw_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def render(self: Walk) -> Any:
        raise DependencyNotInstalled("pygame is not installed")

    monkeypatch.setattr(Walk, "render", render)
    for frames in (Frames(Walk("rgb_array")), Frames(Walk())):
        frames.add()
        assert (frames.shown(), frames.film()) == ((), None)
