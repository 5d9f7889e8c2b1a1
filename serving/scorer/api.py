"""The protocol of scorers of kind http, from the other side: texts in, scores out.

Request: {"items": [{"task_id", "prompt", "completion", "reference"}, ...]}. Reply: {"scores": [number, ...]}, as many. Where one
item cannot be scored the request is refused, and the client asks again for each item alone.
"""

import asyncio
import math
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Annotated, Final, Protocol

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request as PlainRequest
from starlette.routing import Mount, Route

from cluster.types import Unscored
from serving.api_errors import Refusal, retry_after
from serving.guard.application import Guard, build_application
from serving.guard.body_limit import json_body
from serving.guard.frame import state_of
from serving.guard.keys.key_gate import UsageCounter, check_admitted

SCORE_ROUTE: Final = "/score"
HEALTH_ROUTE: Final = "/health"
RETRY_AFTER_S: Final = 1

Name = Annotated[str, StringConstraints(max_length=1024)]


class TextScorer(Protocol):
    """`RewardModel`, or what stands for it."""

    def score_texts(self, texts: Sequence[str]) -> Sequence[float | Unscored]: ...


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ScoredItem(_Strict):
    """One completion to judge. A reward model reads prompt and completion as one text, and nothing else."""

    task_id: Name
    prompt: str
    completion: str
    reference: str


class ScoreRequest(_Strict):
    """What `HttpScorer` sends."""

    items: tuple[ScoredItem, ...]


class ScorerDesk:
    """One batch at a time goes to the model, in a thread of its own; a bounded number waits. For one event loop."""

    def __init__(self, scorer: TextScorer, *, max_waiting: int) -> None:
        self._scorer = scorer
        self._places = threading.BoundedSemaphore(max_waiting)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")

    async def scores(self, texts: Sequence[str]) -> list[float]:
        """One a text, in order. Raises `Refusal` where all places are taken, or a text has no score."""
        if not self._places.acquire(blocking=False):
            raise Refusal(429, "the scorer is busy", code="scorer_busy", headers=retry_after(RETRY_AFTER_S))
        scoring: Future[Sequence[float | Unscored]] = self._thread.submit(self._scorer.score_texts, texts)
        scoring.add_done_callback(lambda _: self._places.release())  # also of one that was given up before its turn
        scores = await asyncio.wrap_future(scoring)
        return [_finite(index, score) for index, score in enumerate(scores)]


def build_scorer_application(
    guard: Guard, usage: UsageCounter | None, desk: ScorerDesk, *, max_items: int, max_text_tokens: int
) -> Starlette:
    """`POST /score`, guarded, and `GET /health`, for everybody. `max_text_tokens`: what a text costs a key's quota."""
    guarded = build_application(guard, usage, title="Rayward scorer", has_schema=False)

    @guarded.post(SCORE_ROUTE, response_model=None)
    async def score(request: Request) -> JSONResponse:
        items = _items(await json_body(request), max_items)
        if usage is not None and items:
            check_admitted(await usage.spend(state_of(request.scope)["key"], len(items) * max_text_tokens))
        return JSONResponse({"scores": await desk.scores([item.prompt + item.completion for item in items])})

    async def health(_: PlainRequest) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return Starlette(routes=[Route(HEALTH_ROUTE, health), Mount("/", app=guarded)])


def _items(body: bytes, max_items: int) -> tuple[ScoredItem, ...]:
    try:
        items = ScoreRequest.model_validate_json(body).items
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part)[:64] for part in detail["loc"]) or None
        raise Refusal(400, f"{field or 'body'}: {detail['msg']}", code="invalid_request", param=field) from error
    if len(items) > max_items:
        message = f"{len(items)} items are more than {max_items}, the limit of a request; lower batch_size of the run's scorer"
        raise Refusal(400, message, code="too_many_items", param="items")
    return items


def _finite(index: int, score: float | Unscored) -> float:
    if isinstance(score, Unscored):
        raise Refusal(400, f"items.{index}: {score.problem}", code="not_scorable", param=f"items.{index}")
    if not math.isfinite(score):
        raise Refusal(400, f"items.{index}: the score is not finite", code="not_scorable", param=f"items.{index}")
    return score
