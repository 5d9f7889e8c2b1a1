"""What a run will ask for and do, by arithmetic alone: nothing is started, fetched or imported for it."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from actors.config import RewardModelScorerConfig, ScorerConfig
from cluster.errors import ConfigError
from cluster.processes.placement import Machine, RoleRequest, check_placement, place_on_nodes, this_machine
from learners.run.memory_estimate import (
    BYTES_PER_GIB,
    DTYPE_BYTES,
    FLOAT32_BYTES,
    RoleMemory,
    generator_memory,
    kv_cache_sequences,
    local_model_shape,
    policy_learner_memory,
    reward_model_learner_memory,
    scorer_memory,
)
from learners.settings.environments.rllib import RLlibOnlineConfig
from learners.settings.run import (
    LanguageModelRunConfig,
    PlanningRunConfig,
    PolicyRunConfig,
    PretrainingRunConfig,
    RewardModelRunConfig,
    RLlibRunConfig,
    TabularRunConfig,
    TokenRunConfig,
    TrainingRunConfig,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def role_requests(config: TrainingRunConfig) -> list[RoleRequest]:
    """The processes of each role; a run without any needs no Ray. The learner's mailbox and other small actors reserve no CPU."""
    if isinstance(config, PlanningRunConfig | TabularRunConfig | PretrainingRunConfig):
        return []
    if isinstance(config, RLlibRunConfig | TokenRunConfig):
        return _rllib_requests(config)
    workers = config.learner.workers
    learner = RoleRequest(
        role="learner",
        count=workers.num_workers,
        num_cpus=workers.num_cpus,
        num_gpus=workers.num_gpus,
        setting="learner.workers.num_workers",
    )
    if isinstance(config, RewardModelRunConfig):
        return [learner]
    generators = [
        RoleRequest(
            role=kind.name,
            count=kind.num_replicas,
            num_cpus=kind.num_cpus,
            num_gpus=kind.num_gpus,
            setting=f"{section}.num_replicas",
            num_parts=kind.num_parts,
        )
        for section, kind in zip(config.generator_sections, config.generator_kinds, strict=True)
    ]
    return [learner, *generators, *_scorer_requests(config.scorers)]


def _scorer_requests(scorers: Sequence[ScorerConfig]) -> list[RoleRequest]:
    return [
        RoleRequest(
            role=f"scorer {scorer.name}",
            count=scorer.num_replicas,
            num_cpus=scorer.num_cpus,
            num_gpus=scorer.num_gpus if isinstance(scorer, RewardModelScorerConfig) else 0.0,
            setting=f"scorers.{index}.num_replicas",
        )
        for index, scorer in enumerate(scorers)
    ]


def _rllib_requests(config: RLlibRunConfig | TokenRunConfig) -> list[RoleRequest]:
    """The driver reserves nothing with Ray; a GPU that it computes on must be there."""
    learner = config.learner
    env_runners = []
    if isinstance(learner, RLlibOnlineConfig):
        env_runner = RoleRequest(
            role="env runner",
            count=learner.num_env_runners,
            num_cpus=learner.num_cpus_per_env_runner,
            num_gpus=0.0,
            setting="learner.num_env_runners",
        )
        env_runners.append(env_runner)
    own = RoleRequest(
        role="learner",
        count=learner.num_learners,
        num_cpus=learner.num_cpus_per_learner,
        num_gpus=learner.num_gpus_per_learner,
        setting="learner.num_learners",
    )
    own_gpus = 0.0 if learner.num_learners else learner.num_gpus_per_learner
    driver = RoleRequest(role="driver", count=1, num_cpus=0.0, num_gpus=own_gpus, setting="learner.num_gpus_per_learner")
    scorers = _scorer_requests(config.scorers) if isinstance(config, TokenRunConfig) else []
    return [driver, *(request for request in (*env_runners, own) if request.count), *scorers]


def parse_nodes(given: Sequence[str]) -> list[Machine]:
    """Nodes of a cluster that `rayward plan` is asked about, each as CPUS or CPUS,GPUS. Raises `ConfigError`."""
    nodes, problems = [], []
    for number, text in enumerate(given, start=1):
        try:
            cpus, gpus = map(float, text.split(",") if "," in text else (text, "0"))
            nodes.append(Machine(num_cpus=cpus, num_gpus=gpus, name=f"node {number}"))
        except ValueError:
            problems.append(f"--node {text}: give CPUs and GPUs of one node, such as 16,4; or its CPUs alone")
    if problems:
        raise ConfigError(problems)
    return nodes


def plan_run(config: TrainingRunConfig, nodes: Sequence[Machine] = ()) -> dict[str, Any]:
    """Placement, batch arithmetic and memory as plain values; null where a model is not on this machine yet.

    `nodes`: of the cluster; none: this machine.
    """
    if isinstance(config, RLlibRunConfig | TokenRunConfig):
        from learners.run.environment.rllib_plan import plan_rllib_run  # RLlib: seconds

        return {**plan_rllib_run(config), "placement": _placement(role_requests(config), list(nodes) or [this_machine()])}
    if isinstance(config, PretrainingRunConfig):
        from learners.run.language_model.pretraining_stage import plan_pretraining  # torch: seconds

        return plan_pretraining(config)
    if isinstance(config, PlanningRunConfig | TabularRunConfig):
        from learners.run.environment.plan import plan_environment_run  # Gymnasium: a second

        return plan_environment_run(config)
    return {
        "name": config.name,
        "algorithm": config.learner.algorithm,
        "model": config.model,
        "placement": _placement(role_requests(config), list(nodes) or [this_machine()]),
        "batch": _policy_batch(config) if isinstance(config, PolicyRunConfig) else _reward_model_batch(config),
        "memory": [memory.as_dict() for memory in _memory(config)],
        "takes_turns": isinstance(config, PolicyRunConfig) and config.placement == "shared",
        "exports": _exports(config) if isinstance(config, PolicyRunConfig) else None,
    }


def plan_table(plan: dict[str, Any]) -> "RenderableType":
    """The plan for a terminal."""
    from rich.console import Group
    from rich.text import Text

    if "environment" in plan:
        from learners.run.environment.plan import environment_plan_table

        table = environment_plan_table(plan)
        return Group(table, "", *_placement_lines(plan["placement"])) if "placement" in plan else table
    title = Text.assemble((plan["name"], "bold"), f"  {plan['algorithm']} on {plan['model']}")
    batch, memory = _batch_table(plan["batch"]), _memory_table(plan["memory"])
    exports = [] if plan["exports"] is None else ["", _exports_line(plan["exports"])]
    turns = ["", Text("Roles take turns on their GPUs: each must fit by itself, and all of them in host memory")]
    shared = turns if plan["takes_turns"] else ()
    return Group(title, "", *_placement_lines(plan["placement"]), "", batch, "", memory, *shared, *exports)


def _placement_lines(placement: dict[str, Any]) -> "list[RenderableType]":
    from rich.text import Text

    verdict = [Text(f"does not fit: {problem}", style="bold red") for problem in placement["problems"]]
    nodes: list[RenderableType] = ["", _node_table(placement["nodes"])] if len(placement["nodes"]) > 1 else []
    return [_placement_table(placement), *verdict, *nodes]


def _placement(requests: list[RoleRequest], nodes: list[Machine]) -> dict[str, Any]:
    name = nodes[0].name if len(nodes) == 1 else f"{len(nodes)} nodes together"
    machine = Machine(num_cpus=sum(node.num_cpus for node in nodes), num_gpus=sum(node.num_gpus for node in nodes), name=name)
    placed: list[dict[str, int]] = [{} for _ in nodes]
    try:
        check_placement(requests, machine)
        placed = place_on_nodes(requests, nodes)
        problems = []
    except ConfigError as error:
        problems = error.problems
    return {
        "roles": [
            {**asdict(request), "total_cpus": request.total_cpus, "total_gpus": request.total_gpus} for request in requests
        ],
        "needed_cpus": sum(request.total_cpus for request in requests),
        "needed_gpus": sum(request.total_gpus for request in requests),
        "available_cpus": machine.num_cpus,
        "available_gpus": machine.num_gpus,
        "machine": machine.name,
        "nodes": [{**asdict(node), "processes": roles} for node, roles in zip(nodes, placed, strict=True)],
        "problems": problems,
    }


def _policy_batch(config: PolicyRunConfig) -> dict[str, int | None]:
    learner, sampling = config.learner, config.sampling
    trajectories = learner.prompts_per_step * sampling.samples_per_prompt
    updates_per_step = learner.num_epochs * (trajectories // learner.minibatch_size)
    longest = config.task.max_prompt_tokens + sampling.max_completion_tokens
    shape = local_model_shape(config.model)
    cpu_engines = [kind for kind in config.generator_kinds if kind.num_gpus == 0]
    return {
        "num_steps": learner.num_steps,
        "prompts_per_step": learner.prompts_per_step,
        "samples_per_prompt": sampling.samples_per_prompt,
        "extra_prompts_per_step": config.extra_prompts_per_step,
        "trajectories_per_step": trajectories,
        "minibatches_per_epoch": trajectories // learner.minibatch_size,
        "optimizer_steps_per_step": updates_per_step,
        "optimizer_steps": learner.num_steps * updates_per_step,
        "longest_sequence_tokens": longest,
        "max_completion_tokens_per_step": trajectories * sampling.max_completion_tokens,
        "max_tokens_per_step": trajectories * longest,
        "sequences_per_micro_batch": learner.workers.micro_batch_tokens // longest,
        "sequences_in_kv_cache": (
            min(kv_cache_sequences(shape, kind, longest_tokens=longest) for kind in cpu_engines)
            if shape is not None and cpu_engines
            else None
        ),
        "steps_asked_ahead": config.asynchronous.max_staleness if config.asynchronous else 0,
        "evaluation_completions": config.evaluation.num_prompts * config.evaluation.samples_per_prompt,
    }


def _reward_model_batch(config: RewardModelRunConfig) -> dict[str, int | None]:
    learner = config.learner
    return {
        "texts_per_optimizer_step": learner.batch_size,
        "max_pairs_per_optimizer_step": learner.batch_size * (learner.batch_size - 1) // 2,
        "longest_sequence_tokens": learner.max_tokens,
        "max_tokens_per_step": learner.batch_size * learner.max_tokens,
        "sequences_per_micro_batch": learner.workers.micro_batch_tokens // learner.max_tokens,
        "evaluation_pairs": learner.num_eval_pairs,
    }


def _exports(config: PolicyRunConfig) -> dict[str, int | None]:
    """Policies that the run writes, and what they take on the disk; while one is written there is one more than is kept."""
    every, num_steps = config.export.every_num_steps, config.learner.num_steps
    written = 1 + ((num_steps - 1) // every if every else 0)
    kept = min(config.export.keep, written)
    shape = local_model_shape(config.model)
    bytes_each = None if shape is None else shape.total * DTYPE_BYTES[config.generator.dtype]
    if shape is not None and config.learner.lora is not None and config.export.weights == "adapter":
        adapter = shape.adapter(config.learner.lora, num_frozen_layers=min(config.learner.num_frozen_layers, shape.num_layers))
        bytes_each = adapter * FLOAT32_BYTES
    most = min(kept + 1, written)
    return {
        "every_num_steps": every,
        "written": written,
        "kept": kept,
        "bytes_each": bytes_each,
        "bytes": None if bytes_each is None else most * bytes_each,
    }


def _memory(config: LanguageModelRunConfig) -> Iterable[RoleMemory]:
    policy = local_model_shape(config.model)
    if isinstance(config, RewardModelRunConfig):
        return [reward_model_learner_memory(policy, config.learner)]
    own_critic = config.learner.critic.kind == "own_model"
    critic = local_model_shape(config.learner.critic.model or config.model) if own_critic else None
    scorers = [
        scorer_memory(local_model_shape(scorer.model) if isinstance(scorer, RewardModelScorerConfig) else None, scorer)
        for scorer in config.scorers
    ]
    learner = policy_learner_memory(policy, critic, config.learner, batch_tokens=_largest_batch_tokens(config))
    generators = [generator_memory(policy, kind, config.learner.lora, config.num_adapters) for kind in config.generator_kinds]
    return [learner, *generators, *scorers]


def _largest_batch_tokens(config: PolicyRunConfig) -> int:
    """What the learner meets at a time: the trajectories of a step, or the completions of an evaluation."""
    sampling, evaluation = config.sampling, config.evaluation
    of_a_step = config.learner.prompts_per_step * sampling.samples_per_prompt
    of_an_evaluation = evaluation.num_prompts * evaluation.samples_per_prompt
    return max(of_a_step, of_an_evaluation) * (config.task.max_prompt_tokens + sampling.max_completion_tokens)


def _placement_table(placement: dict[str, Any]) -> "Table":
    table = _table("Placement", "role", "processes", "CPUs each", "GPUs each", "CPUs", "GPUs")
    for role in placement["roles"]:
        numbers = [role[key] for key in ("count", "num_cpus", "num_gpus", "total_cpus", "total_gpus")]
        table.add_row(role["role"], *(f"{number:g}" for number in numbers))
    table.add_section()
    table.add_row("needed", "", "", "", f"{placement['needed_cpus']:g}", f"{placement['needed_gpus']:g}")
    table.add_row(
        f"on {placement['machine']}", "", "", "", f"{placement['available_cpus']:g}", f"{placement['available_gpus']:g}"
    )
    return table


def _node_table(nodes: list[dict[str, Any]]) -> "Table":
    table = _table("Node by node, as far as arithmetic knows: Ray chooses", "node", "CPUs", "GPUs", "holds")
    for node in nodes:
        processes = ", ".join(f"{count} {role}" for role, count in node["processes"].items())
        table.add_row(node["name"], f"{node['num_cpus']:g}", f"{node['num_gpus']:g}", processes or "nothing")
    return table


def _batch_table(batch: dict[str, int | None]) -> "Table":
    table = _table("Batch", "quantity", "number")
    for name, number in batch.items():
        table.add_row(name.replace("_", " "), "unknown until the model is fetched" if number is None else f"{number:,}")
    return table


def _memory_table(memory: list[dict[str, Any]]) -> "Table":
    is_offloaded = any(role["offloaded"] for role in memory)
    on_host = ("on the host",) if is_offloaded else ()
    table = _table("Memory, without activations", "role", "processes", "each", *on_host, "made of")
    for role in memory:
        parts = role["parts_bytes"]
        made_of = "unknown: the model is not here yet, or not a decoder that can be counted"
        if parts is not None:
            made_of = ", ".join(f"{name} {_size(size)}" for name, size in parts.items()) or "next to nothing"
        each, besides = ("" if role[key] is None else _size(role[key]) for key in ("bytes_each", "host_bytes_each"))
        table.add_row(role["role"], str(role["processes"]), each, *([besides] if is_offloaded else []), made_of)
    return table


def _exports_line(exports: dict[str, int | None]) -> str:
    size = "unknown until the model is fetched" if exports["bytes"] is None else f"{_size(exports['bytes'])} of disk at most"
    when = f"every {exports['every_num_steps']} steps and at the end" if exports["every_num_steps"] else "at the end"
    return f"Policies are exported {when}: {exports['written']} written, the newest {exports['kept']} kept; {size}"


def _table(title: str, first: str, *others: str) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="left" if name in ("made of", "holds") else "right")
    return table


def _size(num_bytes: int) -> str:
    return f"{num_bytes / BYTES_PER_GIB:.2f} GiB" if num_bytes >= BYTES_PER_GIB / 10 else f"{num_bytes / 2**20:.1f} MiB"
