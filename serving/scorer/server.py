"""The life of a reward model behind HTTP: check, load, answer, end when the requests in progress have."""

import logging
import socket
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette

from actors.sources.models import resolve_model
from cluster.processes.interrupts import Interrupts, interruptible
from serving.guard.keys.quota import KeyUsage, LocalUsage
from serving.listening import bound_socket, key_file
from serving.scorer.config import ServeScorerConfig

logger = logging.getLogger("rayward")

REWARD_MODEL_FOLDER = "reward_model"  # where a run keeps the one that it trained
KEY_VARIABLE = "SCORER_AUTHORIZATION"  # a name to suggest


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedScorer:
    """Ready to answer. Made by `build_scorer`, run by `serve_scorer_until_interrupted`."""

    app: Starlette
    socket: socket.socket  # bound
    url: str
    needs_key: bool


def build_scorer(config: ServeScorerConfig) -> ServedScorer:
    """Load the model. What can be refused is refused first: an address without keys or in use, a folder that holds no model."""
    keys = key_file(config)
    folder = resolve_model(_folder(config.scorer.model))
    bound = bound_socket(config.host, config.port)
    try:
        from actors.scoring.reward_model import RewardModel
        from serving.guard.application import Guard
        from serving.scorer.api import SCORE_ROUTE, ScorerDesk, build_scorer_application

        logger.info("loading %s ...", folder)
        model = RewardModel(config.scorer.model_copy(update={"model": folder}))
        guard = Guard(
            limits=config.limits,
            timeout_s=config.request_timeout_s,
            log_folder=None if config.log_dir is None else Path(config.log_dir).expanduser().resolve(),
            keys=keys,
        )
        usage = None if keys is None else LocalUsage(KeyUsage(config.quota, lease_s=config.request_timeout_s))
        desk = ScorerDesk(model, max_waiting=config.max_waiting_requests)
        limits = {"max_items": config.limits.max_items, "max_text_tokens": config.scorer.max_tokens}
        app = build_scorer_application(guard, usage, desk, **limits)
    except BaseException:
        bound.close()
        raise
    url = f"http://{config.host}:{bound.getsockname()[1]}{SCORE_ROUTE}"
    return ServedScorer(app=app, socket=bound, url=url, needs_key=keys is not None)


def serve_scorer_until_interrupted(config: ServeScorerConfig) -> None:
    """Answer until Ctrl-C or SIGTERM, then end the requests in progress and raise `KeyboardInterrupt`."""
    import uvicorn

    with interruptible(Interrupts()):  # before uvicorn's own handlers, and after them: it raises again what it caught
        served = build_scorer(config)
        server = uvicorn.Server(
            uvicorn.Config(
                served.app,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=config.drain_timeout_s,
            )
        )
        logger.info("%s", _ready_message(served, config.host))
        server.run(sockets=[served.socket])


def _folder(model: str) -> str:
    """Of a run directory, the reward model that the run trained."""
    of_run = Path(model).expanduser() / REWARD_MODEL_FOLDER
    return str(of_run) if of_run.is_dir() else model


def _ready_message(served: ServedScorer, host: str) -> str:
    fields = ["kind: http", f'url: "{served.url}"']
    if served.needs_key:
        fields += [f"allowed_hosts: [{host}]", f"headers_from_env: {{Authorization: {KEY_VARIABLE}}}"]
    lines = [f"the reward model answers at {served.url}; Ctrl-C stops it. In a run's scorers:", f"  - {{{', '.join(fields)}}}"]
    if served.needs_key:
        lines.append(f"where {KEY_VARIABLE} is 'Bearer rk_...'; put this machine's private network into allowed_networks as well")
    return "\n".join(lines)
