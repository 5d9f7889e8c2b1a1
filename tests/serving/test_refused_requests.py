"""Requests that an engine died of, in a file that front doors share."""

from pathlib import Path

import pytest

from serving.api_errors import Refusal
from serving.guard.refused_requests import HOLD_S, RefusedRequests, request_digest


class Clock:
    def __init__(self) -> None:
        self.now_s = 1e9

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def code_of(refused: RefusedRequests, digest: str) -> str | None:
    try:
        refused.check(digest)
    except Refusal as refusal:
        return refusal.code
    return None


def test_a_request_that_was_alone_is_refused_for_good_by_every_door(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "new" / "refused.jsonl"
    doors = [RefusedRequests(path, clock=clock) for _ in range(2)]
    assert [code_of(door, "d") for door in doors] == [None, None]
    doors[0].add("d", was_alone=True, request_id="req_1")
    clock.now_s += 1e8
    assert [code_of(door, "d") for door in [*doors, RefusedRequests(path, clock=clock)]] == ["request_refused"] * 3
    assert code_of(doors[1], "e") is None


def test_one_of_several_is_held_and_the_second_time_refused(tmp_path: Path, clock: Clock) -> None:
    door = RefusedRequests(tmp_path / "refused.jsonl", clock=clock)
    door.add("d", was_alone=False, request_id="req_1")
    assert code_of(door, "d") == "request_held"
    clock.now_s += HOLD_S
    assert code_of(door, "d") is None
    door.add("d", was_alone=False, request_id="req_2")
    clock.now_s += HOLD_S
    assert code_of(door, "d") == "request_refused"


def test_a_file_that_cannot_be_written_is_remembered_all_the_same(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").write_text("")
    door = RefusedRequests(tmp_path / "file" / "refused.jsonl", clock=clock)
    door.add("d", was_alone=True, request_id="req_1")
    assert code_of(door, "d") == "request_refused"


def test_a_torn_line_is_passed_over(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "refused.jsonl"
    RefusedRequests(path, clock=clock).add("d", was_alone=True, request_id="req_1")
    path.write_text(path.read_text() + '{"digest": "e", "was\n[]\n')
    door = RefusedRequests(path, clock=clock)
    assert (code_of(door, "d"), code_of(door, "e")) == ("request_refused", None)


def test_the_digest_is_of_what_an_engine_computes() -> None:
    fields = {"prompt": "x", "max_tokens": 4}
    same = [{"max_tokens": 4, "prompt": "x"}, {**fields, "stream": True}, {**fields, "model": "run"}]
    assert {request_digest("completions", one) for one in [fields, *same]} == {request_digest("completions", fields)}
    others = [{**fields, "prompt": "y"}, {**fields, "seed": 1}]
    assert len({request_digest("completions", one) for one in [fields, *others]} | {request_digest("chat", fields)}) == 4
