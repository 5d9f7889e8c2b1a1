"""A reward model behind HTTP, asked by the scorer of kind http. The model is tiny, float32, in this process."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn

from actors.config import HttpScorerConfig, RewardModelScorerConfig
from actors.scoring.http_scorer import HttpScorer
from actors.scoring.reward_head import start_reward_model
from actors.scoring.scorer import RewardModelScorer
from actors.sources.models import resolve_model
from actors.sources.tiny_model import byte_tokenizer
from cluster.errors import ConfigError, RaywardError
from cluster.messages import Message
from cluster.types import Prompt, Score, Task, Trajectory, Unscored
from serving.guard.application import Guard
from serving.guard.keys.key_file import add_key
from serving.scorer.api import ScorerDesk, build_scorer_application
from serving.scorer.config import ScorerLimits, ServeScorerConfig
from serving.scorer.server import ServedScorer, build_scorer
from tests.records import completion

TEXTS = ("a splendid film", "dull", "", "not bad at all", "x" * 300)  # the last has more tokens than a text may have
MAX_TOKENS = 64
VARIABLE = "TEST_SCORER_AUTHORIZATION"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that trained a reward model."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    model = start_reward_model(resolve_model("tiny"), dtype="float32", num_layers=None)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(run / "reward_model")
    byte_tokenizer().save_pretrained(run / "reward_model")
    return run


def scorer_config(model: Path) -> RewardModelScorerConfig:
    return RewardModelScorerConfig(model=str(model), dtype="float32", num_threads=1, max_tokens=MAX_TOKENS)


def trajectory(index: int, text: str) -> Trajectory:
    task = Task(task_id=f"t/{index}", messages=(Message(role="user", content="Say."),), reference="r")
    prompt = Prompt(task=task, text="Say. ", token_ids=(5,))
    return Trajectory(prompt=prompt, sample_index=0, completion=completion(7, text=text))


@contextmanager
def answering(served: ServedScorer) -> Iterator[str]:
    """Its address, while a thread answers."""
    server = uvicorn.Server(uvicorn.Config(served.app, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [served.socket]})
    served.socket.listen()  # a request that comes before the thread is ready waits
    thread.start()
    try:
        yield served.url
    finally:
        server.should_exit = True
        thread.join()


def scores(url: str, *, batch_size: int = 32, **fields: Any) -> list[Score | Unscored]:
    config = HttpScorerConfig.model_validate({"url": url, "batch_size": batch_size, **fields})
    return HttpScorer(config, sleep=lambda _: None).score([trajectory(index, text) for index, text in enumerate(TEXTS)])


def test_a_scorer_behind_http_says_what_it_says_beside_the_run(run_dir: Path) -> None:
    """The text that is too long has no score there either, and costs the others nothing; more items than allowed come singly."""
    local = RewardModelScorer(scorer_config(run_dir / "reward_model"), "plain")
    expected = local.score([trajectory(index, text) for index, text in enumerate(TEXTS)])
    values = [score.value for score in expected if isinstance(score, Score)]
    assert len(set(values)) == len(TEXTS) - 1
    config = ServeScorerConfig(port=0, scorer=scorer_config(run_dir), limits=ScorerLimits(max_items=4))
    with answering(build_scorer(config)) as url:
        assert httpx.get(url.replace("/score", "/health")).json() == {"status": "ok"}
        for batch_size in (2, 32):
            *judged, too_long = scores(url, batch_size=batch_size)
            assert [score.value for score in judged if isinstance(score, Score)] == pytest.approx(values, abs=1e-5)
            assert isinstance(too_long, Unscored)
            assert "more than max_tokens=64" in too_long.problem


def test_keys_are_those_of_an_endpoint(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys.json"
    key, other = add_key(keys, "run", ["inference"]), add_key(keys, "other", ["feedback"])
    config = ServeScorerConfig(port=0, scorer=scorer_config(run_dir), keys=str(keys), log_dir=str(tmp_path / "logs"))
    with answering(build_scorer(config)) as url:
        with pytest.raises(RaywardError, match="status 401"):
            scores(url)
        monkeypatch.setenv(VARIABLE, f"Bearer {other}")
        with pytest.raises(RaywardError, match="status 403"):
            scores(url, headers_from_env={"Authorization": VARIABLE})
        monkeypatch.setenv(VARIABLE, f"Bearer {key}")
        judged = scores(url, headers_from_env={"Authorization": VARIABLE})
    assert [isinstance(score, Score) for score in judged] == [True] * 4 + [False]
    (log,) = (tmp_path / "logs").iterdir()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["path"], line["status"]) for line in lines[:3]] == [("/score", 401), ("/score", 403), ("/score", 400)]
    assert {line.get("key") for line in lines} == {None, "run"}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [({"host": "0.0.0.0", "keys": "/nowhere/keys.json"}, "needs keys"), ({"host": "192.0.2.1", "keys": None}, "needs keys")],
)
def test_others_are_answered_with_keys_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], problem: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=problem):
        build_scorer(ServeScorerConfig(scorer=scorer_config(tmp_path), **settings))


class Lengths:
    """Scores a text by its length, once it may."""

    def __init__(self) -> None:
        self.may_go = threading.Event()
        self.has_begun = threading.Event()

    def score_texts(self, texts: Sequence[str]) -> list[float | Unscored]:
        self.has_begun.set()
        self.may_go.wait()
        return [float("nan") if text == "nan" else float(len(text)) for text in texts]


def ask(scorer: Lengths, *bodies: Any, max_waiting: int = 8) -> list[httpx.Response]:
    """Requests one after the other; the first ones wait in the scorer until the last has been sent."""

    async def ask_all() -> list[httpx.Response]:
        guard = Guard(limits=ScorerLimits(max_body_bytes=1024), timeout_s=60, log_folder=None)
        desk = ScorerDesk(scorer, max_waiting=max_waiting)
        app = build_scorer_application(guard, None, desk, max_items=2, max_text_tokens=MAX_TOKENS)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            *early, last = [json.dumps(body) if not isinstance(body, str) else body for body in bodies]
            headers = {"Content-Type": "application/json"}
            tasks = [asyncio.create_task(client.post("/score", content=body, headers=headers)) for body in early]
            if early:
                await asyncio.to_thread(scorer.has_begun.wait)
            reply = await client.post("/score", content=last, headers=headers) if early else None
            scorer.may_go.set()
            if reply is None:
                reply = await client.post("/score", content=last, headers=headers)
            return [*(await asyncio.gather(*tasks)), reply]

    return asyncio.run(ask_all())


def items(*completions: str) -> dict[str, Any]:
    return {"items": [{"task_id": "t", "prompt": "", "completion": text, "reference": ""} for text in completions]}


def test_a_busy_scorer_says_when_to_ask_again() -> None:
    first, second = ask(Lengths(), items("abc"), items("ab"), max_waiting=1)
    assert first.json() == {"scores": [3.0]}
    assert (second.status_code, second.headers["Retry-After"], second.json()["error"]["code"]) == (429, "1", "scorer_busy")


@pytest.mark.parametrize(
    ("body", "status", "code", "told"),
    [
        ("{", 400, "invalid_request", "body"),
        ({}, 400, "invalid_request", "items"),
        ({"items": [{"task_id": "t", "prompt": "", "completion": 1, "reference": ""}]}, 400, "invalid_request", "completion"),
        ({**items(), "model": "x"}, 400, "invalid_request", "model"),
        (items("a", "b", "c"), 400, "too_many_items", "3 items are more than 2"),
        (items("ok", "nan"), 400, "not_scorable", "items.1: the score is not finite"),
        (items("x" * 2000), 413, "request_too_large", "1024 bytes"),
    ],
)
def test_what_is_refused_is_named(body: Any, status: int, code: str, told: str) -> None:
    (reply,) = ask(Lengths(), body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (status, code)
    assert told in error["message"]


def test_no_items_have_no_scores() -> None:
    assert ask(Lengths(), items())[0].json() == {"scores": []}


def test_other_routes_do_not_exist() -> None:
    async def get(path: str) -> int:
        guard = Guard(limits=ScorerLimits(), timeout_s=60, log_folder=None)
        app = build_scorer_application(guard, None, ScorerDesk(Lengths(), max_waiting=1), max_items=2, max_text_tokens=1)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return (await client.get(path)).status_code

    assert [asyncio.run(get(path)) for path in ("/docs", "/openapi.json", "/score", "/")] == [404, 404, 405, 404]


@pytest.mark.usefixtures("ctrl_c_reaches_children")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(run_dir: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "rayward", "serve-scorer", str(run_dir), "--port", "0", "scorer.dtype=float32"],
        cwd=Path(__file__).resolve().parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    while "answers at" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    url = next(word.rstrip(";") for word in said.split() if word.startswith("http://"))
    assert len(scores(url)) == len(TEXTS)
    process.send_signal(number)
    _, rest = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in rest) == (130, False)
