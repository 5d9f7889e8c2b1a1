"""Which networks an update runs, and that what it leaves out changes nothing."""

import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.types import ScoredBatch
from learners.network.models import PolicyWithCritic, Reference
from learners.policy.learner import PolicyLearner
from learners.policy.objective import StepTerms
from learners.policy.start import StartingPoint
from learners.settings.policy import PolicyLearnerConfig
from tests.learners.same_update import assert_same_gradients, assert_same_weights, recorded_gradients
from tests.learners.thread_ranks import ThreadRanks

ConfigBuilder = Callable[..., PolicyLearnerConfig]
BatchBuilder = Callable[..., ScoredBatch]
LEARNING_RATE = 1e-4

ONE_STEP = {"minibatch_size": 8}
METHODS = [
    pytest.param({"algorithm": "dr_grpo", **ONE_STEP}, (1, 0), id="no KL, one step"),
    pytest.param({"algorithm": "grpo", **ONE_STEP}, (1, 1), id="KL as a loss, one step"),
    pytest.param({"algorithm": "dapo", **ONE_STEP, "mismatch": {"reject_sequences": True}}, (1, 0), id="rejection, one step"),
    pytest.param(
        {"algorithm": "gspo", **ONE_STEP, "mismatch": {"old_logprobs": "rollout", "correction": "none"}},
        (1, 0),
        id="the engine's numbers are the old ones",
    ),
    pytest.param({"algorithm": "dr_grpo", "minibatch_size": 4}, (1 + 2, 0), id="two steps"),
    pytest.param({"algorithm": "dr_grpo", **ONE_STEP, "num_epochs": 2}, (1 + 2, 0), id="two epochs"),
    pytest.param({"algorithm": "rloo", **ONE_STEP}, (1 + 1, 1), id="KL in the reward"),
    pytest.param({"algorithm": "rloo", **ONE_STEP, "kl": {"coef": 0.0}}, (1, 0), id="no KL in the reward"),
    pytest.param({**ONE_STEP, "kl": {"coef": 0.0}}, (1 + 1, 0), id="a critic"),
]


def _learner(model: str, config: PolicyLearnerConfig, *, rank: int = 0, world_size: int = 1) -> PolicyLearner:
    start = StartingPoint(model_path=model, temperature=1.0, max_completion_tokens=8, samples_per_prompt=1, seed=0)
    return PolicyLearner(start, config, rank=rank, world_size=world_size)


def _policy(learner: PolicyLearner) -> dict[str, Tensor]:
    return {name.replace("/", ".", 1): each for name, each in learner.snapshot().tensors.items() if name.startswith("policy/")}


def _timeless(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


@pytest.mark.parametrize(("fields", "expected"), METHODS)
def test_an_update_runs_no_network_that_nothing_asks_for(
    tiny_model: str,
    ppo_config: ConfigBuilder,
    scored_batch: BatchBuilder,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    expected: tuple[int, int],
) -> None:
    config = ppo_config(**fields)
    learner = _learner(tiny_model, config)
    ran: list[type] = []
    for network in (PolicyWithCritic, Reference):
        monkeypatch.setattr(network, "forward", _noted(network.forward, network, ran))
    metrics = learner.update(scored_batch(group_size=2)).metrics
    assert (ran.count(PolicyWithCritic), ran.count(Reference)) == expected  # a batch is one pack, a minibatch too
    assert ("policy/ref_kl_nats_per_completion" in metrics) is config.kl.is_used


def _noted(forward: Callable[..., Any], network: type, ran: list[type]) -> Callable[..., Any]:
    def noting_forward(*arguments: Any, **settings: Any) -> Any:
        ran.append(network)
        return forward(*arguments, **settings)

    return noting_forward


@pytest.mark.numeric
@pytest.mark.parametrize("fields", [method.values[0] for method in METHODS[:4]])
def test_the_old_policy_taken_from_the_only_step_gives_the_weights_of_a_pass_before_it(
    tiny_model: str,
    ppo_config: ConfigBuilder,
    scored_batch: BatchBuilder,
    fields: dict[str, Any],
) -> None:
    results = []
    for passes_first in (False, True):
        with pytest.MonkeyPatch.context() as patch, recorded_gradients() as gradients:
            if passes_first:
                patch.setattr("learners.policy.learner.needs_policy_pass", lambda config, num_trajectories: True)
                patch.setattr("learners.policy.learner.StepTerms", _terms_of_a_later_step)
            learner = _learner(tiny_model, ppo_config(**fields))
            metrics = [_timeless(learner.update(scored_batch(step=step, group_size=2)).metrics) for step in range(3)]
        results.append((gradients, _policy(learner), metrics))
    (gradients, weights, metrics), (gradients_of_passes, weights_of_passes, metrics_of_passes) = results
    assert_same_gradients(gradients, gradients_of_passes)
    assert_same_weights(weights, weights_of_passes, gradients_of_passes, learning_rate=LEARNING_RATE)
    assert metrics == [pytest.approx(each, rel=1e-3, abs=1e-5) for each in metrics_of_passes]


def _terms_of_a_later_step(**terms: Any) -> StepTerms:
    return StepTerms(**{**terms, "at_batch_start": False})


@pytest.mark.numeric
@pytest.mark.parametrize("world_size", [1, 2])
def test_frozen_layers_run_once_a_batch_and_the_update_is_the_same(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, world_size: int
) -> None:
    def trained(rank: int, rows_run: list[int], *, shares: bool) -> dict[str, Tensor]:
        config = ppo_config(num_frozen_layers=1, num_epochs=2, micro_batch_tokens=30, num_workers=world_size)
        with pytest.MonkeyPatch.context() as patch:
            if not shares:
                patch.setattr("learners.network.models.cut_trunk", lambda trunk, num_layers, settings: None)
            learner = _learner(tiny_model, config, rank=rank, world_size=world_size)
        assert isinstance(learner._reference, Reference)
        for network in (learner._network, learner._reference):
            lowest = network.policy.model.layers[0]
            lowest.register_forward_pre_hook(lambda layer, arguments: rows_run.append(len(arguments[0])))
        for step in range(2):
            learner.update(scored_batch(step=step))
        return _policy(learner)

    results = []
    for shares in (True, False):
        rows_run: list[int] = []
        with recorded_gradients() as gradients:
            weights = ThreadRanks(world_size).run(partial(trained, rows_run=rows_run, shares=shares))[0]
        results.append((weights, gradients, sum(rows_run)))
    (weights, gradients, num_run), (expected, expected_gradients, num_run_apart) = results
    assert_same_gradients(gradients, expected_gradients)
    assert_same_weights(weights, expected, expected_gradients, learning_rate=LEARNING_RATE)
    # Two batches of eight rows: policy, reference and two epochs each. Ranks hold other rows from pass to pass.
    assert num_run_apart == 2 * 8 * (2 + 2)
    assert num_run == 2 * 8 if world_size == 1 else 2 * 8 < num_run < num_run_apart


def test_ranks_report_the_old_policy_of_all_of_them(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder
) -> None:
    def metrics(rank: int, world_size: int) -> dict[str, float]:
        config = ppo_config(algorithm="grpo", minibatch_size=8, num_workers=world_size)
        learner = _learner(tiny_model, config, rank=rank, world_size=world_size)
        return _timeless([learner.update(scored_batch(step=step, group_size=2)).metrics for step in range(2)][-1])

    expected = metrics(0, 1)
    assert expected["policy/ref_kl_nats_per_completion"] != 0
    for found in ThreadRanks(2).run(lambda rank: metrics(rank, 2)):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.numeric
@pytest.mark.parametrize("fields", [{}, {"critic": {"kind": "own_model"}}, {"num_frozen_layers": 1}, {"lora": {"rank": 8}}])
def test_recomputed_activations_give_the_same_update(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, fields: dict[str, Any]
) -> None:
    plain, again = (_learner(tiny_model, ppo_config(activation_checkpointing=flag, **fields)) for flag in (False, True))
    expected, found = (_timeless(learner.update(scored_batch()).metrics) for learner in (plain, again))
    assert found == expected
    for name, weight in plain.snapshot().tensors.items():
        assert weight.equal(again.snapshot().tensors[name]), name


class DeviceQuestions(TorchDispatchMode):
    """Counts what makes the host wait for a device, were there one: numbers read, and shapes that depend on numbers.

    Not counted: transformers asks once a pass whether positions start anew within a row.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_asked = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.num_asked += all("transformers" not in frame.filename for frame in traceback.extract_stack())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("fields", [{}, {"num_frozen_layers": 1}, {"algorithm": "grpo"}])
def test_a_device_is_asked_equally_often_however_many_packs_there_are(
    tiny_model: str, ppo_config: ConfigBuilder, scored_batch: BatchBuilder, fields: dict[str, Any]
) -> None:
    asked = []
    for micro_batch_tokens in (24, 4096):
        learner = _learner(tiny_model, ppo_config(micro_batch_tokens=micro_batch_tokens, **fields))
        with DeviceQuestions() as questions:
            learner.update(scored_batch(group_size=4))
        asked.append(questions.num_asked)
    assert asked[0] == asked[1] > 0
