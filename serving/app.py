"""The life of an endpoint: check, start, wait until it answers, stop without leaving a process behind."""

import json
import logging
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Final

import ray

from actors.sources.models import resolve_model
from cluster.errors import RaywardError
from cluster.host.cache import cache_root
from cluster.processes.interrupts import Interrupts, interruptible
from cluster.processes.placement import RoleRequest, check_placement, this_machine
from cluster.processes.runtime import RaySession, prints_to, start_ray, stop_ray
from serving.config import ServeConfig
from serving.guard import proxy
from serving.listening import available_port, key_file
from serving.policy_folder import PolicyFolder, check_is_run, check_served_by_engine, resolve_policy
from serving.versions.followed_versions import first_version, followed_by

logger = logging.getLogger("rayward")

APP_NAME: Final = "rayward"
OUR_APPS: Final = frozenset({APP_NAME, "rayward-health", "rayward-feedback"})
DELETE_GRACE_S = 10.0  # for what follows the drain
POLL_INTERVAL_S = 0.5
PROGRESS_INTERVAL_S = 15.0
VERSION_TIMEOUT_S = 10.0
PROXY_GRACE_S = 5.0  # the front door answers a request that is late; the proxy's plain text comes only where it does not


class ServedPolicy:
    """A policy behind HTTP. Made by `serve_policy`; `stop` ends it and, where it started Ray, Ray as well."""

    def __init__(
        self,
        *,
        base_url: str,
        model_id: str,
        policy: PolicyFolder,
        ray_session: RaySession | None,
        drain_s: float,
        asks_for_keys: bool,
    ) -> None:
        self.base_url = base_url  # http://127.0.0.1:8000; OpenAI clients take base_url + "/v1"
        self.model_id = model_id
        self.policy = policy
        self.asks_for_keys = asks_for_keys
        self._ray_session = ray_session
        self._drain_s = drain_s

    def wait_ready(self, *, timeout_s: float, report: Callable[[float], None] | None = None) -> None:
        """Return once `/health` answers 200. `report` hears the seconds waited, now and then."""
        started = reported = time.monotonic()
        while not self.is_healthy():
            self.raise_if_failed()
            now = time.monotonic()
            if now - started > timeout_s:
                raise RaywardError(
                    f"the endpoint did not answer within {timeout_s:g} s; see {self._where_logs_are()}, or raise start_timeout_s"
                )
            if report is not None and now - reported >= PROGRESS_INTERVAL_S:
                report(now - started)
                reported = now
            time.sleep(POLL_INTERVAL_S)

    def is_healthy(self) -> bool:
        """Whether `/health` answers 200."""
        try:
            with urllib.request.urlopen(f"{self.base_url}/health", timeout=10) as response:
                return bool(response.status == 200)
        except OSError:  # not listening yet, no route yet, 503
            return False

    def policy_version(self) -> int | None:
        """The version that a replica holds; None where the folder is no version of a run, or no replica says it."""
        from ray import serve
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        from serving.deployment import POLICY_SERVER_NAME

        server = serve.get_deployment_handle(POLICY_SERVER_NAME, APP_NAME)
        try:
            version: int | None = server.policy_version.remote().result(timeout_s=VERSION_TIMEOUT_S)
        except (RayError, RayServeException, TimeoutError):  # a replica was lost, or all are busy
            return None
        return version

    def stop(self) -> None:
        """End the endpoint: its replicas with their engines once their requests have ended, and Ray if it was started here.

        Serve itself goes on where applications of others run on it.
        """
        if ray.is_initialized():
            stop_applications(self._drain_s)
            if self.asks_for_keys:
                from serving.guard.keys.usage_actor import stop_usage

                stop_usage()
        if self._ray_session is not None:
            stop_ray(self._ray_session)

    def prints_kept(self) -> AbstractContextManager[None]:
        """Ray's prints go to a file among its logs."""
        return nullcontext() if self._ray_session is None else prints_to(self._ray_session.session_logs / "rayward.out")

    def raise_if_failed(self) -> None:
        """Raise `RaywardError` if Serve has given the policy up."""
        from ray import serve
        from ray.serve.schema import ApplicationStatus

        application = serve.status().applications.get(APP_NAME)
        if application is None or application.status != ApplicationStatus.DEPLOY_FAILED:
            return
        messages = [application.message, *(deployment.message for deployment in application.deployments.values())]
        raise RaywardError(
            f"the policy in {self.policy.path} could not be served: {_cause(messages)}; see {self._where_logs_are()}"
        )

    def _where_logs_are(self) -> str:
        return f"{self._ray_session.session_logs}/worker-*.err" if self._ray_session else "worker-*.err in Ray's logs"


def serve_policy(config: ServeConfig, *, start: Callable[..., RaySession] = start_ray) -> ServedPolicy:
    """Put a policy behind HTTP and return at once; `wait_ready` waits for it.

    Everything that can be refused is refused before Ray starts. Ray is started with `start` where this process has none.
    """
    policy = _first_policy(config)
    resolve_model(str(policy.path))  # refuses a folder with code in it, or with the tokenizer of another model
    check_served_by_engine(policy, config.max_model_tokens)
    port = available_port(config.host, config.port)
    keys = key_file(config)
    feedback = _feedback_file(config.feedback)
    model_id = config.model_id or policy.name
    ray_session = None
    if not ray.is_initialized():
        _check_local_placement(config)
        limits = proxy.ProxyLimits(requests=config.limits, num_engine_places=config.num_engine_places)
        proxy.arrange(os.environ, limits)
        logger.info("starting Ray, then an engine for %s ...", policy.path)
        ray_session = start(include_dashboard=config.dashboard)
        if ray_session.dashboard_url:
            logger.info("Ray dashboard %s", ray_session.dashboard_url)
    served = ServedPolicy(
        base_url=f"http://{config.host}:{port}",
        model_id=model_id,
        policy=policy,
        ray_session=ray_session,
        drain_s=config.drain_s,
        asks_for_keys=keys is not None,
    )
    try:
        _deploy(config, served, port, feedback, keys)
    except BaseException:
        served.stop()
        raise
    return served


def serve_until_interrupted(config: ServeConfig) -> None:
    """Serve until Ctrl-C or SIGTERM; `KeyboardInterrupt` is raised once no process is left."""
    served = serve_policy(config)
    with interruptible(Interrupts()), served.prints_kept():
        try:
            served.wait_ready(
                timeout_s=config.start_timeout_s, report=lambda seconds: logger.info("... still loading after %.0f s", seconds)
            )
            logger.info("%s", _ready_message(served))
            version = served.policy_version()
            while True:
                time.sleep(PROGRESS_INTERVAL_S)
                served.raise_if_failed()
                newer = served.policy_version()
                if newer not in (None, version):
                    logger.info("policy version %s is served", newer)
                    version = newer
        finally:
            logger.info("stopping ...")
            served.stop()


@contextmanager
def callers_logging_kept() -> Iterator[None]:
    """Around the import of Ray Serve LLM, which puts a JSON handler in the place of the root logger's handlers."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    logging.disable(logging.INFO)  # the import says which optional parts it has not found
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        root.handlers[:] = handlers
        root.setLevel(level)


def _deploy(config: ServeConfig, served: ServedPolicy, port: int, feedback: Path | None, keys: Path | None) -> None:
    from ray import serve
    from ray.serve.config import HTTPOptions

    with callers_logging_kept():
        from serving.deployment import QUIET, build_app
        from serving.guard.application import Guard
        from serving.guard.keys.usage_actor import start_usage
        from serving.health import health_target
    for name in ("ray", "ray.serve"):  # their handlers write to this terminal; the log files keep everything
        logging.getLogger(name).setLevel(logging.ERROR)
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(host=config.host, port=port, request_timeout_s=config.request_timeout_s + PROXY_GRACE_S),
        logging_config=QUIET,
    )
    state_dir = _state_dir(config, served.model_id)
    guard = Guard(
        limits=config.limits,
        timeout_s=config.request_timeout_s,
        log_folder=state_dir / "logs",
        cors_origins=config.cors_origins,
        keys=keys,
    )
    policy_app = build_app(config, served.policy, served.model_id, guard, state_dir)
    targets = [
        serve.RunTarget(target=policy_app, name=APP_NAME, logging_config=QUIET),
        health_target(APP_NAME, followed_by(config, state_dir) if config.follow else None, QUIET),
    ]
    if keys is not None:
        start_usage(config.quota, lease_s=config.request_timeout_s + PROXY_GRACE_S)
    if feedback is not None:
        from serving.feedback_api import feedback_target

        targets.append(feedback_target(feedback, guard, QUIET))
    serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def _first_policy(config: ServeConfig) -> PolicyFolder:
    """Of a run that is followed, what the replicas will start on: a newest version that is bad must not keep the others back."""
    if not config.follow:
        return resolve_policy(config.model)
    check_is_run(config.model)
    run_name = Path(config.model).expanduser().resolve().name
    return first_version(followed_by(config, _state_dir(config, config.model_id or run_name))).policy


def _state_dir(config: ServeConfig, model_id: str) -> Path:
    """What the endpoint writes down, for people and for its own next start."""
    return cache_root() / "serve" / model_id if config.state_dir is None else Path(config.state_dir).expanduser().resolve()


def _feedback_file(path: str | None) -> Path | None:
    """Where feedback is kept, opened once: a file that cannot be used is told before Ray starts."""
    if path is None:
        return None
    from cluster.storage.feedback import FeedbackStore

    found = Path(path).expanduser().resolve()
    FeedbackStore(found).close()
    return found


def _check_local_placement(config: ServeConfig) -> None:
    replicas = RoleRequest(
        role="serve",
        count=config.num_replicas,
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        setting="num_replicas",
    )
    check_placement([replicas], this_machine())


def stop_applications(drain_s: float) -> None:
    """End ours, the policy's first, and Serve where nobody else uses it."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        _delete(APP_NAME, drain_s)
        others = serve.status().applications.keys() - OUR_APPS
        for name in serve.status().applications.keys() & OUR_APPS if others else ():
            _delete(name, drain_s)
    except (RayError, RayServeException) as error:  # Serve is lost: there is nothing to be gentle with
        logger.warning("Serve did not answer at its end: %s", type(error).__name__)
        others = set()
    if not others:
        serve.shutdown()


def _delete(name: str, drain_s: float) -> None:
    from ray import serve

    deadline = time.monotonic() + drain_s + DELETE_GRACE_S
    while name in serve.status().applications:
        try:
            serve.delete(name)  # waits for a minute
        except TimeoutError:
            if time.monotonic() > deadline:
                logger.warning("the application %s has not ended after %.0f s", name, drain_s + DELETE_GRACE_S)
                return


def _cause(messages: list[str]) -> str:
    """The last line of the longest message: Serve hands over whole tracebacks."""
    lines = [line.strip() for line in max(messages, key=len).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def _ready_message(served: ServedPolicy) -> str:
    body = json.dumps({"model": served.model_id, "messages": [{"role": "user", "content": "Hello!"}]})
    key = " -H 'Authorization: Bearer '$KEY" if served.asks_for_keys else ""
    return (
        f"{served.model_id} answers at {served.base_url}/v1 (OpenAI API); Ctrl-C stops it. Try\n"
        f"  curl {served.base_url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'"
    )
