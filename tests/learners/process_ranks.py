"""Ranks of a process group as processes: FSDP keeps state that threads of one process would share."""

import multiprocessing
import multiprocessing.connection
import pickle
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PRELOADED = [
    "learners.policy.learner",
    "learners.reward_model.learner",
    "transformers.models.llama.modeling_llama",
]  # once for all
MEETING_LIMIT_S = 240.0  # a rank that never comes fails the test, where it would otherwise hang it


class ProcessRanks:
    """Processes that wait for functions to run, each time in a new process group of the size that is asked for.

    A context manager. Functions, arguments and results are pickled.
    """

    def __init__(self, max_ranks: int, *, backend: str = "gloo") -> None:
        """`backend`: of torch.distributed; with nccl every rank has the device of its number."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._folder = tempfile.TemporaryDirectory()
        self._num_groups = 0
        self._connections: list[Connection] = []
        self._processes = []
        for _ in range(max_ranks):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, backend), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for process in self._processes:
            process.terminate()
            process.join()
        self._folder.cleanup()

    def run(self, function: Callable[..., Any], num_ranks: int, *arguments: Any) -> list[Any]:
        """What `function(rank, num_ranks, *arguments)` returns on each rank, in order."""
        self._num_groups += 1
        store = Path(self._folder.name) / str(self._num_groups)
        ranks = {connection: rank for rank, connection in enumerate(self._connections[:num_ranks])}
        for connection, rank in ranks.items():
            connection.send_bytes(pickle.dumps((function, rank, num_ranks, arguments, store)))
        results: dict[int, Any] = {}
        while len(results) < num_ranks:
            waiting = [connection for connection, rank in ranks.items() if rank not in results]
            ready = multiprocessing.connection.wait(waiting, timeout=MEETING_LIMIT_S)
            assert ready, f"ranks {[ranks[connection] for connection in waiting]} have not come back"
            for connection in waiting:
                if connection in ready:
                    problem, result = pickle.loads(connection.recv_bytes())
                    assert not problem, f"rank {ranks[connection]}: {problem}"  # the others may wait for it until they are ended
                    results[ranks[connection]] = result
        return [results[rank] for rank in range(num_ranks)]


def _serve(connection: Connection, backend: str) -> None:
    import torch.distributed

    torch.set_num_threads(1)
    while True:
        function, rank, num_ranks, arguments, store = pickle.loads(connection.recv_bytes())
        if "nccl" in backend:
            torch.cuda.set_device(rank)
        torch.distributed.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=num_ranks)
        try:
            outcome = "", function(rank, num_ranks, *arguments)
        except BaseException:  # noqa: BLE001 - told to the test, which ends this process
            outcome = traceback.format_exc(), None
        connection.send_bytes(pickle.dumps(outcome))
        torch.distributed.destroy_process_group()
