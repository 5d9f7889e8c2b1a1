"""Ranks of a process group as threads of this process: what they add up is theirs, the rest of the network is not there."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch.distributed
from torch import Tensor

MEETING_LIMIT_S = 120.0  # a rank that never comes fails the test, where it would otherwise hang it


class ThreadRanks:
    """Runs one function on every rank. One at a time computes; the turn goes round where they meet to add up."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._rank = threading.local()
        self._turn = threading.Lock()  # torch's choice of attention kernel belongs to the process
        self._meeting = threading.Barrier(num_ranks, timeout=MEETING_LIMIT_S)
        self._brought: dict[int, Tensor] = {}

    def run(self, function: Callable[[int], Any]) -> list[Any]:
        """What `function` returns for each rank, in order."""

        def on_rank(rank: int) -> Any:
            self._rank.number = rank
            with self._turn:
                try:
                    return function(rank)
                except BaseException:
                    self._meeting.abort()
                    raise

        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(self._num_ranks) as threads:
            patch.setattr(torch.distributed, "all_reduce", self._all_reduce)
            return list(threads.map(on_rank, range(self._num_ranks)))

    def _all_reduce(self, tensor: Tensor, op: torch.distributed.ReduceOp) -> None:
        assert op == torch.distributed.ReduceOp.SUM
        self._brought[self._rank.number] = tensor
        self._meet()
        total = torch.stack([self._brought[rank] for rank in range(self._num_ranks)]).sum(0)
        self._meet()  # from here on nobody reads what was brought
        tensor.copy_(total)

    def _meet(self) -> None:
        self._turn.release()
        try:
            self._meeting.wait()
        finally:
            self._turn.acquire()
