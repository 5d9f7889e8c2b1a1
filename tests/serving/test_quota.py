"""What each key has used. Leases run on a clock of the test's; windows of a minute are long beside it."""

from serving.config import KeyQuota
from serving.guard.keys.quota import KeyUsage


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def usage(clock: Clock | None = None, **quota: int) -> KeyUsage:
    return KeyUsage(KeyQuota(**quota), lease_s=10, clock=clock or Clock())


def test_requests_are_counted_by_key() -> None:
    counter = usage(requests_per_minute=3)
    assert [counter.admit("a", str(number)).is_admitted for number in range(5)] == [True] * 3 + [False] * 2
    assert counter.admit("b", "0").is_admitted


def test_a_refused_request_says_when_to_come_again() -> None:
    counter = usage(requests_per_minute=1)
    counter.admit("a", "0")
    refused = counter.admit("a", "1")
    assert "1 requests a minute" in refused.reason
    assert 1 <= refused.wait_s <= 60


def test_requests_in_progress_are_bounded_until_they_end() -> None:
    counter = usage(max_streams=2)
    assert [counter.admit("a", name).is_admitted for name in "xyz"] == [True, True, False]
    assert counter.admit("b", "x").is_admitted
    counter.release("a", "x")
    counter.release("a", "never there")
    assert [counter.admit("a", name).is_admitted for name in "zw"] == [True, False]


def test_a_request_whose_front_door_died_does_not_count_for_ever() -> None:
    clock = Clock()
    counter = usage(clock, max_streams=1)
    counter.admit("a", "x")
    clock.now_s = 9.9
    assert not counter.admit("a", "y").is_admitted
    clock.now_s = 10.0
    assert counter.admit("a", "y").is_admitted


def test_tokens_are_counted_as_a_whole_or_not_at_all() -> None:
    counter = usage(tokens_per_minute=10)
    assert [counter.spend("a", tokens).is_admitted for tokens in (6, 5, 4, 1)] == [True, False, True, False]
    assert counter.spend("b", 10).is_admitted


def test_a_request_beyond_the_whole_limit_is_not_told_to_wait() -> None:
    refused = usage(tokens_per_minute=10).spend("a", 11)
    assert (refused.is_admitted, refused.wait_s) == (False, 0.0)
    assert "ask for less" in refused.reason
