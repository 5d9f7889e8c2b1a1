"""Where requests go while a replica changes its weights."""

import asyncio
from types import SimpleNamespace
from typing import Any

from serving.versions.open_replicas import IS_CHANGING, OpenReplicasRouter


def chosen(*is_changing: bool) -> set[int]:
    """Numbers of the replicas that one of many requests might be sent to."""
    router = object.__new__(OpenReplicasRouter)  # its `__init__` is Serve's business
    replicas: list[Any] = [
        SimpleNamespace(number=number, routing_stats={IS_CHANGING: changes}) for number, changes in enumerate(is_changing)
    ]
    ranks = [asyncio.run(router.choose_replicas(replicas)) for _ in range(50)]
    assert all(len(rank) == 1 and len(rank[0]) <= 2 for rank in ranks)
    return {replica.number for (rank,) in ranks for replica in rank}


def test_a_replica_that_changes_gets_no_requests() -> None:
    assert chosen(False, True, False) == {0, 2}
    assert chosen(True, False) == {1}


def test_where_all_change_requests_wait_at_any() -> None:
    assert chosen(True, True) == {0, 1}


def test_a_replica_that_has_not_been_asked_yet_is_open() -> None:
    router = object.__new__(OpenReplicasRouter)
    replica: Any = SimpleNamespace(routing_stats={})
    assert asyncio.run(router.choose_replicas([replica])) == [[replica]]
