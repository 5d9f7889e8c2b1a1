"""The feedback endpoint killed right after it acknowledged a preference: none that was acknowledged is lost or there twice."""

import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from cluster.storage.feedback import FeedbackRecord, FeedbackStore
from serving.config import RequestLimits
from serving.feedback_api import FEEDBACK_APP_NAME, FEEDBACK_ROUTE, feedback_target
from serving.guard.application import Guard
from tests.faults.fault_table import FaultRow

NUM_POSTS = 500
NUM_CLIENTS = 4
NUM_KILLS = 5
SEED = 17
ANSWER_TIMEOUT_S = 120.0  # for one post, over all its retries
RETRY_S = 0.05
REPLICA = f"ray::ServeReplica:{FEEDBACK_APP_NAME}"

pytestmark = [pytest.mark.faults, pytest.mark.timeout(280)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feedback.db"


@pytest.fixture
def url(local_ray: None, path: Path) -> Iterator[str]:
    """The endpoint alone: it needs no engine."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
    try:
        serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host="127.0.0.1", port=port), logging_config=quiet)
        serve.run_many([feedback_target(path, Guard(limits=RequestLimits(), timeout_s=60, log_folder=None), quiet)])
        yield f"http://127.0.0.1:{port}{FEEDBACK_ROUTE}"
    finally:
        serve.shutdown()


def test_a_killed_endpoint_loses_and_doubles_nothing(url: str, path: Path, measured: Callable[[FaultRow], None]) -> None:
    started = time.monotonic()
    clients, killer = Clients(url), Killer(random.Random(SEED))
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        acknowledged = dict(zip(KEYS, pool.map(lambda key: clients.post(key, then=killer.hear), KEYS), strict=True))
        replayed = dict(zip(KEYS, pool.map(clients.post, KEYS), strict=True))
    seconds = time.monotonic() - started
    kept = Kept(list(FeedbackStore(path).records()))
    num_lost = sum(not kept.holds(key, acknowledged[key]) for key in KEYS)
    num_survived = sum(all(kept.holds(key, acknowledged[key]) for key in before) for before in killer.acknowledged_before)
    num_unanswered = sum(not answer["is_new"] for answer in acknowledged.values())
    measured(
        FaultRow(
            row="17",
            fault="SIGKILL the feedback endpoint after a 200",
            num_injected=len(killer.acknowledged_before),
            num_survived=num_survived,
            measured=f"{num_lost} of {NUM_POSTS} lost, {kept.num_doubled} doubled; {clients.num_retries} posts sent again, "
            f"{num_unanswered} of which had been kept; {seconds:.0f} s",
            bar="0, 0",
            holds=num_lost == kept.num_doubled == 0,
        )
    )
    assert len(killer.acknowledged_before) == NUM_KILLS
    assert (num_lost, kept.num_doubled, num_survived) == (0, 0, NUM_KILLS)
    assert replayed == {key: {**answer, "is_new": False} for key, answer in acknowledged.items()}


KEYS = [f"post-{number}" for number in range(NUM_POSTS)]


def body(key: str) -> dict[str, Any]:
    """No two posts have a text in common; most are longer than a page of the database."""
    messages = [{"role": "user", "content": f"{key}?"}]
    return {"model": "tiny", "messages": messages, "chosen": f"{key} " * 800, "rejected": f"not {key}"}


@dataclass
class Clients:
    """Clients that post again with the same key until they hear a 200. Threads share them."""

    url: str
    num_retries: int = 0
    _http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=10))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def post(self, key: str, *, then: Callable[[str], None] = lambda key: None) -> dict[str, Any]:
        """The answer to the first 200; `then` hears of it at once."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                response = self._http.post(self.url, headers={"Idempotency-Key": key}, json=body(key))
            except httpx.TransportError:
                pass
            else:
                if response.status_code == 200:
                    then(key)
                    return dict(response.json())
                assert response.status_code >= 500, response.text
            with self._lock:
                self.num_retries += 1
            time.sleep(RETRY_S)
        raise AssertionError(f"{key}: no 200 within {ANSWER_TIMEOUT_S:g} s")


PART = NUM_POSTS // NUM_KILLS  # posts; one kill somewhere in each part


class Killer:
    """Hears each acknowledgement, and kills right after some: one replica, or all of them, by turns."""

    def __init__(self, draws: random.Random) -> None:
        self.acknowledged_before: list[list[str]] = []  # of each kill
        self._draws = draws
        self._acknowledged: list[str] = []
        self._kill_at = [part * PART + 1 + draws.randrange(PART) for part in range(NUM_KILLS)]
        self._lock = threading.Lock()

    def hear(self, key: str) -> None:
        with self._lock:
            self._acknowledged.append(key)
            if len(self._acknowledged) not in self._kill_at:
                return
            found = replicas()
            for replica in found if len(self.acknowledged_before) % 2 else [self._draws.choice(found)]:
                replica.kill()
            self.acknowledged_before.append(list(self._acknowledged))


def replicas() -> list[psutil.Process]:
    """Living processes of the endpoint; one of them has just answered."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(REPLICA):
                found.append(process)
        except psutil.Error:  # ended meanwhile
            continue
    return found


class Kept:
    """What the store holds in the end."""

    def __init__(self, records: list[FeedbackRecord]) -> None:
        self._records = {record.idempotency_key: record for record in records}
        self.num_doubled = len(records) - len({record.preference.chosen for record in records})

    def holds(self, key: str, answer: dict[str, Any]) -> bool:
        """Whether the record is the one that was acknowledged, word for word."""
        record, posted = self._records.get(key), body(key)
        return (
            record is not None
            and record.feedback_id == answer["id"]
            and (record.preference.chosen, record.preference.rejected) == (posted["chosen"], posted["rejected"])
            and [message.content for message in record.preference.messages] == [f"{key}?"]
        )
