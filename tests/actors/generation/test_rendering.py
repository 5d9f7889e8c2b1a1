"""Rendering: token ids, the chat template, and prompts that are too long."""

from dataclasses import replace

import pytest

from actors.config import JsonlTaskConfig
from actors.generation.rendering import PromptTooLongError, load_tokenizer, render_prompt, render_prompts
from actors.sources.models import resolve_model
from actors.sources.tiny_model import byte_tokenizer
from cluster.errors import DataError
from cluster.messages import Message
from cluster.types import Task

TOKENIZER = byte_tokenizer()
HELLO = Task(task_id="t/hello", messages=(Message(role="user", content="hello"),))
LONG = Task(task_id="t/long", messages=(Message(role="user", content="x" * 50),))


@pytest.mark.parametrize("text", ["", "3 + 4 =", "a  b\n\nna\u00efve \u6f22", "<|im_start|>user\nx<|im_end|>"])
def test_the_light_tokenizer_is_that_of_transformers(text: str) -> None:
    from transformers import AutoTokenizer

    folder = resolve_model("tiny")
    light, full = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    token_ids = full(text)["input_ids"]
    assert light(text)["input_ids"] == token_ids
    assert light.decode(token_ids) == full.decode(token_ids)
    assert (light.eos_token_id, light.pad_token_id) == (full.eos_token_id, full.pad_token_id)
    assert light.chat_template == full.chat_template


def test_plain_is_the_text_itself() -> None:
    prompt = render_prompt(HELLO, TOKENIZER, prompt_format="plain")
    assert prompt.text == "hello"
    assert len(prompt.token_ids) == 5
    assert prompt.task is HELLO


def test_plain_puts_messages_on_lines() -> None:
    task = replace(HELLO, messages=(Message(role="system", content="a"), Message(role="user", content="b")))
    assert render_prompt(task, TOKENIZER, prompt_format="plain").text == "a\nb"


def test_chat_goes_through_the_template() -> None:
    prompt = render_prompt(HELLO, TOKENIZER, prompt_format="chat")
    assert prompt.text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.token_ids.count(TOKENIZER.eos_token_id) == 1  # special tokens are one id, not spelled out


def overlong(mode: str, *, longest: int) -> JsonlTaskConfig:
    return JsonlTaskConfig.model_validate(
        {"path": "unused", "prompt_format": "plain", "max_prompt_tokens": longest, "overlong": mode}
    )


def test_too_long_is_an_error_that_says_how_long() -> None:
    for longest in (5, 6):  # of 5 tokens
        assert len(render_prompts([HELLO], TOKENIZER, task_config=overlong("error", longest=longest)).prompts) == 1
    with pytest.raises(PromptTooLongError, match="'t/hello' renders to 5 tokens, max_prompt_tokens=4.*overlong=drop"):
        render_prompts([HELLO], TOKENIZER, task_config=overlong("error", longest=4))


@pytest.mark.parametrize("longest", [5, 6])
def test_overlong_prompts_are_dropped_and_counted(longest: int) -> None:
    rendered = render_prompts([HELLO, LONG, HELLO], TOKENIZER, task_config=overlong("drop", longest=longest))
    assert ([prompt.task for prompt in rendered.prompts], rendered.num_dropped) == ([HELLO, HELLO], 1)


def test_a_limit_that_drops_all_is_refused() -> None:
    with pytest.raises(DataError, match=r"no prompts are left \(3 were too long\)"):
        render_prompts([HELLO, LONG, HELLO], TOKENIZER, task_config=overlong("drop", longest=4))


@pytest.mark.parametrize(("longest", "text", "num_truncated"), [(4, "ello", 1), (5, "hello", 0), (6, "hello", 0)])
def test_overlong_prompts_are_cut_at_their_beginning_and_counted(longest: int, text: str, num_truncated: int) -> None:
    rendered = render_prompts([HELLO], TOKENIZER, task_config=overlong("truncate_left", longest=longest))
    (prompt,) = rendered.prompts
    assert (prompt.text, rendered.num_truncated, rendered.num_dropped) == (text, num_truncated, 0)
    assert prompt.token_ids == tuple(TOKENIZER(text)["input_ids"])


def test_a_tokenizer_without_template_says_what_to_do() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template; set prompt_format=plain"):
        render_prompt(HELLO, tokenizer, prompt_format="chat")


def test_a_template_that_refuses_is_quoted() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('system role not supported') }}"
    with pytest.raises(DataError, match="'t/hello' does not fit the model's chat template: system role not supported"):
        render_prompt(HELLO, tokenizer, prompt_format="chat")
