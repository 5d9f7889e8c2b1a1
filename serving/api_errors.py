"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`. Imported without vLLM."""

import json
from typing import Any, Final

from fastapi.responses import JSONResponse

CONTEXT_PARAMETERS: Final = ("input_tokens", "input_text")  # what vLLM blames where a prompt is longer than the context
CONTEXT_LENGTH_EXCEEDED: Final = "context_length_exceeded"
RETRY_AFTER_S: Final = 1


def error_reply(
    status: int, message: str, *, kind: str, code: str | None = None, param: str | None = None, retry_after_s: int | None = None
) -> JSONResponse:
    """A whole HTTP reply. `kind` is the error's `type`; `retry_after_s` becomes the header of that name."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return JSONResponse(_body(message, kind=kind, code=code, param=param), status_code=status, headers=headers)


def unavailable() -> JSONResponse:
    """503 where no replica answered, each time that it was tried."""
    return error_reply(
        503, "no engine answers; try again later", kind="server_error", code="engine_unavailable", retry_after_s=RETRY_AFTER_S
    )


def model_not_found(model: str | None) -> JSONResponse:
    """404 for a name that is not served."""
    return error_reply(
        404, f"the model {model!r} is not served here", kind="not_found_error", code="model_not_found", param="model"
    )


def engine_error(status: int, message: str, *, kind: str, param: str | None) -> JSONResponse:
    """What the engine says of a request. A prompt beyond the context gets OpenAI's code for it."""
    code = CONTEXT_LENGTH_EXCEEDED if param in CONTEXT_PARAMETERS else None
    return error_reply(status, message, kind=kind, code=code, param=param)


def no_room(max_model_tokens: int) -> JSONResponse:
    """400 for a prompt that fills the context to its last token; vLLM would complain of a `max_tokens` of 0."""
    message = (
        f"This model's maximum context length is {max_model_tokens} tokens, and your prompt contains {max_model_tokens} input "
        "tokens, which leaves none for the completion. Please reduce the length of the input prompt."
    )
    return error_reply(400, message, kind="BadRequestError", code=CONTEXT_LENGTH_EXCEEDED, param=CONTEXT_PARAMETERS[0])


def broken_stream() -> str:
    """The last event of a stream that lost its engine; no `[DONE]` follows, so nobody takes the rest for the end."""
    body = _body("the engine was lost before the end of this completion", kind="server_error", code="engine_lost", param=None)
    return f"data: {json.dumps(body)}\n\n"


def _body(message: str, *, kind: str, code: str | None, param: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
