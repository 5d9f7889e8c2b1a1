"""What a request may hold: each limit at its edge and one beyond, and each field that is refused before an engine is asked."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.config import RequestLimits
from serving.guard.request_check import MAX_DETAILS, chat_fields, completion_fields, most_tokens
from tests.serving.front_door import ANSWER, SERVED_BY, FakeEngine, ask, error_of, front_door

USER = {"role": "user", "content": "x"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"$ref": "#"}}}
SMALL = RequestLimits(
    max_messages=2,
    max_prompts=2,
    max_samples=2,
    max_completion_tokens=8,
    max_stops=2,
    max_logprobs=2,
    max_logit_bias=2,
    max_tools=2,
    max_body_bytes=2000,
    max_header_bytes=1024,
)


def send(body: dict[str, Any], state_dir: Path, *, takes_tools: bool = False) -> tuple[httpx.Response, FakeEngine]:
    """To the route that the body is for."""
    engine = FakeEngine([SERVED_BY, ANSWER])
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    app = front_door(engine, state_dir, limits=SMALL, takes_tools=takes_tools)
    return ask(app, path=path, content=json.dumps(body), headers={"Content-Type": "application/json"}), engine


AT_THE_LIMIT: list[tuple[dict[str, Any], str, Any]] = [
    ({"messages": [USER] * 2}, "messages", [USER] * 3),
    ({"prompt": ["x"] * 2}, "prompt", ["x"] * 3),
    ({"prompt": [[1, 2, 3]] * 2}, "prompt", [[1]] * 3),
    ({"prompt": "x", "n": 2}, "n", 3),
    ({"prompt": "x", "max_tokens": 8}, "max_tokens", 9),
    ({"messages": [USER], "max_tokens": 8}, "max_tokens", 9),
    ({"messages": [USER], "max_completion_tokens": 8}, "max_completion_tokens", 9),
    ({"prompt": "x", "stop": ["a", "b"]}, "stop", ["a", "b", "c"]),
    ({"prompt": "x", "logprobs": 2}, "logprobs", 3),
    ({"messages": [USER], "logprobs": True, "top_logprobs": 2}, "top_logprobs", 3),
    ({"prompt": "x", "logit_bias": {"1": 100, "2": -100}}, "logit_bias", {"1": 1, "2": 1, "3": 1}),
]


@pytest.mark.parametrize(("body", "field", "more"), AT_THE_LIMIT)
def test_each_limit_lets_its_value_pass_and_no_more(tmp_path: Path, body: dict[str, Any], field: str, more: Any) -> None:
    reply, engine = send(body, tmp_path)
    assert (reply.status_code, engine.num_calls) == (200, 1), reply.text
    reply, engine = send({**body, field: more}, tmp_path)
    assert (error_of(reply), reply.json()["error"]["param"]) == ((400, "invalid_request"), field)
    assert engine.num_calls == 0


def test_the_limit_of_tools_counts_where_they_are_served(tmp_path: Path) -> None:
    assert send({"messages": [USER], "tools": [TOOL] * 2}, tmp_path, takes_tools=True)[0].status_code == 200
    reply, _ = send({"messages": [USER], "tools": [TOOL] * 3}, tmp_path, takes_tools=True)
    assert (error_of(reply), reply.json()["error"]["param"]) == ((400, "invalid_request"), "tools")


def test_a_request_that_names_no_maximum_gets_the_cap(tmp_path: Path) -> None:
    for body in ({"prompt": "x"}, {"messages": [USER]}):
        _, engine = send(body, tmp_path)
        assert engine.bodies[0].max_tokens == 8
    _, engine = send({"messages": [USER], "max_completion_tokens": 5}, tmp_path)
    assert (engine.bodies[0].max_tokens, engine.bodies[0].max_completion_tokens) == (None, 5)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [-0.1, 2.1, "1"]),
        ("top_p", [0, 1.1]),
        ("top_k", [-2, 2**31, 1.5]),
        ("min_p", [-0.1, 1.1]),
        ("repetition_penalty", [0, 1e-30, 2.1]),
        ("frequency_penalty", [-2.1, 2.1]),
        ("presence_penalty", [-2.1, 2.1]),
        ("seed", [-1, 2**53, 0.5, True]),
        ("n", [0, -1, True, 1.0]),
        ("max_tokens", [-1, 2**70]),
        ("min_tokens", [-1]),
        ("logit_bias", [{"1": 101}, {"-1": 1}, {"x": 1}, {"1" * 11: 1}, [1]]),
        ("stop", ["", [""], "x" * 1025, [1]]),
        ("logprobs", [-1]),
        ("stream", ["yes", 1]),
        ("stream_options", [{"include_usage": True}, {"other": 1}]),
        ("user", ["x" * 257, 1]),
        ("model", ["", "x" * 257]),
        ("prompt", [None, [], [[]], [-1], [2**31], [[1, -1]], ["x", 1], [None], {"x": 1}]),
        ("response_format", [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}]),
    ],
)
def test_values_that_could_hurt_an_engine_are_refused(tmp_path: Path, field: str, values: list[Any]) -> None:
    for value in values:
        reply, engine = send({"prompt": "x", field: value}, tmp_path)
        assert error_of(reply) == (400, "invalid_request"), value
        assert reply.json()["error"]["param"].startswith(field)
        assert engine.num_calls == 0


@pytest.mark.parametrize(
    "field",
    [
        "chat_template", "chat_template_kwargs", "documents", "mm_processor_kwargs", "media_io_kwargs", "prompt_embeds",
        "use_beam_search", "best_of", "structured_outputs", "guided_json", "guided_regex", "guided_grammar", "priority",
        "cache_salt", "kv_transfer_params", "vllm_xargs", "bad_words", "allowed_token_ids", "stop_token_ids", "prompt_logprobs",
        "truncate_prompt_tokens", "suffix", "echo_", "x" * 300, "a\r\nb\x1b[31m",
    ],
)  # fmt: skip
def test_any_other_field_is_refused_by_name(tmp_path: Path, field: str) -> None:
    for body in ({"prompt": "x"}, {"messages": [USER]}):
        reply, engine = send({**body, field: "a value that is not repeated"}, tmp_path)
        assert error_of(reply) == (400, "invalid_request")
        assert reply.json()["error"]["param"] == "".join(char if char.isprintable() else "?" for char in field)[:64]
        assert "not repeated" not in reply.text
        assert len(reply.text) < 1000
        assert engine.num_calls == 0


@pytest.mark.parametrize(
    "message",
    [
        {"role": "judge", "content": "x"},
        {"role": "x" * 500, "content": "x"},
        {"content": "x"},
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"role": "user", "content": []},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": ""}}]},
        {"role": "user", "content": "x", "extra": 1},
        {"role": "user", "content": "x", "name": "a b"},
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        "text",
        None,
    ],
)
def test_messages_of_other_forms_are_refused(tmp_path: Path, message: Any) -> None:
    reply, engine = send({"messages": [message]}, tmp_path)
    assert error_of(reply) == (400, "invalid_request")
    assert reply.json()["error"]["param"].startswith("messages.0")
    assert "xxx" not in reply.text
    assert engine.num_calls == 0


def test_every_known_role_and_parts_of_text_pass(tmp_path: Path) -> None:
    for role in ("system", "developer", "user", "assistant"):
        assert send({"messages": [{"role": role, "content": [{"type": "text", "text": "x"}]}]}, tmp_path)[0].status_code == 200
    turns = [
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "x", "tool_call_id": "1"},
    ]
    assert send({"messages": turns}, tmp_path, takes_tools=True)[0].status_code == 200


@pytest.mark.parametrize("field", [{"tools": [TOOL]}, {"tool_choice": "auto"}, {"parallel_tool_calls": True}])
def test_tools_are_refused_without_a_parser_and_pass_with_one(tmp_path: Path, field: dict[str, Any]) -> None:
    body = {"messages": [USER], "tools": [TOOL], **field}
    reply, engine = send({"messages": [USER], **field}, tmp_path)
    assert (error_of(reply)[0], engine.num_calls) == (400, 0)
    assert "tool parser" in reply.json()["error"]["message"]
    assert send(body, tmp_path, takes_tools=True)[0].status_code == 200


def test_a_grammar_cannot_be_asked_for_by_a_choice_of_tool(tmp_path: Path) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "add"}}):
        reply, _ = send({"messages": [USER], "tools": [TOOL], "tool_choice": choice}, tmp_path, takes_tools=True)
        assert (error_of(reply)[0], reply.json()["error"]["param"]) == (400, "tool_choice")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"null", b"[1]", b"{", b"\xff\xfe", b"[" * 1900, b'{"prompt": "x", "n": NaN}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "\\ud800"}', b'{"prompt": "x", "seed": ' + b"9" * 1900 + b"}",
    ],
    ids=["empty", "null", "list", "cut", "no UTF-8", "deep", "NaN", "infinite", "half a character", "long number"],
)  # fmt: skip
def test_a_body_that_is_no_json_object_of_ours_is_refused(tmp_path: Path, content: bytes) -> None:
    app = front_door(FakeEngine(), tmp_path, limits=SMALL)
    assert error_of(ask(app, content=content, headers={"Content-Type": "application/json"})) == (400, "invalid_request")


def test_many_problems_are_counted_and_not_listed() -> None:
    body = json.dumps({"prompt": "x", **{str(number): 0 for number in range(MAX_DETAILS + 1)}}).encode()
    with pytest.raises(Exception, match=f"in {MAX_DETAILS + 1} places"):
        completion_fields(body, RequestLimits())


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": "abc", "max_tokens": 5}, 3 + 5),
        ({"prompt": "abc"}, 3 + 16),
        ({"prompt": ["abc", "d"], "n": 2, "max_tokens": 5}, 3 + 1 + 4 * 5),
        ({"prompt": [[1, 2], [3]], "max_tokens": 1}, 2 + 1 + 2),
        ({"prompt": "x" * 1000, "max_tokens": 1000}, 100 + 100),
    ],
)
def test_the_most_tokens_that_a_completion_can_use(body: dict[str, Any], tokens: int) -> None:
    limits = RequestLimits()
    assert most_tokens(completion_fields(json.dumps(body).encode(), limits), limits, 100) == tokens


def test_the_most_tokens_that_a_conversation_can_use() -> None:
    def tokens(limits: RequestLimits, **fields: Any) -> int:
        body = json.dumps({"messages": [{"role": "user", "content": "x" * 200}], **fields}).encode()
        return most_tokens(chat_fields(body, limits, takes_tools=False), limits, 100)

    assert tokens(RequestLimits()) == 200
    assert tokens(RequestLimits(max_completion_tokens=7)) == 107
    assert tokens(RequestLimits(), max_tokens=5, n=3) == 115
