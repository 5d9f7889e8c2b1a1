"""Packed forward passes on a device: its own kernel for sequences of any length finds what padded passes find."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen

from cluster.types import ScoredBatch
from learners.settings.policy import PolicyLearnerConfig
from tests.benchmarks.packing import LENGTHS, lengths_of
from tests.benchmarks.random_batch import random_batch
from tests.gpu.test_gpu_learner import METHODS, gradients_of, learner_of
from tests.learners.same_update import assert_same_gradients

ConfigBuilder = Callable[..., PolicyLearnerConfig]
BatchBuilder = Callable[..., ScoredBatch]
NUM_TOKENS = 32_768  # of a measured update


@pytest.mark.parametrize("method", METHODS)
def test_in_float32_packed_gradients_are_those_of_padded_passes(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, method: str
) -> None:
    """Flash attention has no float32, so each length has a call of its own."""
    padded, packed = (
        gradients_of(tiny_model, ppo_config(**METHODS[method], minibatch_size=8, num_gpus=1, packing=way), scored_batch(8))
        for way in ("padded", "packed")
    )
    assert_same_gradients(packed[:1], padded[:1])


def test_in_bfloat16_the_device_has_a_kernel_and_its_gradient_points_the_same_way(
    tiny_model: str,
    ppo_config: ConfigBuilder,
    scored_batch: BatchBuilder,
    record_property: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, kernel = [], torch.nn.attention.varlen.varlen_attn

    def counted(*states: Any, **settings: Any) -> Any:
        calls.append(settings["window_size"])
        return kernel(*states, **settings)

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", counted)
    batch, found = scored_batch(32), {}
    for way in ("padded", "auto"):
        fields = {"prompts_per_step": 32, "minibatch_size": 32, "num_gpus": 1, "compute_dtype": "bfloat16", "packing": way}
        [gradients] = gradients_of(tiny_model, ppo_config(**fields), batch)
        found[way] = torch.cat([gradients[name].flatten() for name in sorted(gradients)])
        assert bool(calls) == (way == "auto")
    assert set(calls) == {(-1, 0)}
    cosine = float(torch.nn.functional.cosine_similarity(found["padded"], found["auto"], dim=0))
    record_property("cosine", f"{cosine:.4f}")
    assert cosine > 0.98  # bfloat16 keeps eight bits: a percent of each product, with random signs


@pytest.mark.parametrize("kind", LENGTHS)
def test_what_packing_saves(
    smollm2: str, ppo_config: ConfigBuilder, record_property: Callable[[str, object], None], kind: str
) -> None:
    """No speed is asserted: the table keeps it. The first update warms up."""
    lengths, seconds = lengths_of(kind, NUM_TOKENS), {}
    for way in ("padded", "packed"):
        fields = {"num_gpus": 1, "compute_dtype": "bfloat16", "micro_batch_tokens": 8192, "packing": way}
        learner = learner_of(smollm2, ppo_config(**fields, prompts_per_step=len(lengths), minibatch_size=len(lengths)))
        measured = []
        for step in range(4):
            begun_s = time.perf_counter()
            learner.update(random_batch(step, lengths=lengths))
            measured.append(time.perf_counter() - begun_s)
        seconds[way] = statistics.median(measured[1:])
    record_property(f"{kind}: packed / padded", f"{seconds['packed'] / seconds['padded']:.2f} of {seconds['padded']:.2f} s")
