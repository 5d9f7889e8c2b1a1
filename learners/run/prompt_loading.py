"""The prompts of a run: read and checked before Ray starts, rendered while it does."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from actors.generation.rendering import load_tokenizer, render_prompts
from actors.sources.models import resolve_model
from actors.tasks import build_task_sets
from actors.tasks.task_set import TaskSet
from cluster.errors import ConfigError
from cluster.processes.placement import check_shared_memory, cluster_address
from cluster.processes.runtime import SHARED_MEMORY
from cluster.storage.serving_contract import ContractText
from cluster.types import Prompt
from learners.run.memory_estimate import local_model_shape, published_bytes
from learners.settings.run import PolicyRunConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_CONTRACT_TEXTS: Final = 8
MIN_CONTRACT_TOKENS: Final = 2  # the first token has no log-probability


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPrompts:
    """What a policy is asked. Produced by `prompts_meanwhile`, consumed by the policy stage."""

    model_path: str  # the policy's folder, whose tokenizer rendered them
    train: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]  # to evaluate on; as many as evaluation.num_prompts
    contract: tuple[ContractText, ...]  # held-out texts for the serving contract of each exported policy
    note: str  # about prompts that were too long; empty where none was


@contextmanager
def prompts_meanwhile(config: PolicyRunConfig) -> Iterator[Future[RunPrompts]]:
    """The model is found and tasks are read at once, which raises `DataError`; prompts follow in a thread.

    Importing transformers takes seconds in which Ray's start leaves a core idle. The result raises `DataError` for a prompt that
    is too long, and `ConfigError` where there are too few.
    """
    model_path = resolve_model(config.model)
    if cluster_address() is None:  # else `start_roles` looks at every node
        published = published_bytes(local_model_shape(model_path), config.generator, config.learner.lora)
        check_shared_memory(published, SHARED_MEMORY)
    train_tasks, held_out_tasks = build_task_sets(config.task)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prompts") as background:
        yield background.submit(_render, config, model_path, train_tasks, held_out_tasks)


def _render(config: PolicyRunConfig, model_path: str, train_tasks: TaskSet, held_out_tasks: TaskSet) -> RunPrompts:
    tokenizer = load_tokenizer(model_path)
    train = render_prompts(train_tasks, tokenizer, task_config=config.task)
    held_out = render_prompts(held_out_tasks, tokenizer, task_config=config.task)
    problems = [
        f"{key}={wanted} is more than the {len(found)} {kind} prompts of task.kind={config.task.kind}; lower it"
        for key, wanted, kind, found in (
            ("learner.prompts_per_step", config.learner.prompts_per_step, "training", train.prompts),
            ("evaluation.num_prompts", config.evaluation.num_prompts, "held-out", held_out.prompts),
        )
        if wanted > len(found)
    ]
    if problems:
        raise ConfigError(problems)
    counts = (("left out", train.num_dropped + held_out.num_dropped), ("cut", train.num_truncated + held_out.num_truncated))
    told = [
        f"{what} {number} prompts longer than max_prompt_tokens={config.task.max_prompt_tokens}"
        for what, number in counts
        if number
    ]
    return RunPrompts(
        model_path=model_path,
        train=train.prompts,
        held_out=held_out.prompts[: config.evaluation.num_prompts],
        contract=_contract_texts(held_out.prompts[: config.evaluation.num_prompts], tokenizer),
        note="; ".join(told),
    )


def _contract_texts(held_out: Sequence[Prompt], tokenizer: "PreTrainedTokenizerBase") -> tuple[ContractText, ...]:
    """The shortest held-out texts: an endpoint with a small context can check them too.

    Their tokens are read anew, because not every tokenizer makes of a rendered prompt's text the tokens that it came from.
    """
    read = [(prompt.text, tuple(tokenizer(prompt.text, add_special_tokens=False)["input_ids"])) for prompt in held_out]
    usable = sorted((pair for pair in dict.fromkeys(read) if len(pair[1]) >= MIN_CONTRACT_TOKENS), key=lambda pair: len(pair[1]))
    return tuple(ContractText(text=text, token_ids=token_ids) for text, token_ids in usable[:NUM_CONTRACT_TEXTS])
