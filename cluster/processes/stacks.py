"""State and Python stacks of a run's processes, for people who ask why it stands still: of this machine, or of every node."""

import shutil
import subprocess
import sysconfig
import threading
import time
from collections.abc import Iterable

import psutil
import ray
from ray import ObjectRef
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.processes.losses import reason_of

DUMP_TIMEOUT_S = 10.0  # of one process
NODE_TIMEOUT_S = 60.0  # of all nodes together, which work side by side
LOOK_S = 0.5


def stacks_of_this_machine(over: threading.Event) -> str:
    """Of this process and all that descend from it; cut short when `over` is set."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return _described(process for process in processes if not over.is_set())


def stacks_of_all_nodes(over: threading.Event) -> str:
    """Of this process, and of all that work for its job on the living nodes of the cluster; cut short when `over` is set.

    On each node a task looks, which needs no resources. What a node does not tell within `NODE_TIMEOUT_S` is left out, with the
    reason. Raises `RayError` where the cluster does not answer.
    """
    look = ray.remote(num_cpus=0, max_retries=0)(_stacks_of_job)
    job = ray.get_runtime_context().get_job_id()
    nodes: dict[ObjectRef[str], str] = {}
    for node in ray.nodes():
        if node["Alive"]:
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            nodes[look.options(scheduling_strategy=where).remote(job)] = f"{node['NodeManagerHostname']} ({node['NodeID']})"
    parts = [_described([psutil.Process()])]
    waiting, until_s = list(nodes), time.monotonic() + NODE_TIMEOUT_S
    while waiting and time.monotonic() < until_s and not over.is_set():
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=LOOK_S)
    for ref, name in nodes.items():
        parts.append(f"==== node {name}\n{_unanswered(ref) if ref in waiting else _answer(ref)}")
    return "".join(parts)


def _unanswered(ref: "ObjectRef[str]") -> str:
    ray.cancel(ref, force=True)
    return "(it has not answered; `ray stack` on that node shows them)\n"


def _answer(ref: "ObjectRef[str]") -> str:
    try:
        return ray.get(ref)
    except RayError as error:
        return f"({reason_of(error)})\n"


def _stacks_of_job(job: str) -> str:
    """Runs in a worker of the node: Ray's daemon starts workers with their job in the environment; engines descend from them."""
    daemon = psutil.Process().parent()
    workers = [] if daemon is None else [worker for worker in daemon.children() if _job_of(worker) == job]
    others = [worker for worker in workers if worker.pid != psutil.Process().pid]
    return _described(process for worker in others for process in [worker, *worker.children(recursive=True)])


def _job_of(worker: psutil.Process) -> str:
    try:
        return worker.environ().get("RAY_JOB_ID", "")
    except psutil.Error:
        return ""


def _described(processes: Iterable[psutil.Process]) -> str:
    return "".join(map(_description, processes))


def _description(process: psutil.Process) -> str:
    try:
        title, status = " ".join(process.cmdline()), process.status()
    except psutil.Error:
        return ""
    return f"== pid {process.pid}, {status}: {title[:200]}\n{_stacks(process.pid)}\n"


def _stacks(pid: int) -> str:
    """What py-spy sees, without stopping the process: a stopped one stays as it is."""
    py_spy = shutil.which("py-spy", path=sysconfig.get_path("scripts")) or shutil.which("py-spy")
    if py_spy is None:
        return "(py-spy is not installed)"
    try:
        dump = subprocess.run(
            [py_spy, "dump", "--nonblocking", "--pid", str(pid)],
            capture_output=True,
            text=True,
            timeout=DUMP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"(py-spy did not end within {DUMP_TIMEOUT_S:g} s)"
    return dump.stdout or f"({(dump.stderr.strip().splitlines() or ['no Python in it'])[0]})"
