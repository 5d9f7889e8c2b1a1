"""From tasks to token ids. The only caller of a chat template."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from actors.config import TaskConfig
from cluster.errors import DataError
from cluster.types import Prompt, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PromptFormat = Literal["plain", "chat"]


class PromptTooLongError(DataError):
    """A rendered prompt has more tokens than the settings allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPrompts:
    """The prompts of a task set. Produced by `render_prompts`, consumed by the driver and by evaluation."""

    prompts: tuple[Prompt, ...]
    num_dropped: int  # tasks left out because they were too long
    num_truncated: int  # prompts that lost their beginning because they were too long


def load_tokenizer(model_path: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder.

    Where its rules are in a tokenizer.json they are read as they are: `AutoTokenizer` imports torch first, five seconds that a
    driver does not need to spend.
    """
    if (Path(model_path) / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(model_path)

    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path)


def render_prompts(tasks: Iterable[Task], tokenizer: "PreTrainedTokenizerBase", *, task_config: TaskConfig) -> RenderedPrompts:
    """Render every task; what is too long is an error, left out, or cut, as `task_config.overlong` says, and counted."""
    prompts: list[Prompt] = []
    longest = task_config.max_prompt_tokens
    num_dropped = num_truncated = 0
    for task in tasks:
        prompt = render_prompt(task, tokenizer, prompt_format=task_config.prompt_format)
        if len(prompt.token_ids) > longest:
            match task_config.overlong:
                case "error":
                    raise _too_long(prompt, longest)
                case "drop":
                    num_dropped += 1
                    continue
                case "truncate_left":
                    num_truncated += 1
                    prompt = _last_tokens(prompt, longest, tokenizer)
        prompts.append(prompt)
    if not prompts:
        raise DataError(
            f"no prompts are left ({num_dropped} were too long); raise max_prompt_tokens={task_config.max_prompt_tokens}"
        )
    return RenderedPrompts(prompts=tuple(prompts), num_dropped=num_dropped, num_truncated=num_truncated)


def render_prompt(task: Task, tokenizer: "PreTrainedTokenizerBase", *, prompt_format: PromptFormat) -> Prompt:
    """Render one task. plain: its messages' texts, one a line, to be continued. chat: through the model's chat template."""
    token_ids = _plain_token_ids(task, tokenizer) if prompt_format == "plain" else _chat_token_ids(task, tokenizer)
    return Prompt(task=task, text=tokenizer.decode(token_ids), token_ids=tuple(token_ids))


def conversation_text(task: Task, completion_text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """A task with its answer in the chat template of `tokenizer`, which need not be the policy's."""
    messages = [*_chat_messages(task), {"role": "assistant", "content": completion_text}]
    return tokenizer.apply_chat_template(messages, tokenize=False)


def _too_long(prompt: Prompt, longest: int) -> PromptTooLongError:
    return PromptTooLongError(
        f"task {prompt.task.task_id!r} renders to {len(prompt.token_ids)} tokens, max_prompt_tokens={longest}; "
        "raise max_prompt_tokens, shorten the task, or set overlong=drop or overlong=truncate_left"
    )


def _last_tokens(prompt: Prompt, longest: int, tokenizer: "PreTrainedTokenizerBase") -> Prompt:
    """The end of a prompt, which holds the question and the place of the answer. Of a chat, the first turn loses its head."""
    token_ids = prompt.token_ids[-longest:]
    return Prompt(task=prompt.task, text=tokenizer.decode(token_ids), token_ids=token_ids)


def _plain_token_ids(task: Task, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    return tokenizer("\n".join(message.content for message in task.messages))["input_ids"]


def _chat_token_ids(task: Task, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    from jinja2.exceptions import TemplateError

    if tokenizer.chat_template is None:
        raise DataError("this model's tokenizer has no chat template; set prompt_format=plain or use an instruct model")
    try:
        return tokenizer.apply_chat_template(_chat_messages(task), add_generation_prompt=True, return_dict=True)["input_ids"]
    except TemplateError as error:
        raise DataError(f"task {task.task_id!r} does not fit the model's chat template: {error}; change its messages") from error


def _chat_messages(task: Task) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in task.messages]
