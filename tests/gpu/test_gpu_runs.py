"""Whole runs of SmolLM2 on devices, by the command line: each way for weights to reach engines, and each layout of roles.

What a run checks by itself counts here: engine and learner agree about log-probabilities before the first step, every engine
holds the checksum that was published, and an adapter samples. The steps are large, so that an engine with old weights would show.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.gpu.devices import needs_devices

Recorder = Callable[[str, object], None]

NUM_STEPS = 4
MAX_MISMATCH_NATS = 0.05  # a token, on average; bfloat16 engines and learners differ by about 0.01
PARTS = ("rollout", "learn", "publish")

pytestmark = [pytest.mark.cold_start, pytest.mark.usefixtures("no_ray"), pytest.mark.timeout(1800)]


def config_of(folder: Path, *, generator: Mapping[str, Any], workers: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    learner = {
        "algorithm": "ppo",
        "num_steps": NUM_STEPS,
        "prompts_per_step": 16,
        "minibatch_size": 64,
        "optimizer": {"learning_rate": 5e-5},
        "workers": {"num_cpus": 0.5, "micro_batch_tokens": 8192, **workers},
    }
    return {
        "name": "gpu",
        "runs_dir": str(folder),
        "model": "smollm2-135m-instruct",
        "task": {"kind": "arithmetic", "max_operand": 20, "num_examples": 2, "num_train": 128, "num_held_out": 16},
        "sampling": {"max_completion_tokens": 64, "samples_per_prompt": 4},
        "generator": {"num_cpus": 0.5, "max_model_tokens": 512, "max_num_sequences": 64, **generator},
        "scorers": [{"kind": "function", "function": "length", "weight": -0.05}],
        "evaluation": {"num_prompts": 8},
        "learner": {**learner, **more.pop("learner", {})},
        **more,
    }


def steps_of(folder: Path, config: Mapping[str, Any]) -> list[dict[str, float]]:
    """Run it; the metrics of each step."""
    folder.mkdir()
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(dict(config)))
    done = subprocess.run(
        [sys.executable, "-m", "rayward", "train", str(path), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in (folder / "gpu" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "time/learn_s" in line]


def check(steps: list[dict[str, float]], record_property: Recorder) -> None:
    assert len(steps) == NUM_STEPS
    mismatch = max(step["policy/mismatch_abs_mean"] for step in steps)
    for part in PARTS:
        record_property(part, f"{statistics.median(step[f'time/{part}_s'] for step in steps[1:]):.2f} s")
    record_property("mismatch", f"{mismatch:.4f} nats a token")
    assert mismatch < MAX_MISMATCH_NATS
    assert all(step["optim/skipped_steps"] == 0 for step in steps)


ON_ONE_DEVICE = {
    "shm": {},
    "ipc": {"weight_transfer": "ipc"},
}


@pytest.mark.parametrize("backend", ON_ONE_DEVICE)
def test_learner_and_engine_on_one_device(run_folder: Path, backend: str, record_property: Recorder) -> None:
    generator = {"num_gpus": 0.4, **ON_ONE_DEVICE[backend]}
    check(steps_of(run_folder, config_of(run_folder, generator=generator, workers={"num_gpus": 0.6})), record_property)


@pytest.mark.parametrize("sleep_level", [1, 2])
def test_roles_that_take_turns_on_one_device(run_folder: Path, sleep_level: int, record_property: Recorder) -> None:
    """Each role would not fit beside the others: an engine in its turn takes four fifths of the device."""
    config = config_of(
        run_folder,
        generator={"num_gpus": 0.6, "sleep_level": sleep_level},
        workers={"num_gpus": 0.3},
        placement="shared",
    )
    check(steps_of(run_folder, config), record_property)


def test_an_adapter_on_one_device(run_folder: Path, record_property: Recorder) -> None:
    lora = {"lora": {"rank": 16}, "optimizer": {"learning_rate": 1e-3}}
    config = config_of(run_folder, generator={"num_gpus": 0.4}, workers={"num_gpus": 0.6}, learner=lora)
    check(steps_of(run_folder, config), record_property)


def test_rollouts_ahead_of_the_learner_on_one_device(run_folder: Path, record_property: Recorder) -> None:
    config = config_of(run_folder, generator={"num_gpus": 0.4}, workers={"num_gpus": 0.6}, asynchronous={"max_staleness": 1})
    steps = steps_of(run_folder, config)
    assert len(steps) == NUM_STEPS
    record_property("staleness", f"{max(step['rollout/staleness_max'] for step in steps):.0f}")


@needs_devices(2)
def test_weights_by_nccl(run_folder: Path, record_property: Recorder) -> None:
    config = config_of(run_folder, generator={"num_gpus": 1, "weight_transfer": "nccl"}, workers={"num_gpus": 1})
    check(steps_of(run_folder, config), record_property)


@needs_devices(2)
def test_an_engine_on_two_devices(run_folder: Path, record_property: Recorder) -> None:
    """Tensor parallel; the learner is on the processor, so that two devices are enough."""
    config = config_of(
        run_folder,
        # SmolLM2 has 9 query and 3 key-value heads, which two devices cannot share.
        generator={"num_gpus": 2, "tensor_parallel_size": 2},
        workers={"num_gpus": 0, "num_threads": 4},
        model=str(even_model(run_folder.parent / "even")),
    )
    check(steps_of(run_folder, config), record_property)


@needs_devices(2)
def test_a_learner_in_two_parts(run_folder: Path, record_property: Recorder) -> None:
    workers = {"num_gpus": 0.6, "num_workers": 2, "sharding": "full"}
    check(steps_of(run_folder, config_of(run_folder, generator={"num_gpus": 0.4}, workers=workers)), record_property)


@needs_devices(3)
def test_an_engine_on_two_devices_fed_by_nccl(run_folder: Path, record_property: Recorder) -> None:
    config = config_of(
        run_folder,
        generator={"num_gpus": 2, "tensor_parallel_size": 2, "weight_transfer": "nccl"},
        workers={"num_gpus": 1},
        model=str(even_model(run_folder.parent / "even")),
    )
    check(steps_of(run_folder, config), record_property)


def even_model(folder: Path) -> Path:
    """SmolLM2's tokenizer, and random weights whose heads two devices share."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, set_seed

    from actors.sources.models import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct"))
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
