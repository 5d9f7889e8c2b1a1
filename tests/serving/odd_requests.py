"""Requests that nobody sensible sends, drawn by hypothesis over the fields that the endpoint and vLLM know."""

import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from serving.guard.request_check import REFUSED
from serving.guard.request_fields import ChatFields, CompletionFields, SamplingFields

ROUTES: dict[str, type[SamplingFields]] = {"/v1/chat/completions": ChatFields, "/v1/completions": CompletionFields}
OTHER_PATHS = (
    "/",
    "/v1/models",
    "/v1/models/run",
    "/v1/models/%00",
    "/v1/completions/",
    "/v1/embeddings",
    "/docs",
    "/%2e%2e/etc",
)


HEADERS = (b"X-Request-ID", b"X-Request-Timeout-Seconds", b"X-Session-Id", b"Content-Encoding", b"Origin")


@dataclass(frozen=True, slots=True, kw_only=True)
class OddRequest:
    """One request as it goes over the wire."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    content: bytes


numbers = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**53, 2**63, -(2**63), 2**64, 10**400]),
    st.floats(),
    st.sampled_from([float("nan"), float("inf"), 1e-300, 1e308, -0.0]),
)
texts = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=20),
    st.sampled_from(["", "\ud800", "\x00", "x" * 5000, "a\r\nb\x1b[31m"]),
)
schemas = st.sampled_from([{"$ref": "#"}, {"type": "object", "properties": {"a": {"$ref": "#"}}}, {"pattern": "(a+)+b"}])
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts, schemas),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)
messages = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "developer"]), "content": texts}),
        st.fixed_dictionaries({"role": texts, "content": values}, optional={"name": texts, "tool_calls": values}),
    ),
    max_size=4,
)
good_messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "developer"]), "content": st.text(max_size=20)}
    ),
    min_size=1,
    max_size=4,
)
token_ids = st.lists(st.integers(0, 400), min_size=1, max_size=8)  # some beyond the tiny model's vocabulary
good_prompts = st.one_of(st.text(max_size=20), st.lists(st.text(max_size=20), min_size=1, max_size=3), token_ids)
IN_RANGE: dict[str, st.SearchStrategy[Any]] = {  # of fields that both routes take
    "n": st.integers(1, 8),
    "seed": st.integers(0, 2**53 - 1),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1, exclude_min=True),
    "top_k": st.integers(-1, 2**31 - 1),
    "min_p": st.floats(0, 1),
    "frequency_penalty": st.floats(-2, 2),
    "presence_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.1, 2),
    "logit_bias": st.dictionaries(st.integers(0, 400).map(str), st.floats(-100, 100), max_size=5),
    "stop": st.one_of(st.text(min_size=1, max_size=3), st.lists(st.text(min_size=1, max_size=3), max_size=4)),
    "stream": st.booleans(),
    "ignore_eos": st.booleans(),
    "min_tokens": st.integers(0, 3),
    "max_tokens": st.integers(0, 4),
    "skip_special_tokens": st.booleans(),
    "return_token_ids": st.booleans(),
}
OF_COMPLETIONS = {"logprobs": st.integers(0, 20), "echo": st.booleans()}
OF_CHAT = {"logprobs": st.booleans(), "top_logprobs": st.just(0), "max_completion_tokens": st.integers(1, 4)}


def some_of(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Each field or not, with a value in its range."""
    return st.fixed_dictionaries({}, optional=fields)


labels = st.binary(max_size=12).map(lambda raw: bytes(byte for byte in raw if byte >= 32 and byte != 127).strip())


def seldom(draw: st.DrawFn) -> bool:
    """Once in ten times; hypothesis prefers small numbers, so not the smallest."""
    return draw(st.integers(0, 9)) == 7


@st.composite
def odd_requests(draw: st.DrawFn) -> OddRequest:
    """A body in every range, or one with a few fields that are not; seldom no body of ours at all."""
    path = draw(st.sampled_from(OTHER_PATHS if seldom(draw) else [*ROUTES]))
    method = draw(st.sampled_from(["GET", "PUT", "DELETE", "OPTIONS", "PATCH"])) if seldom(draw) else "POST"
    fields = ROUTES.get(path, CompletionFields)
    body: dict[str, Any] = {"max_tokens": 2}
    is_odd = draw(st.booleans())
    if fields is ChatFields:
        body |= {"messages": draw(messages if is_odd else good_messages)} | draw(some_of(IN_RANGE | OF_CHAT))
    else:
        body |= {"prompt": draw(st.one_of(texts, values) if is_odd else good_prompts)} | draw(some_of(IN_RANGE | OF_COMPLETIONS))
    if is_odd:
        names = st.sampled_from([*fields.model_fields, *REFUSED, "priority", "bad_words", "extra"])
        body |= draw(st.dictionaries(st.one_of(names, texts), st.one_of(values, numbers), max_size=3))
    content = json.dumps(body).encode()
    if seldom(draw):
        content = draw(st.one_of(st.just(content[: len(content) // 2]), st.binary(max_size=50), st.just(b"[" * 100_000)))
    headers = {b"Content-Type": b"application/json"}
    if seldom(draw):
        headers |= draw(st.dictionaries(st.sampled_from(HEADERS), labels, max_size=2))
    return OddRequest(method=method, path=path, headers=headers, content=content)
