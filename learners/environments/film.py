"""A film of the beginning of an episode, as GIF: of environments that draw themselves as images."""

import io
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import DependencyNotInstalled
from PIL import Image

MAX_IMAGES = 100
MAX_WIDTH_PIXELS = 320
IMAGE_MS = 60  # each is shown for so long


class Film:
    """Of an environment made with render_mode=rgb_array. Nothing, where what it draws with is not installed."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._env = env
        self._images: list[Image.Image] = []

    def add(self) -> None:
        """What there is to see now, unless the beginning is over."""
        if len(self._images) == MAX_IMAGES:
            return
        try:
            pixels: Any = self._env.render()
        except DependencyNotInstalled:
            return
        image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
        image.thumbnail((MAX_WIDTH_PIXELS, MAX_WIDTH_PIXELS))
        self._images.append(image)

    def gif(self) -> bytes | None:
        """The whole film."""
        if not self._images:
            return None
        first, *others = self._images
        file = io.BytesIO()
        first.save(file, format="GIF", save_all=True, append_images=others, duration=IMAGE_MS, loop=0)
        return file.getvalue()
