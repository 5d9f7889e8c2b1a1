"""The running roles of a policy run: generators, scorers and a learner, started, connected, and asked whether they agree.

The one file that knows all three.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from actors.config import GeneratorConfig
from actors.generation.adapter_generator import AdapterSlots
from actors.generation.remote import AdapterGeneratorActor, DeviceFedGeneratorActor, GeneratorActor
from actors.generation.rollout_pool import GeneratorKind, RolloutPool
from actors.scoring.stage import ScorerPools, build_scorer_pools
from actors.sources.models import model_digest
from cluster.errors import ConfigError
from cluster.processes.hosts.weights import check_shared_memory_of_nodes
from cluster.processes.reservations.seats import Seats
from cluster.processes.runtime import SHARED_MEMORY
from cluster.processes.watchdog import Pending
from cluster.storage.run_directory import POLICY_CHECKPOINTS
from cluster.storage.serving_contract import ContractText
from cluster.types import Prompt, SamplingParameters
from learners.policy.handle import LearnerFolders, PolicyLearnerHandle
from learners.policy.start import StartingPoint
from learners.ranks.mailbox import CheckpointPlan
from learners.run.memory_estimate import local_model_shape, published_bytes
from learners.run.seating import LEARNER, generator_seat, reserved_seats
from learners.run.session import Session
from learners.settings.run import PolicyRunConfig
from learners.steps.driver import Generators, publish_newest
from learners.steps.shared_driver import LearnerInTurn, Turns
from learners.weights.link import LinkPlan

MAX_PROBE_TOKENS: Final = 32  # of which every generator is asked for the last few at every version
GENERATOR_ACTORS = {"shm": GeneratorActor, "nccl": DeviceFedGeneratorActor, "ipc": DeviceFedGeneratorActor}


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """The running roles of one policy run."""

    rollouts: RolloutPool
    scoring: ScorerPools
    learner: PolicyLearnerHandle
    turns: Turns | None = None  # where they share devices

    @property
    def generators(self) -> Generators:
        """Whom new weights are published to."""
        return self.rollouts if self.turns is None else self.turns

    @property
    def learner_between_steps(self) -> PolicyLearnerHandle | LearnerInTurn:
        """For those who ask it to compute something beside the training."""
        return self.learner if self.turns is None else LearnerInTurn(self.learner, self.turns)

    def pending(self) -> list[Pending]:
        """What the driver waits for. May be asked from any thread."""
        return [*self.rollouts.pending(), *self.scoring.pending(), *self.learner.pending()]

    def wait_until_ready(self, config: PolicyRunConfig, *, note: Callable[[str], None]) -> None:
        """Return when every role answers and weights can reach the generators."""
        self.rollouts.wait_until_ready()
        self.scoring.wait_until_ready()
        num_steps_done = self.learner.wait_until_ready()
        generator = config.generator
        if generator.weight_transfer != "shm":
            self.learner.connect(
                LinkPlan(
                    backend=generator.weight_transfer,
                    generators=lambda: tuple(self.rollouts.actors.values()),
                    dtype=generator.dtype,
                    deadline_s=config.supervision.publish_deadline_s,
                )
            )
            self.rollouts.feed_new_ones(self.learner.send_again)
        if num_steps_done:  # the generators hold the start's weights, the learner those of its checkpoint
            publish_newest(self.learner, self.rollouts, note=note)


def start_roles(
    stack: ExitStack, session: Session, config: PolicyRunConfig, start_policy: str, texts: Sequence[ContractText]
) -> Roles:
    """Start all roles, which then load side by side; `stack` ends them. `texts`: of the serving contract.

    None starts before there is room for all. Raises `ConfigError` where a node has too little shared memory for published
    weights, `RaywardError` where the cluster has no room in time.
    """
    if not session.ray.is_local:
        published = published_bytes(local_model_shape(start_policy), config.generator, config.learner.lora)
        check_shared_memory_of_nodes(published, SHARED_MEMORY)
    seats = reserved_seats(config, note=session.view.note)
    stack.callback(seats.close)
    rollouts = _start_generators(start_policy, config, seats, note=session.view.note)
    stack.callback(rollouts.shutdown)
    scoring = build_scorer_pools(
        config.scorers,
        prompt_format=config.task.prompt_format,
        supervision=config.supervision,
        seats=seats,
        note=session.view.note,
    )
    seats.give_back(LEARNER)
    learner = stack.enter_context(
        PolicyLearnerHandle(
            StartingPoint(
                model_path=start_policy,
                temperature=config.sampling.temperature,
                max_completion_tokens=config.sampling.max_completion_tokens,
                samples_per_prompt=config.sampling.samples_per_prompt,
                seed=config.seed,
                takes_turns=config.placement == "shared",
            ),
            config.learner,
            LearnerFolders(
                storage=session.path / "logs" / "ray_train",
                weights=session.ray.shared_folder(),
                weights_dtype=config.generator.dtype,
                exported=config.export.weights,
                probe=_probe(texts) if config.learner.lora is not None else (),
            ),
            CheckpointPlan(
                directory=(session.path / POLICY_CHECKPOINTS).absolute(),
                keep=config.checkpoint.keep,
                facts=_facts(config, start_policy),
            ),
        )
    )
    turns = None
    if config.placement == "shared":
        turns = Turns(rollouts, scoring, learner, engines_forget=config.generator.sleep_level == 2)
    return Roles(rollouts=rollouts, scoring=scoring, learner=learner, turns=turns)


def _facts(config: PolicyRunConfig, start_policy: str) -> dict[str, str]:
    """What a checkpoint goes on from and does not hold."""
    critic_model = config.learner.critic.model
    facts = {"model": model_digest(start_policy), "seed": str(config.seed)}
    if config.learner.lora is None or critic_model is None:
        return facts
    return {**facts, "critic_model": model_digest(critic_model)}  # its adapter alone is in checkpoints


def _probe(texts: Sequence[ContractText]) -> tuple[int, ...]:
    """Tokens that the model finds natural: of the rare ones a bfloat16 engine's log-probabilities are far from exact.

    Raises `ConfigError` where there is no text of two tokens.
    """
    if not texts:
        raise ConfigError(
            "learner.lora: no held-out prompt has two tokens, by which engines could be seen to sample with an adapter; add "
            "longer ones, or raise evaluation.num_prompts"
        )
    return texts[-1].token_ids[:MAX_PROBE_TOKENS]


def _start_generators(model_path: str, config: PolicyRunConfig, seats: Seats, *, note: Callable[[str], None]) -> RolloutPool:
    kinds = [_generator_kind(model_path, config, kind, seats) for kind in config.generator_kinds]
    return RolloutPool(kinds, supervision=config.supervision, note=note)


def _generator_kind(model_path: str, config: PolicyRunConfig, kind: GeneratorConfig, seats: Seats) -> GeneratorKind:
    lora, asynchronous = config.learner.lora, config.asynchronous
    actor = AdapterGeneratorActor if lora is not None else GENERATOR_ACTORS[kind.weight_transfer]
    arguments: list[Any] = [model_path, kind, "finish" if asynchronous is None else asynchronous.running_requests]
    if lora is not None:
        arguments.append(AdapterSlots(max_rank=lora.rank, num_adapters=config.num_adapters))
    return GeneratorKind(
        start=lambda name: actor.options(**seats.options(name, generator_seat(kind))).remote(*arguments),
        give_back=seats.give_back,
        num_replicas=kind.num_replicas,
        max_num_sequences=kind.max_num_sequences,
        name=kind.name,
    )


def check_logprob_contract(
    roles: Roles, prompts: Sequence[Prompt], sampling: SamplingParameters, config: PolicyRunConfig
) -> None:
    """Raise `ConfigError` where engine and learner disagree about the probability of the engine's own samples."""
    groups = [group for group in roles.rollouts.collect(prompts, sampling) if group is not None]
    if not any(group.samples for group in groups):
        [problem, *_] = groups[0].failures.values()
        raise ConfigError(f"the engine completes none of {len(groups)} prompts: {problem}; compare the tokenizer with the model")
    learner_logprobs = np.concatenate(roles.learner_between_steps.completion_logprobs(groups))
    engine_logprobs = np.concatenate([each.rollout_logprobs for group in groups for each in group.tokens.fetch()])
    mean = float(np.abs(learner_logprobs - engine_logprobs).mean())
    if not mean <= config.learner.mismatch.max_logprob_mismatch:
        raise ConfigError(
            f"engine and learner disagree about log-probabilities by {mean:.3f} nats a token on average, more than "
            f"learner.mismatch.max_logprob_mismatch={config.learner.mismatch.max_logprob_mismatch:g}; compare generator.dtype="
            f"{config.generator.dtype} with learner.workers.compute_dtype={config.learner.workers.compute_dtype}, "
            f"sampling.temperature={config.sampling.temperature:g}, sampling.top_p={config.sampling.top_p:g}, and the model"
        )
