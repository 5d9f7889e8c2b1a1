"""What surrounds every run: its directory, its live view, its Ray, its clock, and a clean end whatever happens."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from rich.console import Console

from actors.config import HttpScorerConfig, PythonScorerConfig
from cluster.display.progress import RunView
from cluster.display.view import build_view
from cluster.errors import ConfigError, NotWrittenError, RunInterruptedError
from cluster.host.crash_report import crashes_kept
from cluster.host.versions import machine, versions
from cluster.processes.interrupts import Interrupts, interruptible
from cluster.processes.placement import RoleRequest, check_placement, cluster_address, place_on_nodes, this_machine
from cluster.processes.runtime import RaySession, cluster_nodes, prints_to, ray_cluster, ray_session
from cluster.processes.stacks import stacks_of_all_nodes, stacks_of_this_machine
from cluster.processes.watchdog import Pending, watched
from cluster.storage.metrics import MetricsLog, StageClock
from cluster.storage.run_directory import METRICS_NAME, RunDirectory
from learners.settings.every_run import RayRunConfig, RunConfig
from learners.settings.language_model.tokens import TokenRunConfig
from learners.settings.run import PolicyRunConfig
from learners.settings.sweep import SweepConfig

END_S = 8.5  # for a clean end after an interrupt: whoever sent it sends SIGKILL soon
command_log = logging.getLogger("rayward")  # its level is what -v and -q set

FILE_LOGGERS = ("learners", "ray", "transformers", "vllm", "huggingface_hub", "matplotlib", "py.warnings")


class Session:
    """One run in progress. Produced by `open_session`, used by `launch`."""

    def __init__(
        self,
        directory: RunDirectory,
        view: RunView,
        metrics: MetricsLog,
        interrupts: Interrupts,
        ray: RaySession | None,
        *,
        stall_s: float,
        wait_for_nodes_s: float = 0.0,
    ) -> None:
        self.directory = directory
        self.view = view
        self.metrics = metrics
        self.interrupts = interrupts
        self._ray = ray
        self._stall_s = stall_s
        self.wait_for_nodes_s = wait_for_nodes_s  # for a cluster that grows
        self._clock = StageClock(earlier_s=directory.read_summary().get("wall_s"))

    @property
    def path(self) -> Path:
        return self.directory.path

    @property
    def ray(self) -> RaySession:
        assert self._ray is not None, "a run that asks for no process has no Ray"
        return self._ray

    def watched(self, pending: Callable[[], Sequence[Pending]]) -> AbstractContextManager[None]:
        """Inside, a stall is told, with what `pending` says that the run waits for."""
        return watched(
            pending,
            deadline_s=self._stall_s,
            note=self.view.note,
            stacks=self.path / "logs",
            gather=stacks_of_this_machine if self._ray is None or self._ray.is_local else stacks_of_all_nodes,
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show the stage and count its seconds; `summary.json` is up to date when it ends."""
        try:
            with self.view.stage(name), self._clock.stage(name):
                yield
        except BaseException:
            with suppress(NotWrittenError):  # what ended the stage is raised, and the seconds are lost
                self._write_seconds()
            raise
        self._write_seconds()

    def _write_seconds(self) -> None:
        self.directory.write_summary({"wall_s": self._clock.wall_s})


@contextmanager
def open_session(
    config: RunConfig,
    *,
    stages: Sequence[str],
    requests: Sequence[RoleRequest],
    resumed: RunDirectory | None = None,
    end_s: float = END_S,
) -> Iterator[Session]:
    """Check the placement, own the run directory, start Ray or join the cluster that RAY_ADDRESS names; stop at the end.

    A run without `requests` needs no Ray, and none is started or joined.

    `resumed`: the directory of an earlier run to go on with, in place of a new one. Ctrl-C and SIGTERM end in
    `RunInterruptedError`, after Ray is down and the summary says `interrupted`. What nobody foresaw ends in `UnexpectedError`.
    """
    address = cluster_address() if requests else None
    if address is None:
        check_placement(requests, this_machine())
    interrupts = Interrupts(end_s=end_s)
    directory = resumed or RunDirectory.create(config.runs_dir, config.name)
    try:
        with (
            crashes_kept(directory.path / "logs"),  # outside, so that the summary has the exception itself
            directory,
            _logs_to(directory.path / "logs" / "driver.log"),
            prints_to(directory.path / "logs" / "driver.out"),
        ):
            interrupts.last_act = directory.mark_interrupted
            if resumed is None:
                directory.write_config({**config.model_dump(mode="json"), "name": directory.name})
            directory.write_summary({"seed": config.seed, "versions": versions(), "machine": machine()})
            with (
                build_view(stages, directory.path, Console(stderr=True, quiet=command_log.level > logging.INFO)) as view,
                MetricsLog(directory.path / METRICS_NAME, directory.path / "tensorboard") as metrics,
                _ray(config, address, directory.path / "logs") if requests else nullcontext() as ray_connection,
                interruptible(interrupts),  # inside, because Ray sets a handler of its own
            ):
                if address is not None:
                    _check_cluster(config, requests, note=view.note)
                if ray_connection is not None and ray_connection.dashboard_url:
                    view.note(f"Ray dashboard {ray_connection.dashboard_url}")
                nodes_s = config.wait_for_nodes_s if isinstance(config, RayRunConfig) else 0.0
                yield Session(
                    directory,
                    view,
                    metrics,
                    interrupts,
                    ray_connection,
                    stall_s=config.stall_s,
                    wait_for_nodes_s=nodes_s,
                )
    except KeyboardInterrupt as error:
        raise RunInterruptedError(f"interrupted; what was done until then is in {directory.path}") from error
    finally:
        interrupts.over()


def _check_cluster(config: RunConfig, requests: Sequence[RoleRequest], *, note: Callable[[str], None]) -> None:
    """Raise `ConfigError` where the cluster is too small for the run and is not expected to grow."""
    assert isinstance(config, RayRunConfig), "a run with processes has settings for Ray"
    try:
        check_placement(requests, ray_cluster())
        place_on_nodes(requests, cluster_nodes())
    except ConfigError as error:
        if not config.wait_for_nodes_s:
            raise ConfigError([*error.problems, "on a cluster that adds nodes, set wait_for_nodes_s"]) from error
        problems = "; ".join(error.problems)
        note(f"the cluster is too small yet: {problems}; it is asked for nodes, for {config.wait_for_nodes_s:g} s at most")


def _ray(config: RunConfig, address: str | None, log_dir: Path) -> AbstractContextManager[RaySession]:
    assert isinstance(config, RayRunConfig), "a run with processes has settings for Ray"
    return ray_session(address=address, log_dir=log_dir, include_dashboard=config.dashboard, variables=named_variables(config))


def named_variables(config: RunConfig) -> list[str]:
    """The environment variables that the scorers of a run read."""
    names: list[str] = []
    if isinstance(config, SweepConfig):
        for values in config.training.get("scorers", ()):
            names += [*values.get("headers_from_env", {}).values(), *values.get("environment", ())]
    for scorer in config.scorers if isinstance(config, PolicyRunConfig | TokenRunConfig) else ():
        if isinstance(scorer, HttpScorerConfig):
            names += scorer.headers_from_env.values()
        if isinstance(scorer, PythonScorerConfig):
            names += scorer.environment
    return names


class _LogFile(logging.FileHandler):
    """Lines that a full disk does not take are dropped: whatever the run needs on disk says so itself."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def _logs_to(path: Path) -> Iterator[None]:
    """Send what libraries log in this process to a file, away from the screen unless it was asked for with -v."""
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.captureWarnings(True)
    loggers = [logging.getLogger(name) for name in FILE_LOGGERS]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], command_log.level == logging.DEBUG
    try:
        yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()
        logging.captureWarnings(False)
