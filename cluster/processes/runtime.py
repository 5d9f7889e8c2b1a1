"""Starting and stopping Ray: quiet, on loopback, leaving no process behind, with its logs in the run directory.

What workers need from the environment is set before `ray.init`, because the processes of a local cluster inherit it; those of
a cluster that runs already get it with the job.
"""

import gc
import itertools
import logging
import os
import secrets
import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray

from cluster.errors import ConfigError
from cluster.processes.orphan_guard import SessionGuard, wait_for_end
from cluster.processes.placement import Machine, this_machine

logger = logging.getLogger(__name__)

WORKER_ENVIRONMENT: Mapping[str, str] = {
    "RAY_process_group_cleanup_enabled": "1",  # an engine's child processes die with the actor that started them
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Defaults for every process of a cluster; a value that the user has set stays."""

SHARED_MEMORY = Path("/dev/shm")
MAX_SAID = 300  # characters; a failed copy lists every file


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySession:
    """A connection to Ray. Produced by `start_ray`, consumed by `stop_ray`."""

    dashboard_url: str  # empty where the dashboard is off
    session_logs: Path  # Ray's own log folder on the head node
    run_logs: Path | None  # where they end up: <run>/logs/ray
    is_local: bool  # whether this process started the cluster
    guard: SessionGuard
    shared_folders: list[Path] = field(default_factory=list)

    def shared_folder(self) -> Path:
        """A new folder, in shared memory where there is some; it goes with the session, also where the driver is killed."""
        folder = Path(tempfile.mkdtemp(prefix="rayward-", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None))
        self.shared_folders.append(folder)
        self.guard.remove(folder)
        return folder


def ray_cluster() -> Machine:
    """What all nodes of the connected cluster have, as they declared it."""
    resources = ray.cluster_resources()
    name = f"the Ray cluster at {ray.get_runtime_context().gcs_address}"
    return Machine(num_cpus=resources.get("CPU", 0.0), num_gpus=resources.get("GPU", 0.0), name=name)


def cluster_nodes() -> list[Machine]:
    """What each living node of the connected cluster has."""
    return [
        Machine(
            num_cpus=node["Resources"].get("CPU", 0.0),
            num_gpus=node["Resources"].get("GPU", 0.0),
            name=node["NodeManagerHostname"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


@contextmanager
def ray_session(
    *,
    num_cpus: float | None = None,
    address: str | None = None,
    log_dir: Path | None = None,
    include_dashboard: bool = True,
    variables: Sequence[str] = (),
) -> Iterator[RaySession]:
    """`start_ray` and, whatever happens, `stop_ray`."""
    session = start_ray(
        num_cpus=num_cpus, address=address, log_dir=log_dir, include_dashboard=include_dashboard, variables=variables
    )
    try:
        yield session
    finally:
        stop_ray(session)


def start_ray(
    *,
    num_cpus: float | None = None,
    address: str | None = None,
    log_dir: Path | None = None,
    include_dashboard: bool = True,
    variables: Sequence[str] = (),
) -> RaySession:
    """Start a local Ray, or connect to the one at `address`. Nothing of the workers' output reaches the terminal.

    `num_cpus` (default: all usable ones) counts for a local start only. `log_dir` is the run's `logs` folder: Ray's
    logs stand there as `ray`, a link while the session lives and a copy afterwards. `variables`: of this process's environment,
    that workers of a running cluster need as well; those of a local one inherit all.
    """
    _set_environment()
    guard = SessionGuard()
    try:
        context = _connect(num_cpus, address, include_dashboard=include_dashboard, variables=variables)
    except BaseException:
        guard.dismiss()
        raise
    session = RaySession(
        dashboard_url=f"http://{context.dashboard_url}" if context.dashboard_url else "",
        session_logs=Path(context.address_info["session_dir"]) / "logs",
        run_logs=None if log_dir is None else log_dir / "ray",
        is_local=address is None,
        guard=guard,
    )
    _link_logs(session)
    return session


@contextmanager
def prints_to(path: Path) -> Iterator[None]:
    """Keep standard output for what a program reads.

    Ray's listener for errors prints there whenever a worker dies, whatever `log_to_driver` says (ray 2.60).
    """
    with path.open("a", encoding="utf-8", buffering=1) as file, redirect_stdout(file):
        yield


def _connect(
    num_cpus: float | None, address: str | None, *, include_dashboard: bool, variables: Sequence[str]
) -> "ray.client_builder.ClientContext":
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is not None:
        os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"  # a job may have been submitted with some of these itself
        passed = [*WORKER_ENVIRONMENT, *(["PYTHONPATH"] if "PYTHONPATH" in os.environ else [])]
        try:
            runtime_env: dict[str, Any] = {"env_vars": {name: os.environ[name] for name in passed}}
            if secrets_of_run := {name: os.environ[name] for name in variables if name in os.environ}:
                runtime_env["worker_process_setup_hook"] = _setter(secrets_of_run)
            return ray.init(address=address, runtime_env=runtime_env, **quiet)
        except ConnectionError as error:
            raise ConfigError(f"RAY_ADDRESS={address}: {error}") from error
    _protect_token_file()
    return ray.init(
        address="local",
        num_cpus=this_machine().num_cpus if num_cpus is None else num_cpus,
        include_dashboard=include_dashboard,
        dashboard_host="127.0.0.1",
        **quiet,
    )


def _setter(values: Mapping[str, str]) -> Callable[[], None]:
    """What every worker runs first. Ray shows `env_vars` in its logs, its dashboard and in `ps`; a function it shows by name."""

    def set_variables() -> None:
        os.environ.update(values)

    return set_variables


def stop_ray(session: RaySession) -> None:
    """Disconnect; of a local cluster, return once every process has ended, and keep its logs with the run."""
    processes = _cluster_processes(session) if session.is_local else []
    _disconnect()
    wait_for_end(processes)
    for folder in session.shared_folders:
        shutil.rmtree(folder, ignore_errors=True)
    session.guard.dismiss()
    if session.is_local:
        _keep_logs(session)


def _disconnect() -> None:
    """Without the cycle collector: a thread that comes upon a reference of Ray's in the midst of this ends the process, with "The
    core worker has already been shutdown" (ray 2.60)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if was_enabled:
            gc.enable()


def _cluster_processes(session: RaySession) -> list[psutil.Process]:
    """Ray's daemons name the session in their command line; workers and engines descend from them."""
    session_name = session.session_logs.parent.name
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        try:
            if any(session_name in argument for argument in child.cmdline()):
                found += [child, *child.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return found


def _set_environment() -> None:
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    root = str(Path(__file__).resolve().parents[2])
    inherited = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    # Run from a source tree, workers must find our packages; an installed copy they find by themselves.
    if root != sysconfig.get_path("purelib") and root not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *inherited])


def _protect_token_file() -> None:
    """Ray guards a local cluster with a token and writes its file with the umask's mode; make it the owner's alone first."""
    if os.environ.get("RAY_AUTH_MODE") == "disabled" or "RAY_AUTH_TOKEN" in os.environ:
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        return
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))


def _link_logs(session: RaySession) -> None:
    """Logs of an earlier process of the run, which may tell how it crashed, stay beside the new ones as ray-1, ray-2, ..."""
    if session.run_logs is None or not session.session_logs.is_dir():
        return
    with _logs_matter_less(session.run_logs):
        session.run_logs.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(session.run_logs):
            names = (session.run_logs.with_name(f"{session.run_logs.name}-{number}") for number in itertools.count(1))
            session.run_logs.rename(next(name for name in names if not os.path.lexists(name)))
        session.run_logs.symlink_to(session.session_logs, target_is_directory=True)


def _keep_logs(session: RaySession) -> None:
    if session.run_logs is None or not session.session_logs.is_dir():
        return
    with _logs_matter_less(session.run_logs):
        session.run_logs.unlink(missing_ok=True)
        shutil.copytree(session.session_logs, session.run_logs, symlinks=True)


@contextmanager
def _logs_matter_less(run_logs: Path) -> Iterator[None]:
    """What the run has made is whole without them: a failure inside is told, and the run ends as it would have."""
    try:
        yield
    except OSError as error:
        logger.warning("Ray's logs are not all in %s: %s", run_logs, str(error)[:MAX_SAID])
