"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`. Imported without vLLM."""

import json
import re
from collections.abc import Mapping
from typing import Final

from fastapi.responses import JSONResponse

CONTEXT_PARAMETERS: Final = ("input_tokens", "input_text")  # what vLLM blames where a prompt is longer than the context
CONTEXT_LENGTH_EXCEEDED: Final = "context_length_exceeded"
RETRY_AFTER_S: Final = 1
MAX_NAME_CHARS: Final = 64  # of a client's own text in a message
MAX_MESSAGE_CHARS: Final = 400
PATH: Final = re.compile(r"(?<![\w:/.])(?:~|\.{1,2})?/[\w.@~-]+(?:/[\w.@~-]*)+")
TOO_MANY_REQUESTS: Final = 429


class Refusal(Exception):
    """A request that is answered with an error. Raised wherever that is found, answered by the application."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def reply(self) -> JSONResponse:
        """The whole HTTP reply."""
        error = {"message": str(self), "type": self._type(), "param": self.param, "code": self.code}
        return JSONResponse({"error": error}, status_code=self.status, headers=self.headers)

    def _type(self) -> str:
        if self.status >= 500:
            return "server_error"
        return "rate_limit_error" if self.status == TOO_MANY_REQUESTS else "invalid_request_error"


def unavailable() -> Refusal:
    """503 where no replica answered, each time that it was tried."""
    return Refusal(503, "no engine answers; try again later", code="engine_unavailable", headers=retry_after(RETRY_AFTER_S))


def overloaded() -> Refusal:
    """429 where the queue is full."""
    message = "every engine is busy and the queue is full; try again later"
    return Refusal(TOO_MANY_REQUESTS, message, code="overloaded", headers=retry_after(RETRY_AFTER_S))


def engine_lost() -> Refusal:
    """500 for a request that was inside an engine when it ended. OpenAI's clients are told not to send it again at once."""
    return Refusal(
        500,
        "the engine ended while it worked on this request; the same request is refused for now",
        code="engine_lost",
        headers={"x-should-retry": "false"},
    )


def internal_error(request_id: str) -> Refusal:
    """500 for a defect of ours, of which the client learns the request's id only."""
    return Refusal(500, f"internal error; the log has more under {request_id}", code="internal_error")


def model_not_found(model: str) -> Refusal:
    """404 for a name that is not served."""
    return Refusal(404, f"the model {shown(model)} is not served here", code="model_not_found", param="model")


def engine_refusal(status: int, message: str, *, param: str | None) -> Refusal:
    """What the engine says of a request. A prompt beyond the context gets OpenAI's code for it."""
    code = CONTEXT_LENGTH_EXCEEDED if param in CONTEXT_PARAMETERS else "invalid_request"
    return Refusal(status, public_text(message), code=code, param=param)


def no_room(max_model_tokens: int) -> Refusal:
    """400 for a prompt that fills the context to its last token; vLLM would complain of a `max_tokens` of 0."""
    message = (
        f"This model's maximum context length is {max_model_tokens} tokens, and your prompt contains {max_model_tokens} input "
        "tokens, which leaves none for the completion. Please reduce the length of the input prompt."
    )
    return Refusal(400, message, code=CONTEXT_LENGTH_EXCEEDED, param=CONTEXT_PARAMETERS[0])


def stream_error(refusal: Refusal) -> str:
    """The last event of a stream that fails; no `[DONE]` follows, so nobody takes the rest for the end."""
    return f"data: {bytes(refusal.reply().body).decode()}\n\n"


def broken_stream() -> str:
    """The last event of a stream that lost its engine."""
    return stream_error(Refusal(500, "the engine was lost before the end of this completion", code="engine_lost"))


def retry_after(seconds: float) -> dict[str, str]:
    """As a header, in whole seconds."""
    return {"Retry-After": str(max(1, -int(-seconds // 1)))}


def shown(text: str) -> str:
    """A client's own text within a message: cut, in quotes, with control characters escaped."""
    cut = text if len(text) <= MAX_NAME_CHARS else f"{text[:MAX_NAME_CHARS]}..."
    return json.dumps(cut)


def public_text(message: str) -> str:
    """The first line of a library's message, cut, without control characters and paths."""
    first = message.strip().split("\n", 1)[0][:MAX_MESSAGE_CHARS]
    return PATH.sub("...", "".join(char if char.isprintable() else "?" for char in first))
