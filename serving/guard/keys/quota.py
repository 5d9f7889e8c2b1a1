"""What each key has used: requests and tokens of the last minute, and requests in progress; and how often it was refused.

One process counts for all replicas. Requests in progress are leases with an end, so those of a front door that was killed do
not count for ever.
"""

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from serving.config import KeyQuota

MIN_WAIT_S: Final = 1.0
WINDOW_S: Final = 60.0
MAX_REFUSALS: Final = 4  # of one key in one window; a client that waits as it is told has one for each request too many
REFUSAL_WINDOW_S: Final = MIN_WAIT_S  # the shortest time that a refused client is told to wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Whether a request may go on. Produced by `KeyUsage`, consumed by `KeyGate`."""

    is_admitted: bool
    reason: str = ""
    wait_s: float = 0.0  # until it is worth to ask again; 0: never, the request is too large


class KeyUsage:
    """Counters by key name. For one process."""

    def __init__(self, quota: KeyQuota, *, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._quota = quota
        self._lease_s = lease_s
        self._clock = clock
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._requests = RateLimitItemPerMinute(quota.requests_per_minute, namespace="requests")
        self._tokens = RateLimitItemPerMinute(quota.tokens_per_minute, namespace="tokens")
        self._ends_s: defaultdict[str, dict[str, float]] = defaultdict(dict)  # of the leases of a key, by request id

    def admit(self, key: str, request_id: str) -> Admission:
        """Count one request, and hold a place for it until `release`. A refused one counts for nothing."""
        now_s = self._clock()
        leases = self._ends_s[key]
        for expired in [held for held, end_s in leases.items() if end_s <= now_s]:
            del leases[expired]
        if len(leases) >= self._quota.max_streams:
            reason = f"{self._quota.max_streams} requests of this key are in progress, which is its limit"
            return Admission(is_admitted=False, reason=reason, wait_s=MIN_WAIT_S)
        if not self._limiter.hit(self._requests, key):
            reason = f"this key's limit is {self._quota.requests_per_minute} requests a minute"
            return Admission(is_admitted=False, reason=reason, wait_s=self._wait_s(self._requests, key, 1))
        leases[request_id] = now_s + self._lease_s
        return Admission(is_admitted=True)

    def spend(self, key: str, tokens: int) -> Admission:
        """Count the most tokens that a request can use."""
        if self._limiter.hit(self._tokens, key, cost=tokens):
            return Admission(is_admitted=True)
        limit = self._quota.tokens_per_minute
        if tokens > limit:
            reason = f"this request can use {tokens} tokens, and this key's limit is {limit} a minute; ask for less"
            return Admission(is_admitted=False, reason=reason)
        reason = f"this key's limit is {limit} tokens a minute, and this request can use {tokens}"
        return Admission(is_admitted=False, reason=reason, wait_s=self._wait_s(self._tokens, key, tokens))

    def release(self, key: str, request_id: str) -> None:
        """The request has ended."""
        self._ends_s[key].pop(request_id, None)

    def _wait_s(self, item: RateLimitItemPerMinute, key: str, cost: int) -> float:
        """The share of the window that has to pass for `cost`, as if the window had filled evenly."""
        missing = cost - self._limiter.get_window_stats(item, key).remaining
        return min(max(MIN_WAIT_S, WINDOW_S * missing / item.amount), WINDOW_S)


class LocalUsage:
    """A `UsageCounter` of the process that asks it."""

    def __init__(self, usage: KeyUsage) -> None:
        self._usage = usage

    async def admit(self, key: str, request_id: str) -> Admission:
        """See `KeyUsage`."""
        return self._usage.admit(key, request_id)

    async def spend(self, key: str, tokens: int) -> Admission:
        """See `KeyUsage`."""
        return self._usage.spend(key, tokens)

    def release(self, key: str, request_id: str) -> None:
        """See `KeyUsage`."""
        self._usage.release(key, request_id)


class RefusalBudget:
    """Refusals by key, of which it keeps a hash. For one event loop, that of the proxy.

    A refusal by a front door costs its processor, the proxy's and the counter's; a client that does not wait as it is told could
    have so many that others wait. After some in one window the proxy refuses that key by itself, for the rest of the window.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._window_ends_s = 0.0
        self._refusals: dict[bytes, int] = {}  # in this window; only good keys are refused by a quota, so there are few

    def note(self, authorization: str) -> None:
        """A front door has refused a request with this header, because of its key's quota."""
        self._begin_window()
        digest = _digest(authorization)
        self._refusals[digest] = self._refusals.get(digest, 0) + 1

    def is_spent(self, authorization: str) -> bool:
        """Whether the next request with this header is to be refused without a front door."""
        self._begin_window()
        return self._refusals.get(_digest(authorization), 0) >= MAX_REFUSALS

    def _begin_window(self) -> None:
        now_s = self._clock()
        if now_s >= self._window_ends_s:
            self._window_ends_s = now_s + REFUSAL_WINDOW_S
            self._refusals.clear()


def _digest(authorization: str) -> bytes:
    return hashlib.sha256(authorization.partition(" ")[2].strip().encode()).digest()
