"""The prompts of a run: what is wrong with them is told before anything starts, or as soon as they are rendered."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from actors.generation.rendering import PromptTooLongError
from cluster.errors import ConfigError, DataError
from cluster.processes import placement
from learners.run.prompt_loading import RunPrompts, prompts_meanwhile
from learners.settings.run import PolicyRunConfig

NUM_LINES = 40
LONGEST = 8  # tokens; with the tiny model's tokenizer a character is one


def run_config(tmp_path: Path, *lines: str, **settings: Any) -> PolicyRunConfig:
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join([*(json.dumps({"prompt": f"task {index:03}"}) for index in range(NUM_LINES)), *lines]))
    task = {"kind": "jsonl", "path": str(path), "prompt_format": "plain", "max_prompt_tokens": LONGEST}
    return PolicyRunConfig.model_validate(
        {
            "name": "prompts",
            "model": "tiny",
            "task": {**task, **settings.pop("task", {})},
            "scorers": [{"kind": "function", "function": "length"}],
            "learner": {
                "algorithm": "grpo",
                "num_steps": 1,
                "prompts_per_step": settings.pop("prompts_per_step", 4),
                "minibatch_size": 4,
            },
            "sampling": {"samples_per_prompt": 2},
            "evaluation": {"num_prompts": settings.pop("num_eval_prompts", 2)},
        }
    )


def rendered(config: PolicyRunConfig) -> RunPrompts:
    with prompts_meanwhile(config) as rendering:
        return rendering.result()


def test_prompts_to_train_and_to_evaluate_on(tmp_path: Path) -> None:
    prompts = rendered(run_config(tmp_path))
    assert len(prompts.held_out) == 2
    assert NUM_LINES // 2 < len(prompts.train) < NUM_LINES
    assert all(prompt.text.startswith("task ") for prompt in prompts.train)
    assert prompts.note == ""


def test_the_serving_contract_is_about_the_eight_shortest_texts_to_evaluate_on(tmp_path: Path) -> None:
    longer = [json.dumps({"prompt": f"longer task {index}"}) for index in range(300)]
    prompts = rendered(run_config(tmp_path, *longer, num_eval_prompts=10, task={"max_prompt_tokens": 20}))
    assert len(prompts.contract) == 8
    lengths = sorted(len(prompt.text) for prompt in prompts.held_out)
    assert [len(text.text) for text in prompts.contract] == lengths[:8]
    assert all(len(text.token_ids) == len(text.text) for text in prompts.contract)  # a character is a token


def test_unreadable_tasks_raise_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tasks.jsonl:41: not valid JSON"), prompts_meanwhile(run_config(tmp_path, "{")):
        pytest.fail("what is inside would have started Ray")


def test_too_few_prompts_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        rendered(run_config(tmp_path, prompts_per_step=1000, num_eval_prompts=1000))
    assert "learner.prompts_per_step=1000 is more than the" in str(caught.value)
    assert "evaluation.num_prompts=1000 is more than the" in str(caught.value)


@pytest.mark.parametrize(("mode", "verb"), [("drop", "left out"), ("truncate_left", "cut")])
def test_long_prompts_are_told(tmp_path: Path, mode: str, verb: str) -> None:
    long = json.dumps({"prompt": "a task with more tokens"})
    assert (
        rendered(run_config(tmp_path, long, task={"overlong": mode})).note == f"{verb} 1 prompts longer than max_prompt_tokens=8"
    )
    with pytest.raises(PromptTooLongError, match="renders to 23 tokens"):
        rendered(run_config(tmp_path, long))


def test_shared_memory_that_is_too_small_is_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs("/dev/shm")
    small = os.statvfs_result((*real[:4], 0, *real[5:]))  # no block is available

    monkeypatch.setattr(placement.os, "statvfs", lambda folder: small)
    with pytest.raises(ConfigError, match=r"/dev/shm has 0.0 MiB free, .* weights need [\d.]+ MiB there.*--shm-size"):
        rendered(run_config(tmp_path))
