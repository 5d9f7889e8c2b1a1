"""`POST /v1/feedback`: people's preferences, kept before they are acknowledged.

A Serve application of its own, so that it fails and restarts apart from the engines. A 200 means that the preference is on the
disk; a client that got no answer posts again with the same `Idempotency-Key`, and there is one record all the same.
Errors have the form of the OpenAI API. The required header also keeps web pages of other origins out: a browser asks first
whether it may send it, and is told no.
"""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from ray import serve
from ray.serve.schema import LoggingConfig

from cluster.errors import DataError, FeedbackConflictError, FeedbackNotKeptError
from cluster.messages import Message, Role
from cluster.storage.feedback import IDEMPOTENCY_KEY, Added, FeedbackStore, Preference
from serving.api_errors import Refusal
from serving.guard.application import Guard, build_application
from serving.guard.keys.key_file import FEEDBACK
from serving.guard.keys.key_gate import UsageCounter
from serving.guard.keys.usage_actor import RemoteUsage
from serving.guard.request_check import details_of
from serving.whole_path import WholePath

logger = logging.getLogger("ray.serve")  # of a replica; it ends up in Ray's log folder

FEEDBACK_APP_NAME: Final = "rayward-feedback"
FEEDBACK_ROUTE: Final = "/v1/feedback"
NUM_REPLICAS = 2  # one answers while the other is replaced; SQLite orders their writes
MAX_ONGOING_REQUESTS = 16  # for each replica; its writes go one after the other, a millisecond each
MAX_QUEUED_REQUESTS = 128
HEALTH_CHECK_PERIOD_S = 1.0  # a lost replica is noticed this soon; Serve's default is 10 s

MAX_MESSAGES = 256
MAX_TEXT_CHARS = 2**18
INVALID = "invalid_feedback"
MAX_PROBLEMS = 4  # of a body that are told at once

Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS)]


class _StrictBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class PostedMessage(_StrictBody):
    """One turn of the prompt."""

    role: Role
    content: Text


class PostedPreference(_StrictBody):
    """What a client posts. Checked here for form; `Preference` checks what it means."""

    model: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    policy_version: int | None = Field(None, ge=0, lt=2**53)
    messages: tuple[PostedMessage, ...] = Field(min_length=1, max_length=MAX_MESSAGES)
    chosen: Text
    rejected: Text

    def preference(self) -> Preference:
        """The record for the store. Raises `DataError` where there is nothing to prefer."""
        return Preference(
            model=self.model,
            policy_version=self.policy_version,
            messages=tuple(Message(role=message.role, content=message.content) for message in self.messages),
            chosen=self.chosen,
            rejected=self.rejected,
        )


def feedback_target(path: Path, guard: Guard, logging_config: LoggingConfig) -> serve.RunTarget:
    """What Serve runs beside the policy. `path` of the feedback file must be absolute: each replica opens it for itself."""

    def build() -> FastAPI:
        return build_routes(FeedbackStore(path), guard, RemoteUsage() if guard.keys is not None else None)

    endpoint = serve.deployment(
        serve.ingress(build)(),
        name="FeedbackEndpoint",
        num_replicas=NUM_REPLICAS,
        ray_actor_options={"num_cpus": 0},  # it waits for the disk
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_queued_requests=MAX_QUEUED_REQUESTS,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
    )
    return serve.RunTarget(
        target=endpoint.bind(), name=FEEDBACK_APP_NAME, route_prefix=FEEDBACK_ROUTE, logging_config=logging_config
    )


def build_routes(store: FeedbackStore, guard: Guard, usage: UsageCounter | None) -> FastAPI:
    """The one route, guarded as the policy's are."""
    app = build_application(replace(guard, scope=FEEDBACK), usage, title="Rayward feedback", has_schema=False)

    @app.post(FEEDBACK_ROUTE)
    async def post_feedback(request: Request) -> JSONResponse:
        key = _idempotency_key(request)
        preference = _preference(await request.body())
        return _reply(await asyncio.to_thread(_add, store, preference, key))

    app.add_middleware(WholePath)
    return app


def _idempotency_key(request: Request) -> str:
    keys = request.headers.getlist("Idempotency-Key")
    if len(keys) != 1 or not IDEMPOTENCY_KEY.fullmatch(keys[0]):
        raise Refusal(
            400,
            f"give one header Idempotency-Key that matches {IDEMPOTENCY_KEY.pattern}, for example a UUID; "
            "posted again with the same key, a preference is kept once",
            code="invalid_idempotency_key",
            param="Idempotency-Key",
        )
    return keys[0]


def _preference(body: bytes) -> Preference:
    try:
        return PostedPreference.model_validate_json(body).preference()
    except ValidationError as error:
        problems = [(_field(detail["loc"]), detail["msg"]) for detail in details_of(error, code=INVALID)[:MAX_PROBLEMS]]
        message = "; ".join(f"{field}: {problem}" if field else problem for field, problem in problems)
        raise Refusal(400, message, code=INVALID, param=problems[0][0] or None) from error
    except DataError as error:
        raise Refusal(400, str(error), code=INVALID) from error


def _field(location: tuple[int | str, ...]) -> str:
    """`messages.0.role`. An unknown key is the client's own text, so it is cut."""
    return ".".join(str(part)[:64] for part in location)


def _add(store: FeedbackStore, preference: Preference, key: str) -> Added:
    try:
        return store.add(preference, idempotency_key=key)
    except FeedbackConflictError as error:
        raise Refusal(409, str(error), code="idempotency_key_reused", param="Idempotency-Key") from error
    except (FeedbackNotKeptError, DataError) as error:
        logger.error("feedback was not kept: %s", error)
        raise Refusal(503, "the preference was not kept; post it again with the same key", code="feedback_not_kept") from error


def _reply(added: Added) -> JSONResponse:
    record = added.record
    return JSONResponse(
        {"id": record.feedback_id, "object": "feedback", "created": int(record.created_s), "is_new": added.is_new}
    )
