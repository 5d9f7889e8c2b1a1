"""A scorer behind HTTP: trajectories out as JSON, scores back, with time limits, retries, and no redirects.

Request: {"items": [{"task_id", "prompt", "completion", "reference"}, ...]}. Reply: {"scores": [number, ...]}, as many.

Where a batch is refused, its trajectories are sent one by one, and only those that are refused again have no score. A redirect,
401, 403, 404 and 405 are not about the batch. Before the first good reply they are a mistake in the configuration and end the
run; after it they may pass, so the batch has no scores.
"""

import logging
import os
import random
import time
from collections.abc import Callable, Sequence

import httpx
from pydantic import ConfigDict, ValidationError

from actors.config import LOOPBACK_HOSTS, HttpScorerConfig
from actors.scoring.checked_transport import LOOPBACK, CheckedTransport, Network
from cluster.config import StrictConfig
from cluster.errors import ConfigError, DataError, RaywardError
from cluster.types import Score, Trajectory, Unscored

logger = logging.getLogger("rayward")

FIRST_WAIT_S = 0.5
MAX_WAIT_S = 30.0
MAX_REPLY_BYTES = 16 * 2**20
TOO_MANY_REQUESTS = 429
NOT_OF_THE_CONTENT = (401, 403, 404, 405)  # the key, the address, the method
SHOWN_CHARACTERS = 200  # of a reply that is refused


class ScoresReply(StrictConfig):
    """What a scorer answers."""

    model_config = ConfigDict(strict=True)

    scores: tuple[float, ...]


class _TryAgainError(Exception):
    """A failure that may pass, or would have."""


class _RefusedError(RaywardError):
    """A request that the judge will not answer, however often it is sent. `may_be_content`: another batch may fare better."""

    def __init__(self, problem: str, *, may_be_content: bool) -> None:
        super().__init__(problem)
        self.may_be_content = may_be_content


class HttpScorer:
    """Implements `Scorer` with requests to one URL. A score that cannot be had is never a zero."""

    def __init__(
        self,
        config: HttpScorerConfig,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._config = config
        self._sleep = sleep
        self._has_answered = False
        self._num_tries = 0
        self._where = f"scorer {config.name!r} at {config.url.scheme}://{config.url.host}:{config.url.port}{config.url.path}"
        self._client = httpx.Client(
            headers={"Accept-Encoding": "identity", **_headers(config)},  # a compressed reply may grow without bound
            timeout=config.timeout_s,
            follow_redirects=False,
            trust_env=False,  # neither proxies nor passwords that lie about on this machine
            transport=transport or CheckedTransport(_allowed_networks(config)),
        )

    def score(self, trajectories: Sequence[Trajectory]) -> list[Score | Unscored]:
        """One score a trajectory, in order, or why there is none. Raises where the url or the key is wrong from the start."""
        size = self._config.batch_size
        batches = [trajectories[start : start + size] for start in range(0, len(trajectories), size)]
        return [score for batch in batches for score in self._score_batch(batch)]

    def progress(self) -> int:
        """Requests that ended, well or not: a server that is asked again is no hanging scorer."""
        return self._num_tries

    def _score_batch(self, batch: Sequence[Trajectory]) -> Sequence[Score | Unscored]:
        try:
            scores = [Score(value=value) for value in self._values(batch)]
        except (_TryAgainError, DataError) as error:
            return [Unscored(problem=str(error))] * len(batch)
        except _RefusedError as error:
            if error.may_be_content and len(batch) > 1:
                return [score for trajectory in batch for score in self._score_batch([trajectory])]
            if error.may_be_content or self._has_answered:
                return [Unscored(problem=str(error))] * len(batch)
            raise
        self._has_answered = True
        return scores

    def _values(self, batch: Sequence[Trajectory]) -> tuple[float, ...]:
        for num_failures in range(self._config.max_retries + 1):
            try:
                return self._scores(self._request(batch), num_expected=len(batch))
            except _TryAgainError as error:
                problem = str(error)
            finally:
                self._num_tries += 1
            if num_failures < self._config.max_retries:
                wait_s = min(MAX_WAIT_S, FIRST_WAIT_S * 2**num_failures) * random.uniform(0.5, 1)
                logger.warning("%s: %s; trying again in %.1f s", self._where, problem, wait_s)
                self._sleep(wait_s)
        raise _TryAgainError(f"{self._where}: {problem}; gave up after {self._config.max_retries + 1} tries")

    def _request(self, batch: Sequence[Trajectory]) -> bytes:
        """The body of a good reply."""
        deadline = time.monotonic() + self._config.timeout_s
        try:
            with self._client.stream("POST", str(self._config.url), json={"items": [_item(each) for each in batch]}) as response:
                body = self._body(response, deadline)
        except httpx.TransportError as error:
            raise _TryAgainError(f"{type(error).__name__}: {error}") from error
        if response.status_code == TOO_MANY_REQUESTS or response.is_server_error:
            raise _TryAgainError(f"status {response.status_code}: {_shown(body)}")
        if response.is_redirect:
            raise _RefusedError(
                f"{self._where} redirects to {response.headers.get('location', '')!r}, and redirects are not followed; "
                "set url to where it leads, if that host may be asked",
                may_be_content=False,
            )
        if not response.is_success:
            raise _RefusedError(
                f"{self._where} refused the request: status {response.status_code}: {_shown(body)}",
                may_be_content=response.status_code not in NOT_OF_THE_CONTENT,
            )
        return body

    def _body(self, response: httpx.Response, deadline: float) -> bytes:
        """httpx limits the wait for each piece; a server that sends one byte after another is stopped here."""
        body = bytearray()
        for piece in response.iter_raw():
            body += piece
            if len(body) > MAX_REPLY_BYTES:
                raise DataError(f"{self._where} replied with more than {MAX_REPLY_BYTES} bytes; it owes one number a trajectory")
            if time.monotonic() > deadline:
                raise _TryAgainError(f"the reply was not complete after {self._config.timeout_s:g} s")
        return bytes(body)

    def _scores(self, body: bytes, *, num_expected: int) -> tuple[float, ...]:
        try:
            scores = ScoresReply.model_validate_json(body).scores
        except ValidationError as error:
            detail = error.errors()[0]
            raise DataError(
                f"{self._where}: bad reply: {'.'.join(map(str, detail['loc'])) or 'body'}: {detail['msg']} (got {_shown(body)}); "
                'it must be {"scores": [finite numbers]}'
            ) from error
        if len(scores) != num_expected:
            raise DataError(f"{self._where} returned {len(scores)} scores for {num_expected} trajectories; it owes one each")
        return scores


def _allowed_networks(config: HttpScorerConfig) -> list[Network]:
    return [*config.allowed_networks, *(LOOPBACK if config.url.host in LOOPBACK_HOSTS else ())]


def _headers(config: HttpScorerConfig) -> dict[str, str]:
    missing = [variable for variable in config.headers_from_env.values() if variable not in os.environ]
    if missing:
        raise ConfigError(f"scorer {config.name!r}: environment variables are not set on this machine: {', '.join(missing)}")
    return {header: os.environ[variable] for header, variable in config.headers_from_env.items()}


def _item(trajectory: Trajectory) -> dict[str, str]:
    task = trajectory.prompt.task
    return {
        "task_id": task.task_id,
        "prompt": trajectory.prompt.text,
        "completion": trajectory.completion.text,
        "reference": task.reference,
    }


def _shown(body: bytes) -> str:
    return repr(body[:SHOWN_CHARACTERS].decode("utf-8", errors="replace"))
