"""One rank of a learner on a device: what it learns is what the processor learns, and what that costs."""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, set_seed

from cluster.types import ScoredBatch
from learners.network.residence import HOST
from learners.policy.learner import PolicyLearner
from learners.policy.start import StartingPoint
from learners.run.memory_estimate import ModelShape, local_model_shape
from learners.settings.policy import PolicyLearnerConfig
from tests.benchmarks.random_batch import random_batch
from tests.benchmarks.step import necessary_flop
from tests.gpu.devices import GIB
from tests.learners.same_update import Gradients, assert_same_gradients, recorded_gradients

ConfigBuilder = Callable[..., PolicyLearnerConfig]
BatchBuilder = Callable[..., ScoredBatch]

NUM_TRAJECTORIES, NUM_TOKENS = 32, 512  # of the steps that are measured; as many tokens in the prompt as in the completion
# Dense bfloat16 products, FLOP a second, from the makers' data sheets; by a part of the card's name.
PEAK_RATES = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12, "A10": 125e12}
# Decoders with random weights, largest first; a step needs about 18 bytes a weight, and as much again for activations.
LARGER = (
    {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24},  # 3 billion
    {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},  # 1 billion
    {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},  # 0.4 billion
)
VOCABULARY = 32_000
STEP_BYTES = 24  # a weight: float32 weights, gradients and two moments, reference in bfloat16, activations


def learner_of(model: str, config: PolicyLearnerConfig) -> PolicyLearner:
    start = StartingPoint(model_path=model, temperature=1.0, max_completion_tokens=NUM_TOKENS, samples_per_prompt=1, seed=0)
    return PolicyLearner(start, config)


def gradients_of(model: str, config: PolicyLearnerConfig, batch: ScoredBatch) -> Gradients:
    """Of one update, on the processor."""
    with recorded_gradients() as gradients:
        learner_of(model, config).update(batch)
    return [{name: gradient.cpu() for name, gradient in step.items()} for step in gradients]


METHODS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "grpo with KL": {"algorithm": "grpo"},
    "own critic": {"critic": {"kind": "own_model"}},
    "frozen layer": {"num_frozen_layers": 1},
    "recomputed activations": {"activation_checkpointing": True},
    "adapter": {"lora": {"rank": 8}},
}


@pytest.mark.parametrize("method", METHODS)
def test_in_float32_a_device_finds_the_gradients_of_the_processor(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, method: str
) -> None:
    """Of the first optimizer step: later ones start from weights that differ by rounding."""
    batch = scored_batch(8, group_size=2)
    fields = {**METHODS[method], "minibatch_size": 8}
    expected = gradients_of(tiny_model, ppo_config(**fields), batch)
    found = gradients_of(tiny_model, ppo_config(**fields, num_gpus=1), batch)
    assert_same_gradients(found[:1], expected[:1])


def test_in_bfloat16_the_gradient_points_the_same_way(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, record_property: Callable[[str, object], None]
) -> None:
    batch = scored_batch(32)
    fields = {"prompts_per_step": 32, "minibatch_size": 32}
    [expected] = gradients_of(tiny_model, ppo_config(**fields), batch)
    [found] = gradients_of(tiny_model, ppo_config(**fields, num_gpus=1, compute_dtype="bfloat16"), batch)
    flat = [torch.cat([gradients[name].flatten() for name in expected]) for gradients in (expected, found)]
    cosine = float(torch.nn.functional.cosine_similarity(*flat, dim=0))
    record_property("cosine", f"{cosine:.4f}")
    assert cosine > 0.98  # bfloat16 keeps eight bits: a percent of each product, with random signs


def test_a_learner_that_takes_turns_leaves_its_device_and_goes_on(
    smollm2: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, record_property: Callable[..., None]
) -> None:
    """It learns what one learns that stays, to the bit: the same kernels on the same numbers."""
    config = ppo_config(num_gpus=1, algorithm="grpo", kl={"coef": 0.1})
    start = StartingPoint(
        model_path=smollm2, temperature=1.0, max_completion_tokens=8, samples_per_prompt=1, seed=0, takes_turns=True
    )
    before = torch.cuda.memory_allocated()
    turning = PolicyLearner(start, config)
    assert torch.cuda.memory_allocated() == before
    staying = learner_of(smollm2, config)
    for step in range(2):
        batch = scored_batch(8, step=step, group_size=2)
        staying.update(batch)
        started_s = time.perf_counter()
        turning.move_to(turning.device)
        woken_s = time.perf_counter()
        turning.update(batch)
        updated_s = time.perf_counter()
        turning.move_to(HOST)
        record_property("coming and leaving", f"{woken_s - started_s:.2f} s and {time.perf_counter() - updated_s:.2f} s")
    expected = {name: tensor.cpu() for name, tensor in staying.snapshot().tensors.items()}
    del staying
    gc.collect()
    assert torch.cuda.memory_allocated() - before < 64 * 2**20  # workspaces of cuBLAS stay
    for name, tensor in turning.snapshot().tensors.items():
        assert torch.equal(tensor.cpu(), expected[name]), name


def larger_model(folder: Path) -> str:
    """The largest of `LARGER` that this device can train, with random weights."""
    free, _ = torch.cuda.mem_get_info()
    for sizes in LARGER:
        config = LlamaConfig(
            **sizes, vocab_size=VOCABULARY, num_key_value_heads=8, tie_word_embeddings=True, max_position_embeddings=4096
        )
        with torch.device("meta"):
            num_weights = AutoModelForCausalLM.from_config(config).num_parameters()
        if num_weights * STEP_BYTES < free:
            break
    set_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("which", ["SmolLM2-135M", "a larger one"])
def test_a_ppo_step_with_its_memory_and_rate(
    which: str, smollm2: str, tmp_path: Path, ppo_config: ConfigBuilder, record_property: Callable[[str, object], None]
) -> None:
    """The first step warms up. No speed is asserted: the table keeps it."""
    model = smollm2 if which == "SmolLM2-135M" else larger_model(tmp_path / "larger")
    config = ppo_config(
        num_gpus=1,
        compute_dtype="bfloat16",
        prompts_per_step=NUM_TRAJECTORIES,
        minibatch_size=NUM_TRAJECTORIES,
        micro_batch_tokens=8192,
        learning_rate=1e-6,
        activation_checkpointing=which != "SmolLM2-135M",
    )
    learner = learner_of(model, config)
    batches = [random_batch(step, lengths=[2 * NUM_TOKENS] * NUM_TRAJECTORIES) for step in range(2)]
    learner.update(batches[0])
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    started_s = time.perf_counter()
    metrics = learner.update(batches[1]).metrics
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started_s
    assert metrics["optim/skipped_steps"] == 0
    shape = local_model_shape(model)
    assert shape is not None
    record_property("weights", f"{shape.total / 1e9:.2f} billion")
    record_property("peak", f"{torch.cuda.max_memory_allocated() / GIB:.1f} GiB")
    for name, value in rates(config, shape, seconds).items():
        record_property(name, value)


def rates(config: PolicyLearnerConfig, shape: ModelShape, seconds: float) -> dict[str, str]:
    """Model FLOPs utilisation counts the products that a step needs, not those that are computed again. arXiv:2204.02311,
    appendix B."""
    scored = NUM_TRAJECTORIES * NUM_TOKENS
    flop = necessary_flop(config, shape, num_trajectories=NUM_TRAJECTORIES, all_tokens=2 * scored, scored=scored)
    rate, card = flop / seconds, torch.cuda.get_device_name()
    peak = next((value for part, value in PEAK_RATES.items() if part in card), None)
    found = {
        "step": f"{seconds:.2f} s",
        "rate": f"{rate / 1e12:.1f} TFLOP/s",
        "of measured products": f"{rate / product_rate():.0%}",
    }
    return found if peak is None else {**found, "MFU": f"{rate / peak:.1%}"}


def product_rate(size: int = 8192, repeats: int = 20) -> float:
    """FLOP a second of large bfloat16 products on this card."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        left @ right
    torch.cuda.synchronize()
    started_s = time.perf_counter()
    for _ in range(repeats):
        left @ right
    torch.cuda.synchronize()
    return 2 * size**3 * repeats / (time.perf_counter() - started_s)
