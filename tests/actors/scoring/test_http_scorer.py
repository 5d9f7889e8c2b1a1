"""A scorer behind HTTP, against a real server on loopback that answers as each test says."""

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from actors.config import HttpScorerConfig
from actors.scoring import http_scorer
from actors.scoring.http_scorer import HttpScorer
from cluster.errors import ConfigError, RaywardError
from cluster.types import Score, Trajectory, Unscored

DRIP_S = 0.05


class Server(ThreadingHTTPServer):
    """Answers each request with the next reply, and the last one for ever after."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.replies: list[Callable[[Answering], None]] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/score"


class Answering(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.headers.append(dict(self.headers))
        replies = self.server.replies
        (replies.pop(0) if len(replies) > 1 else replies[0])(self)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def reply(status: int, body: bytes | None = None, **headers: str) -> Callable[[Answering], None]:
    """Without a body: the length of each completion."""

    def answer(handler: Answering) -> None:
        items = handler.server.requests[-1]["items"]
        content = json.dumps({"scores": [len(item["completion"]) for item in items]}).encode() if body is None else body
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def hang_up(handler: Answering) -> None:
    handler.close_connection = True


def hang(handler: Answering) -> None:
    handler.server.stopped.wait()


def drip(handler: Answering) -> None:
    """Never done, but never silent for long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not handler.server.stopped.wait(DRIP_S):
        handler.wfile.write(b" ")


GOOD = reply(200)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stopped.set()
    server.shutdown()
    thread.join()
    server.server_close()


def scorer(server: Server, waits: list[float] | None = None, **settings: Any) -> HttpScorer:
    config = HttpScorerConfig.model_validate({"url": server.url, "timeout_s": 5, **settings})
    return HttpScorer(config, sleep=([] if waits is None else waits).append)


def problems_of(scores: Sequence[Score | Unscored]) -> list[str]:
    """Of trajectories that all have no score."""
    return [score.problem for score in scores if isinstance(score, Unscored)] if scores else []


def test_a_batch_without_a_good_reply_has_no_scores_and_the_others_have(
    server: Server, judged: Callable[..., Trajectory]
) -> None:
    server.replies = [GOOD, reply(200, b"{}"), GOOD]
    scores = scorer(server, batch_size=1).score([judged("a"), judged("bb"), judged("ccc")])
    assert [scores[0], scores[2]] == [Score(value=1.0), Score(value=3.0)]
    assert isinstance(scores[1], Unscored)


def test_trajectories_go_out_in_batches_and_scores_come_back(server: Server, judged: Callable[..., Trajectory]) -> None:
    server.replies = [GOOD]
    trajectories = [judged("a", task_id="t/1", reference="r", prompt="p "), judged("bb"), judged("ccc")]
    assert scorer(server, batch_size=2).score(trajectories) == [Score(value=1.0), Score(value=2.0), Score(value=3.0)]
    assert [len(request["items"]) for request in server.requests] == [2, 1]
    assert server.requests[0]["items"][0] == {"task_id": "t/1", "prompt": "p ", "completion": "a", "reference": "r"}


def test_no_trajectories_make_no_request(server: Server) -> None:
    assert scorer(server).score([]) == []
    assert server.requests == []


@pytest.mark.parametrize("failure", [reply(500, b"oops"), reply(503, b""), reply(429, b"slower"), hang_up])
def test_what_may_pass_is_tried_again_after_growing_waits(
    server: Server, judged: Callable[..., Trajectory], failure: Callable[[Answering], None]
) -> None:
    server.replies = [failure, failure, failure, GOOD]
    waits: list[float] = []
    assert scorer(server, waits, max_retries=3).score([judged("four")]) == [Score(value=4.0)]
    assert len(server.requests) == 4
    # 0.5 s, 1 s, 2 s, each shortened by up to a half
    assert all(base / 2 <= wait <= base for wait, base in zip(waits, [0.5, 1.0, 2.0], strict=True))


def test_retries_end_with_an_error_and_never_with_a_score(server: Server, judged: Callable[..., Trajectory]) -> None:
    server.replies = [reply(500, b"still broken")]
    waits: list[float] = []
    problems = problems_of(scorer(server, waits, max_retries=2).score([judged("x"), judged("y")]))
    assert re.search(r"scorer 'http' at http://127.*/score: status 500: 'still broken'; gave up after 3", problems[0])
    assert len(problems) == 2
    assert (len(server.requests), len(waits)) == (3, 2)


def test_waits_do_not_grow_for_ever(server: Server, judged: Callable[..., Trajectory]) -> None:
    server.replies = [reply(500, b"")]
    waits: list[float] = []
    problems_of(scorer(server, waits, max_retries=12).score([judged("x")]))
    assert all(15 <= wait <= 30 for wait in waits[6:])  # 0.5 x 2**6 = 32 is capped at 30


@pytest.mark.parametrize(("stall", "problem"), [(hang, "ReadTimeout"), (drip, "was not complete after 0.2 s")])
def test_a_server_that_stalls_is_left(
    server: Server, judged: Callable[..., Trajectory], stall: Callable[[Answering], None], problem: str
) -> None:
    server.replies = [stall]
    assert problem in problems_of(scorer(server, timeout_s=0.2, max_retries=1).score([judged("x")]))[0]
    assert len(server.requests) == 2


def test_nobody_listening_is_no_score(server: Server, judged: Callable[..., Trajectory]) -> None:
    config = HttpScorerConfig.model_validate({"url": "http://127.0.0.1:1/", "max_retries": 0})
    assert re.search("ConnectError.*gave up after 1 tries", problems_of(HttpScorer(config).score([judged("x")]))[0])


def test_a_redirect_is_not_followed(server: Server, judged: Callable[..., Trajectory]) -> None:
    server.replies = [reply(307, b"", Location=f"{server.url}/elsewhere"), GOOD]
    with pytest.raises(RaywardError, match="redirects to 'http.*/score/elsewhere', and redirects are not followed"):
        scorer(server).score([judged("x")])
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_a_wrong_address_or_key_ends_the_run_at_the_first_request(
    server: Server, judged: Callable[..., Trajectory], status: int
) -> None:
    server.replies = [reply(status, b"no such page")]
    with pytest.raises(RaywardError, match=f"refused the request: status {status}: 'no such page'"):
        scorer(server).score([judged("x"), judged("y")])
    assert len(server.requests) == 1


@pytest.mark.parametrize("failure", [reply(403, b"key expired"), reply(404, b""), reply(302, b"", Location="http://login/")])
def test_after_a_good_reply_they_cost_a_batch(
    server: Server, judged: Callable[..., Trajectory], failure: Callable[[Answering], None]
) -> None:
    server.replies = [GOOD, failure, GOOD]
    scores = scorer(server, batch_size=2).score([judged(text) for text in ("a", "b", "c", "d", "e")])
    assert [isinstance(score, Unscored) for score in scores] == [False, False, True, True, False]
    assert len(server.requests) == 3


def refuse_long_ones(handler: Answering) -> None:
    items = handler.server.requests[-1]["items"]
    (reply(413, b"too long") if any(len(item["completion"]) > 3 for item in items) else GOOD)(handler)


@pytest.mark.parametrize("num_before", [0, 2])
def test_a_completion_that_the_judge_refuses_is_one_trajectory(
    server: Server, judged: Callable[..., Trajectory], num_before: int
) -> None:
    server.replies = [refuse_long_ones]
    texts = [*["a"] * num_before, "much too long", "bb", "ccc"]
    scores = scorer(server, batch_size=8).score([judged(text) for text in texts])
    (refused,) = problems_of(scores[num_before : num_before + 1])
    assert "refused the request: status 413: 'too long'" in refused
    assert scores[num_before + 1 :] == [Score(value=2.0), Score(value=3.0)]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "body: Invalid JSON"),
        (b"<html>", "body: Invalid JSON"),
        (b"[1.0]", "body: "),
        (b"{}", "scores: Field required"),
        (b'{"scores": null}', "scores: "),
        (b'{"scores": [NaN]}', "scores.0: Input should be a finite number"),
        (b'{"scores": [1e999]}', "scores.0: Input should be a finite number"),
        (b'{"scores": [null]}', "scores.0: Input should be a valid number"),
        (b'{"scores": ["1"]}', "scores.0: Input should be a valid number"),
        (b'{"scores": [true]}', "scores.0: Input should be a valid number"),
        (b'{"scores": [1], "error": "x"}', "error: Extra inputs are not permitted"),
        (b'{"scores": []}', "returned 0 scores for 1 trajectories"),
        (b'{"scores": [1, 2]}', "returned 2 scores for 1 trajectories"),
    ],
)
def test_a_bad_reply_is_refused(server: Server, judged: Callable[..., Trajectory], body: bytes, problem: str) -> None:
    server.replies = [reply(200, body)]
    assert problem in problems_of(scorer(server).score([judged("x")]))[0]
    assert len(server.requests) == 1


def test_a_reply_without_end_is_refused(
    server: Server, judged: Callable[..., Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_scorer, "MAX_REPLY_BYTES", 1000)
    server.replies = [reply(200, b" " * 1001)]
    assert "replied with more than 1000 bytes" in problems_of(scorer(server).score([judged("x")]))[0]


def test_secrets_come_from_the_environment_and_proxies_do_not(
    server: Server, judged: Callable[..., Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", "Bearer 123")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    server.replies = [GOOD]
    assert scorer(server, headers_from_env={"Authorization": "JUDGE_TOKEN"}).score([judged("x")]) == [Score(value=1.0)]
    assert server.headers[0]["Authorization"] == "Bearer 123"


def test_a_machine_without_the_secret_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", "x")
    config = HttpScorerConfig.model_validate({"url": server.url, "headers_from_env": {"Authorization": "JUDGE_TOKEN"}})
    monkeypatch.delenv("JUDGE_TOKEN")
    with pytest.raises(ConfigError, match="not set on this machine: JUDGE_TOKEN"):
        HttpScorer(config)
