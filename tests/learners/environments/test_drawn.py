"""CartPole as text: the cart where it is on the track, the pole as it leans."""

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from learners.environments.drawn import MAX_FRAMES, TRACK_COLUMNS, Frames, draw_cart_pole, text_mode


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
    assert text_mode(env) is None
    env.reset(seed=0)
    frames = Frames(env)
    for _ in range(MAX_FRAMES + 5):
        frames.add()
    assert len(frames.shown()) == MAX_FRAMES


def test_an_environment_without_text_shows_nothing() -> None:
    frames = Frames(gymnasium.make("MountainCar-v0"))
    frames.add()
    assert frames.shown() == ()
