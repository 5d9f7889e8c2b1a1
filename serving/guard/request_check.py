"""A request's body, checked: bytes as they came -> fields that the engine may see.

Everything that is wrong with a body is found here, before an engine is asked, and told with the field's name. Values are never
repeated to the client.
"""

from collections.abc import Sequence
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from serving.api_errors import MAX_NAME_CHARS, Refusal
from serving.config import RequestLimits
from serving.guard.request_fields import ChatFields, CompletionFields, SamplingFields

MAX_PROBLEMS: Final = 4  # of a body that are told at once
INVALID: Final = "invalid_request"
MAX_DETAILS: Final = 1000  # some 20 ms
LABELS: Final = frozenset({"user", "request_id"})  # what the engine never sees
REFUSED: Final = {  # fields of vLLM that are asked for, and why they are not taken
    "chat_template": "templates come with the model",
    "chat_template_kwargs": "templates come with the model",
    "documents": "templates come with the model",
    "use_beam_search": "beam search is off",
    "best_of": "beam search is off",
    "prompt_embeds": "a prompt is text or token ids",
    "structured_outputs": "structured output is off",
    "guided_json": "structured output is off",
    "guided_regex": "structured output is off",
    "guided_choice": "structured output is off",
    "guided_grammar": "structured output is off",
    "functions": "use tools",
    "function_call": "use tool_choice",
}
ROLES: Final = ("system", "developer", "user", "assistant", "tool")
UNION_MEMBERS: Final = frozenset({"str", "constrained-str", *ROLES})  # pydantic names them within a location
DEFAULT_MAX_TOKENS: Final = 16  # of a completion request that names none, as in OpenAI's API
TOKENS_A_MESSAGE: Final = 16  # at most what a chat template adds to a turn
FieldsT = TypeVar("FieldsT", bound=SamplingFields)


def chat_fields(body: bytes, limits: RequestLimits, *, takes_tools: bool) -> ChatFields:
    """Of `POST /v1/chat/completions`. Raises `Refusal`."""
    fields = _fields(ChatFields, body)
    _check_most("messages", len(fields.messages), limits.max_messages, "messages")
    _check_most("top_logprobs", fields.top_logprobs or 0, limits.max_logprobs, "alternatives")
    _check_completion_tokens("max_completion_tokens", fields.max_completion_tokens, limits)
    _check_sampling(fields, limits)
    if fields.top_logprobs and not fields.logprobs:
        raise _invalid("top_logprobs needs logprobs=true", param="top_logprobs")
    if not takes_tools:
        _check_no_tools(fields)
    _check_most("tools", len(fields.tools or []), limits.max_tools, "functions")
    return fields


def completion_fields(body: bytes, limits: RequestLimits) -> CompletionFields:
    """Of `POST /v1/completions`. Raises `Refusal`."""
    fields = _fields(CompletionFields, body)
    _check_most("prompt", len(_prompts(fields)), limits.max_prompts, "prompts")
    _check_most("logprobs", fields.logprobs or 0, limits.max_logprobs, "alternatives")
    _check_sampling(fields, limits)
    return fields


def engine_fields(fields: SamplingFields, limits: RequestLimits) -> dict[str, Any]:
    """What the engine is asked, as plain values: what the client gave without its labels, and within the cap on tokens."""
    given = fields.model_dump(exclude_unset=True, exclude_none=True, exclude=set(LABELS))
    if limits.max_completion_tokens is not None and not given.keys() & {"max_tokens", "max_completion_tokens"}:
        given["max_tokens"] = limits.max_completion_tokens
    return given


def most_tokens(fields: ChatFields | CompletionFields, limits: RequestLimits, max_model_tokens: int) -> int:
    """The most tokens that a request can use, prompts and completions. A token is a byte of text at least."""
    if isinstance(fields, CompletionFields):
        sizes = [len(prompt.encode()) if isinstance(prompt, str) else len(prompt) for prompt in _prompts(fields)]
        asked, default = fields.max_tokens, DEFAULT_MAX_TOKENS
    else:
        sizes = [len(fields.model_dump_json(include={"messages", "tools"})) + TOKENS_A_MESSAGE * len(fields.messages)]
        asked, default = fields.max_completion_tokens or fields.max_tokens, max_model_tokens
    completion = min(max_model_tokens, default if asked is None else asked, limits.max_completion_tokens or max_model_tokens)
    return sum(min(size, max_model_tokens) + (fields.n or 1) * completion for size in sizes)


def _fields(schema: type[FieldsT], body: bytes) -> FieldsT:
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        problems = list(dict.fromkeys(_told(schema, detail) for detail in details_of(error)))
    raise _invalid("; ".join(text for _, text in problems[:MAX_PROBLEMS]), param=problems[0][0] or None)


def details_of(error: ValidationError, *, code: str = INVALID) -> list[Any]:
    """What pydantic found, without the client's values. Raises `Refusal` for a body so wrong that the list would take seconds."""
    if error.error_count() > MAX_DETAILS:
        raise Refusal(400, f"the body breaks the schema in {error.error_count()} places", code=code)
    return list(error.errors(include_url=False, include_input=False, include_context=False))


def _told(schema: type[SamplingFields], detail: Any) -> tuple[str, str]:
    """(field, sentence). Names of a client's own making are cut, and shown without control characters."""
    if detail["type"] == "json_invalid":
        return "", "the body is not valid JSON in UTF-8"
    name = _name(detail["loc"])
    if detail["type"].startswith("union_tag"):
        return f"{name}.role", f"{name}.role: must be one of {', '.join(ROLES)}"
    if detail["type"] == "extra_forbidden":
        reason = REFUSED.get(name)
        if reason is None and len(detail["loc"]) == 1:
            reason = f"unknown field; known are {', '.join(sorted(schema.model_fields))}"
        return name, f"{name} is not taken: {reason or 'unknown field'}"
    if name.startswith("response_format"):
        return name, f"{name}: structured output is off; leave it out, or ask for type=text"
    return name, f"{name}: {detail['msg']}" if name else f"the body: {detail['msg']}"


def _name(location: Sequence[int | str]) -> str:
    """`messages.0.content`, without pydantic's names for the members of a union."""
    parts = []
    for index, part in enumerate(location):
        is_member = index > 0 and isinstance(part, str) and (part in UNION_MEMBERS or "[" in part)
        if not is_member:
            parts.append("".join(char if char.isprintable() else "?" for char in str(part))[:MAX_NAME_CHARS])
    return ".".join(parts)


def _check_sampling(fields: ChatFields | CompletionFields, limits: RequestLimits) -> None:
    _check_most("n", fields.n or 1, limits.max_samples, "completions of one prompt")
    stops = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
    _check_most("stop", len(stops), limits.max_stops, "strings")
    _check_most("logit_bias", len(fields.logit_bias or {}), limits.max_logit_bias, "tokens")
    _check_completion_tokens("max_tokens", fields.max_tokens, limits)
    if fields.stream_options is not None and not fields.stream:
        raise _invalid("stream_options needs stream=true", param="stream_options")


def _check_completion_tokens(name: str, asked: int | None, limits: RequestLimits) -> None:
    if asked is not None and limits.max_completion_tokens is not None:
        _check_most(name, asked, limits.max_completion_tokens, "tokens")


def _check_no_tools(fields: ChatFields) -> None:
    for name in ("tools", "parallel_tool_calls"):
        if name in fields.model_fields_set:
            raise _invalid(f"{name} is not taken: this endpoint serves no tool parser (its setting tool_parser)", param=name)
    if fields.tool_choice == "auto":
        raise _invalid("tool_choice=auto is not taken: this endpoint serves no tool parser", param="tool_choice")
    for number, message in enumerate(fields.messages):
        if message.role == "tool" or (message.role == "assistant" and message.tool_calls):
            raise _invalid(
                f"messages.{number} is about tools: this endpoint serves no tool parser", param=f"messages.{number}.role"
            )


def _check_most(name: str, given: int, most: int, unit: str) -> None:
    if given > most:
        raise _invalid(f"{name}: {given} is more than this endpoint's limit of {most} {unit}", param=name)


def _invalid(message: str, *, param: str | None) -> Refusal:
    return Refusal(400, message, code=INVALID, param=param)


def _prompts(fields: CompletionFields) -> list[str | list[int]]:
    """A list of numbers is one prompt."""
    given: Any = fields.prompt
    return given if isinstance(given, list) and not isinstance(given[0], int) else [given]
