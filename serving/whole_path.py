"""For Serve applications whose one route is their own prefix."""

from starlette.types import ASGIApp, Receive, Scope, Send


class WholePath:
    """Middleware: Serve takes an application's prefix for the root of its paths, and would redirect `/health` to `/health/`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, "root_path": ""}, receive, send)
