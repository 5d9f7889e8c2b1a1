"""Clients that ask an endpoint at the same time, and what became of each request."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import openai

VERSION_HEADER = "X-Policy-Version"
DONE = "data: [DONE]"
ENDS = ('"finish_reason":"stop"', '"finish_reason":"length"')
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One request. Produced by the clients of `load`."""

    number: int
    begun_s: float  # of time.monotonic
    ended_s: float
    status: int  # of HTTP; 0 where there was no reply
    problem: str  # empty: answered to the end
    text: str = ""
    policy_version: int | None = None
    claims_an_end: bool = False  # a stream said that it was complete

    @property
    def took_s(self) -> float:
        return self.ended_s - self.begun_s


Client = Callable[[int], Outcome]


def load(
    client: Client, *, num_requests: int, num_clients: int, at: dict[int, Callable[[], object]] | None = None
) -> list[Outcome]:
    """Outcomes in the order of their ends. `at`: what is done once so many requests have ended, beside the load."""
    outcomes: list[Outcome] = []
    lock = threading.Lock()
    others = ThreadPoolExecutor(max_workers=1)
    begun = []

    def ask(number: int) -> None:
        outcome = client(number)
        with lock:
            outcomes.append(outcome)
            if at and (act := at.get(len(outcomes))) is not None:
                begun.append(others.submit(act))

    with others, ThreadPoolExecutor(max_workers=num_clients) as clients:
        for _ in clients.map(ask, range(num_requests)):
            pass
    for act in begun:
        act.result()
    return outcomes


def sdk_client(base_url: str, model: str, **body: Any) -> Client:
    """The OpenAI client as people use it, with its own retries."""
    client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", timeout=TIMEOUT_S)

    def ask(number: int) -> Outcome:
        begun_s = time.monotonic()
        status, problem = 200, ""
        try:
            client.completions.create(model=model, prompt=prompt(number), **body)
        except openai.OpenAIError as error:
            status, problem = 0, f"{type(error).__name__}: {error}"
        return Outcome(number=number, begun_s=begun_s, ended_s=time.monotonic(), status=status, problem=problem)

    return ask


def raw_client(
    base_url: str, model: str, *, key: str = "", stream: Callable[[int], bool] = lambda number: False, **body: Any
) -> Client:
    """One HTTP request, never repeated. `key` empty: none is sent. `stream`: of which numbers the reply is streamed."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    client = httpx.Client(base_url=base_url, headers=headers, timeout=TIMEOUT_S, limits=httpx.Limits(max_connections=None))

    def ask(number: int) -> Outcome:
        request = {"model": model, "prompt": prompt(number), "stream": stream(number), **body}
        begun_s = time.monotonic()
        status, version, lines = 0, None, []
        problem = "no reply"
        try:
            with client.stream("POST", "/v1/completions", json=request) as reply:
                status = reply.status_code
                version = reply.headers.get(VERSION_HEADER)
                lines = [line for line in reply.iter_lines() if line]
                problem = _problem(status, lines, is_stream=stream(number))
        except httpx.HTTPError as error:
            problem = f"{type(error).__name__}: {error}"
        return Outcome(
            number=number,
            begun_s=begun_s,
            ended_s=time.monotonic(),
            status=status,
            problem=problem,
            text="" if problem else _text(lines, is_stream=stream(number)),
            policy_version=None if version is None else int(version),
            claims_an_end=any(line == DONE or any(end in line for end in ENDS) for line in lines),
        )

    return ask


def prompt(number: int) -> str:
    """Short, and no two the same."""
    return f"{number} is a number"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed."""
    return sorted(values)[max(0, round(share * len(values)) - 1)]


def _problem(status: int, lines: list[str], *, is_stream: bool) -> str:
    if status != 200:
        return f"status {status}: {''.join(lines)[:300]}"
    if is_stream and (not lines or lines[-1] != DONE):
        return f"a stream that ended with {lines[-1:]}"
    return ""


def _text(lines: list[str], *, is_stream: bool) -> str:
    if not is_stream:
        return str(json.loads("".join(lines))["choices"][0]["text"])
    events = (json.loads(line.removeprefix("data: ")) for line in lines if line != DONE)
    return "".join(itertools.chain.from_iterable((choice["text"] for choice in event["choices"]) for event in events))
