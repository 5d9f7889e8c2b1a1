"""`rayward chat` against a real HTTP server that speaks the OpenAI stream."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.errors import ConfigError, DataError, EndpointError
from cluster.messages import Message
from rayward import app
from serving.chat.client import PolicyClient, endpoint_url
from serving.chat.conversation import COMMANDS, Conversation, typed_lines
from serving.chat.judge import Judge
from tests.serving.chat.endpoint_double import EndpointDouble, endpoint_double

ROOT = Path(__file__).parents[3]
KEY = "rk_4f1d"


@pytest.fixture
def endpoint() -> Iterator[EndpointDouble]:
    with endpoint_double() as server:
        yield server


class FakeJudge(Judge):
    """Scores a conversation with its number of messages."""

    def __init__(self) -> None:
        self.folder = Path("judge")

    def score(self, messages: Any) -> float:
        return float(len(messages))


def talk(endpoint: EndpointDouble, *lines: str, **settings: Any) -> str:
    """What stands on the screen after these lines."""
    written: list[str] = []
    client = PolicyClient(endpoint.url, max_tokens=16)
    Conversation(client, written.append, **settings).run(lines)
    return "".join(written)


def test_an_answer_arrives_in_pieces_with_the_version_that_wrote_it(endpoint: EndpointDouble) -> None:
    endpoint.say("Good ", "morning", ".")
    assert talk(endpoint, "Hello") == "night v10> Good morning.\n"
    assert endpoint.asked == [
        {
            "route": "/v1/chat/completions",
            "model": "night",
            "stream": True,
            "max_tokens": 16,
            "messages": [{"role": "user", "content": "Hello"}],
        }
    ]


def test_each_turn_sends_the_conversation_so_far_until_it_is_reset(endpoint: EndpointDouble) -> None:
    for text in ("A", "B", "C"):
        endpoint.say(text, version="")
    shown = talk(endpoint, "one", "two", "/history", "/reset", "three", system="Be brief.")
    system = {"role": "system", "content": "Be brief."}
    first = [system, {"role": "user", "content": "one"}]
    assert [asked["messages"] for asked in endpoint.asked] == [
        first,
        [*first, {"role": "assistant", "content": "A"}, {"role": "user", "content": "two"}],
        [system, {"role": "user", "content": "three"}],
    ]
    assert "night> A\nnight> B\nsystem> Be brief.\nuser> one\nassistant> A\nuser> two\nassistant> B\n" in shown


def test_a_plain_line_is_continued_by_itself(endpoint: EndpointDouble) -> None:
    endpoint.say(" is good")
    endpoint.say(" is bad")
    shown = talk(endpoint, "This film", "That film", "/score", prompt_format="plain", judge=FakeJudge())
    assert [(asked["route"], asked["prompt"]) for asked in endpoint.asked] == [
        ("/v1/completions", "This film"),
        ("/v1/completions", "That film"),
    ]
    assert shown.endswith("score +2.000, by judge\n")  # the last line and how it goes on


def test_the_last_answer_is_scored_with_what_led_to_it(endpoint: EndpointDouble) -> None:
    endpoint.say("A")
    endpoint.say("B")
    shown = talk(endpoint, "/score", "one", "two", "/score", judge=FakeJudge())
    assert shown.startswith("nothing to score yet\n")
    assert shown.endswith("loading the reward model ...\nscore +4.000, by judge\n")
    assert "no reward model: start `rayward chat` with --scorer" in talk(endpoint, "/score")


def test_commands_and_lines_that_look_like_one(endpoint: EndpointDouble) -> None:
    endpoint.say("A")
    shown = talk(endpoint, "", "  ", "/help", "/rest", "//etc", "/quit", "not read")
    assert all(f"{command}" in shown for command in COMMANDS)
    assert "unknown command '/rest'; /help lists them\n" in shown
    assert [asked["messages"][-1]["content"] for asked in endpoint.asked] == ["/etc"]


def test_what_could_drive_the_terminal_becomes_visible(endpoint: EndpointDouble) -> None:
    endpoint.say("\x1b[2Jred\r", "caf\u00e9\n")
    assert talk(endpoint, "Hello") == "night v10> \ufffd[2Jred\ufffdcaf\u00e9\n\n"


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([{"error": {"message": "the engine was lost"}}], "the endpoint broke the answer off: the engine was lost"),
        ([], "the endpoint ended the answer too early"),
        (["data: {nonsense"], "the endpoint sent an event that the OpenAI API does not have: '{nonsense'"),
        (["data: []"], "the endpoint sent an event that the OpenAI API does not have: '[]'"),
    ],
)
def test_an_answer_that_breaks_off_is_told_and_the_talk_goes_on(endpoint: EndpointDouble, events: list[Any], told: str) -> None:
    endpoint.send(200, {"pieces": "Good "}, *events)
    endpoint.say("B")
    shown = talk(endpoint, "one", "two")
    assert shown == f"night> Good \nerror: {told}\nnight v10> B\n"
    assert [turn["content"] for turn in endpoint.asked[1]["messages"]] == ["one", "Good ", "two"]


def test_an_answer_without_a_piece_ends_its_line(endpoint: EndpointDouble) -> None:
    endpoint.send(200)
    endpoint.say()
    assert talk(endpoint, "one", "two") == "night> \nerror: the endpoint ended the answer too early\nnight v10> \n"


@pytest.mark.parametrize(
    ("status", "headers", "body", "told"),
    [
        (
            400,
            {},
            {"error": {"message": "too long"}},
            "the endpoint refused the request, 400: too long",
        ),
        (
            400,
            {},
            {"error": {"message": "200 tokens", "code": "context_length_exceeded"}},
            "longer than the policy can read; /reset forgets the conversation so far (200 tokens)",
        ),
        (401, {}, {"error": {"message": "no key"}}, "asks for a key: set RAYWARD_API_KEY to one that it knows (401: no key)"),
        (404, {}, {"error": {"message": "no model"}}, "knows no such model or route; name a model with --model (no model)"),
        (429, {"Retry_After": "7"}, "busy\x1b[2J", "the endpoint is busy; try again in 7 s (busy\ufffd[2J\n)"),
        (500, {}, "x" * 1000, f"the endpoint refused the request, 500: {'x' * 200}\n"),
        (307, {"Location": "http://127.0.0.1:1/"}, "", "the endpoint refused the request, 307: "),
    ],
)
def test_a_refused_line_is_forgotten_and_says_what_to_do(
    endpoint: EndpointDouble, status: int, headers: dict[str, str], body: Any, told: str
) -> None:
    endpoint.say("A")
    client = PolicyClient(endpoint.url, max_tokens=16)
    endpoint.replies.insert(0, (status, headers, [body if isinstance(body, str) else json.dumps(body)]))
    written: list[str] = []
    Conversation(client, written.append).run(["one", "two"])
    assert told in "".join(written)
    assert [turn["content"] for turn in endpoint.asked[1]["messages"]] == ["two"]


def test_ctrl_c_stops_an_answer_and_not_the_talk(endpoint: EndpointDouble) -> None:
    endpoint.say("Good ", "morning")
    endpoint.say("B")
    written: list[str] = []

    def interrupt_after_the_first_piece(text: str) -> None:
        written.append(text)
        if text == "Good ":
            raise KeyboardInterrupt

    Conversation(PolicyClient(endpoint.url, max_tokens=16), interrupt_after_the_first_piece).run(["one", "two"])
    assert "".join(written) == "night v10> Good  (stopped)\nnight v10> B\n"
    assert [turn["content"] for turn in endpoint.asked[1]["messages"]] == ["one", "Good ", "two"]


def test_ctrl_c_before_the_first_piece_ends_the_line(endpoint: EndpointDouble) -> None:
    endpoint.say("Good")
    written: list[str] = []

    def interrupt_at_once(text: str) -> None:
        written.append(text)
        if text == "night v10> ":
            raise KeyboardInterrupt

    Conversation(PolicyClient(endpoint.url, max_tokens=16), interrupt_at_once).run(["one", "/history"])
    assert "".join(written) == "night v10>  (stopped)\nnothing is said yet\n"


def test_typed_lines_end_with_ctrl_d_and_ctrl_c_gives_up_one() -> None:
    typed: Iterator[str | type[BaseException]] = iter(["one", KeyboardInterrupt, "two", EOFError])
    dropped: list[str] = []

    def ask() -> str:
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    assert list(typed_lines(ask, lambda: dropped.append("line"))) == ["one", "two"]
    assert dropped == ["line"]


@pytest.mark.parametrize(
    "given", ["127.0.0.1:8000", "http://127.0.0.1:8000", "http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"]
)
def test_a_url_is_taken_as_people_write_it(given: str) -> None:
    assert endpoint_url(given) == "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize("given", ["ftp://host", "http://", "file:///etc/passwd", "http://me:secret@127.0.0.1:8000"])
def test_what_is_no_url_of_an_endpoint_is_refused(given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        endpoint_url(given)
    assert "secret" not in str(caught.value)


def test_the_key_is_sent_and_no_message_holds_it(endpoint: EndpointDouble) -> None:
    endpoint.say("A")
    client = PolicyClient(endpoint.url, key=KEY, max_tokens=16)
    with client.chat([Message(role="user", content="Hello")]) as answer:
        assert list(answer.pieces) == ["A"]
    assert endpoint.authorizations == [f"Bearer {KEY}"] * 2
    for url, key in (("http://192.0.2.1:8000", KEY), (endpoint.url, f"{KEY}\n"), (endpoint.url, f"{KEY}\u00e9")):
        with pytest.raises(ConfigError, match="RAYWARD_API_KEY") as caught:
            PolicyClient(url, key=key, max_tokens=16)
        assert KEY not in str(caught.value)


def test_something_else_at_the_address_is_told(endpoint: EndpointDouble) -> None:
    endpoint.send(404, "Not Found")
    with pytest.raises(EndpointError, match="knows no such model or route"):
        PolicyClient(endpoint.url, max_tokens=16)


def test_no_endpoint_is_one_clear_line() -> None:
    with endpoint_double() as gone:
        url = gone.url
    with pytest.raises(EndpointError, match=f"no endpoint answers at {url}/v1 .*; start one with `rayward serve RUN`"):
        PolicyClient(url, max_tokens=16)


def test_the_command_reads_a_pipe_and_takes_the_key_from_the_environment(endpoint: EndpointDouble) -> None:
    endpoint.say("A")
    done = subprocess.run(
        [sys.executable, "-m", "rayward", "chat", endpoint.url, "--max-tokens=7", "--temperature=0", "--model=other"],
        input="Hello\n",
        env={**os.environ, "RAYWARD_API_KEY": KEY},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "other v10> A\n"
    assert done.stderr == f"other at {endpoint.url}/v1. /help lists commands, Ctrl-D ends.\n"
    (asked,) = endpoint.asked
    assert (asked["model"], asked["max_tokens"], asked["temperature"]) == ("other", 7, 0)
    assert endpoint.authorizations == [f"Bearer {KEY}"]


def test_a_plain_text_has_no_system_message() -> None:
    with pytest.raises(ConfigError, match="--system"):
        CliRunner().invoke(app, ["chat", "--system", "Be brief.", "--prompt-format", "plain"], catch_exceptions=False)


def test_a_scorer_that_is_none_is_told_before_the_endpoint_is_asked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a reward model: it has no config.json"):
        CliRunner().invoke(app, ["chat", "--scorer", str(tmp_path)], catch_exceptions=False)


def test_nothing_large_is_imported_to_talk() -> None:
    command = (
        "import sys, serving.chat.client, serving.chat.conversation\n"
        "print(*(name for name in ('ray', 'torch', 'vllm', 'transformers', 'numpy') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []
