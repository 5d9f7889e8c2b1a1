"""The Ray Serve application of one policy: engine replicas behind a front door."""

import math
from pathlib import Path
from typing import Any, Final

from ray import serve

# Ray's own example builds model cards with this function; the public module has no other way.
from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata
from ray.serve.config import BackpressureConfig, RequestRouterConfig
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.schema import LoggingConfig

from cluster.host.cpu_engine import cpu_engine_environment
from cluster.processes.runtime import WORKER_ENVIRONMENT
from serving.api_errors import RETRY_AFTER_S
from serving.config import ServeConfig
from serving.guard.application import Guard, build_application
from serving.guard.keys.usage_actor import RemoteUsage
from serving.guard.refused_requests import RefusedRequests
from serving.ingress import DoorRules, build_ingress_class
from serving.policy_folder import PolicyFolder
from serving.policy_server import FollowPlan, PolicyServer
from serving.versions.followed_versions import followed_by
from serving.versions.follower import ChangeDeadlines
from serving.versions.open_replicas import STATS_PERIOD_S, OpenReplicasRouter

QUIET = LoggingConfig(log_level="WARNING", encoding="JSON", enable_access_log=False)
BYTES_PER_GIB = 2**30
POLICY_SERVER_NAME: Final = "PolicyServer"
MAX_INGRESS_REPLICAS = 2  # one is enough for the work; the second is there when the first is lost
DRAIN_POLL_S = 0.2  # between looks at whether requests are left; Serve's default is 2 s
HEALTH_CHECK_PERIOD_S = 1.0  # a dead engine takes requests, and fails them, until it has failed three checks
MAX_STARTS_OF_FOLLOWERS = 3
DRAIN_GRACE_S = 5.0  # for a request that was cancelled at its limit to leave
FOLLOWERS_ROUTING = {
    "request_router_config": RequestRouterConfig(
        request_router_class=OpenReplicasRouter, request_routing_stats_period_s=STATS_PERIOD_S
    )
}
MIN_BATCHED_TOKENS = 2048  # several short prompts are prefilled in one step


def build_app(config: ServeConfig, policy: PolicyFolder, model_id: str, guard: Guard, state_dir: Path) -> serve.Application:
    """Bind the engine replicas and the front door."""
    llm_config = _llm_config(config, policy, model_id)
    num_doors = min(config.num_replicas, MAX_INGRESS_REPLICAS)
    engines = build_llm_deployment(
        llm_config,
        bind_kwargs={"policy": policy, "follow": _follow_plan(config, state_dir) if config.follow else None},
        override_serve_options={"name": POLICY_SERVER_NAME},
        deployment_cls=PolicyServer,
    )
    usage = RemoteUsage() if guard.keys is not None else None
    ingress = serve.deployment(
        build_ingress_class(build_application(guard, usage, title=f"Rayward: {model_id}")),
        num_replicas=num_doors,
        ray_actor_options={"num_cpus": 0},  # it only passes text along
        # As many as the engines take: the queue is the proxy's, which turns a request away without a call to this process.
        max_ongoing_requests=math.ceil(config.max_ongoing_requests * config.num_replicas / num_doors),
        max_queued_requests=config.max_queued_requests,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_timeout_s=config.drain_s,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_S,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_S),
    )
    return ingress.bind(
        llm_deployments={model_id: engines},
        model_cards={model_id: to_model_metadata(model_id, llm_config)},
        rules=DoorRules(
            limits=config.limits, max_model_tokens=config.max_model_tokens, takes_tools=config.tool_parser is not None
        ),
        refused=RefusedRequests(state_dir / "refused.jsonl"),
        usage=usage,
    )


def _llm_config(config: ServeConfig, policy: PolicyFolder, model_id: str) -> LLMConfig:
    return LLMConfig(
        model_loading_config={"model_id": model_id, "model_source": str(policy.path)},
        accelerator_config={"kind": "gpu" if config.num_gpus else "cpu"},
        # The replica's actor shares the first bundle, so it reserves nothing of its own.
        placement_group_config={"bundles": _bundles(config)},
        deployment_config={
            "num_replicas": config.num_replicas,
            "max_ongoing_requests": config.max_ongoing_requests,
            "health_check_period_s": HEALTH_CHECK_PERIOD_S,
            "graceful_shutdown_timeout_s": config.drain_s,
            "graceful_shutdown_wait_loop_s": DRAIN_POLL_S,
            # A folder that does not load will not load the second time; of a run that is followed, another one is tried.
            "max_constructor_retry_count": MAX_STARTS_OF_FOLLOWERS if config.follow else 1,
            "ray_actor_options": {"num_cpus": 0},
            **(FOLLOWERS_ROUTING if config.follow and config.num_replicas > 1 else {}),
        },
        engine_kwargs=engine_arguments(config),
        runtime_env={"env_vars": _engine_environment(config)},
    )


def _follow_plan(config: ServeConfig, state_dir: Path) -> FollowPlan:
    return FollowPlan(
        versions=followed_by(config, state_dir),
        has_neighbours=config.num_replicas > 1,
        # A request inside ends at its own limit; new weights take as long as those of a start.
        deadlines=ChangeDeadlines(drain_s=config.request_timeout_s + DRAIN_GRACE_S, load_s=config.start_timeout_s),
    )


def _bundles(config: ServeConfig) -> list[dict[str, float]]:
    """Resources of one replica, one bundle a device."""
    devices = config.tensor_parallel_size
    bundle = {"CPU": config.num_cpus / devices}
    if config.num_gpus:
        bundle["GPU"] = config.num_gpus / devices
    return [dict(bundle) for _ in range(devices)]


def engine_arguments(config: ServeConfig) -> dict[str, Any]:
    """What vLLM is told, but for the model."""
    arguments: dict[str, Any] = {
        "dtype": config.dtype,
        "max_model_len": config.max_model_tokens,
        "tensor_parallel_size": config.tensor_parallel_size,
        "weight_transfer_config": {"backend": "shm"},  # newer versions of the policy come from files of this host
        "max_logprobs": config.limits.max_logprobs,
    }
    if config.tool_parser is not None:
        arguments |= {"enable_auto_tool_choice": True, "tool_call_parser": config.tool_parser}
    if config.reasoning_parser is not None:
        arguments["reasoning_parser"] = config.reasoning_parser
    if config.num_gpus:
        return {**arguments, "gpu_memory_utilization": config.gpu_memory_utilization}
    return {
        **arguments,
        "enforce_eager": True,
        "kv_cache_memory_bytes": int(config.kv_cache_gib * BYTES_PER_GIB),
        # vLLM's CPU engine dies of a client's `seed` if that request's prompt is prefilled in chunks.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(config.max_model_tokens, MIN_BATCHED_TOKENS),
    }


def _engine_environment(config: ServeConfig) -> dict[str, str]:
    environment = {
        **WORKER_ENVIRONMENT,
        "HF_HUB_OFFLINE": "1",  # the policy is a local folder
        "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0",
    }
    if config.num_gpus:
        return environment
    return {**environment, **cpu_engine_environment(config.num_threads, eager=True)}
