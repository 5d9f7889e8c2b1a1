"""The requests that may be on their way to an engine at once: those inside, and those that wait."""

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.api_errors import overloaded

ENGINE_ROUTES: Final = frozenset({"/v1/completions", "/v1/chat/completions"})


class EnginePlaces:
    """ASGI middleware of the proxy, for its event loop. Raises `Refusal` for a request that finds every place taken.

    Serve's queue has the same length, and refuses by itself; but that costs the proxy a task on another thread, a line in a log
    and a reply through all of its layers, and under a flood that time is missing to those that are answered.
    """

    def __init__(self, app: ASGIApp, *, num_places: int) -> None:
        self._app = app
        self._num_places = num_places
        self._num_taken = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in ENGINE_ROUTES:
            await self._app(scope, receive, send)
            return
        if self._num_taken == self._num_places:
            raise overloaded()
        self._num_taken += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_taken -= 1
