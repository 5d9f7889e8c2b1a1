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
labels = st.binary(max_size=12).map(lambda raw: bytes(byte for byte in raw if byte >= 32 and byte != 127).strip())


@st.composite
def odd_requests(draw: st.DrawFn) -> OddRequest:
    """Mostly a body that is nearly right: a good one with a few fields changed, added or left out."""
    path = draw(st.sampled_from([*ROUTES, *ROUTES, *ROUTES, *OTHER_PATHS]))
    method = draw(st.sampled_from(["POST"] * 8 + ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"]))
    fields = ROUTES.get(path, CompletionFields)
    body: dict[str, Any] = {"max_tokens": 2}
    body |= {"messages": draw(messages)} if fields is ChatFields else {"prompt": draw(st.one_of(texts, values))}
    names = st.sampled_from([*fields.model_fields, *REFUSED, "priority", "bad_words", "extra"])
    body |= draw(st.dictionaries(st.one_of(names, texts), st.one_of(values, numbers), max_size=3))
    content = json.dumps(body).encode()
    if draw(st.integers(0, 9)) == 0:
        content = draw(st.one_of(st.just(content[: len(content) // 2]), st.binary(max_size=50), st.just(b"[" * 100_000)))
    headers = {b"Content-Type": b"application/json"}
    headers |= draw(
        st.dictionaries(
            st.sampled_from([b"X-Request-ID", b"X-Request-Timeout-Seconds", b"X-Session-Id", b"Content-Encoding", b"Origin"]),
            labels,
            max_size=2,
        )
    )
    return OddRequest(method=method, path=path, headers=headers, content=content)
