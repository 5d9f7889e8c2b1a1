"""The FastAPI application of a front door: what every route has around it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from serving.api_errors import Refusal
from serving.config import BodyLimits
from serving.guard.body_limit import BodyLimit
from serving.guard.frame import REQUEST_ID_HEADER, Frame, state_of
from serving.guard.keys.key_file import INFERENCE, KeyFile
from serving.guard.keys.key_gate import KeyGate, UsageCounter
from serving.guard.request_log import RequestLog

EXPOSED_HEADERS: Final = (REQUEST_ID_HEADER, "X-Policy-Version", "Retry-After")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """How an application is guarded. Produced by `deployment`, consumed by `guard` and `build_application`."""

    limits: BodyLimits
    timeout_s: float
    log_folder: Path | None
    cors_origins: tuple[str, ...] = ()
    keys: Path | None = None  # None: no key is asked for
    scope: str = INFERENCE  # what a key must be for


def build_application(guard: Guard, usage: UsageCounter | None, *, title: str, has_schema: bool = True) -> FastAPI:
    """Without routes yet. Each layer hands on what the one before it let pass: id, deadline, origin, key, size."""
    app = FastAPI(
        title=title, docs_url=None, redoc_url=None, openapi_url="/openapi.json" if has_schema else None, redirect_slashes=False
    )

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        refusal = Refusal(error.status_code, error.detail, code="no_such_route", headers=error.headers)  # which methods there are
        state_of(request.scope)["record"]["code"] = refusal.code
        return refusal.reply()

    @app.exception_handler(RequestValidationError)
    async def refuse_parameter(_: Request, error: RequestValidationError) -> Response:
        name = ".".join(str(part) for part in error.errors()[0]["loc"][1:2])
        return Refusal(400, f"{name}: not a valid value", code="invalid_request", param=name).reply()

    app.add_middleware(BodyLimit, limits=guard.limits)
    if guard.keys is not None:
        assert usage is not None
        app.add_middleware(KeyGate, keys=KeyFile(guard.keys), usage=usage, scope=guard.scope)
    if guard.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=guard.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key"],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(Frame, timeout_s=guard.timeout_s, log=RequestLog(guard.log_folder))
    return app
