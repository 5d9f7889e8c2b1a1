"""Learning a reward model: the loss by hand, the learner on the tiny model in float32, and its ranks under Ray Train."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, tensor
from torch.testing import assert_close
from transformers import PreTrainedModel

from actors.config import RewardModelScorerConfig
from actors.scoring.reward_head import encode_texts, last_token_scores, load_reward_model
from actors.scoring.reward_model import RewardModel
from actors.sources.tiny_model import byte_tokenizer
from cluster.errors import ActorLostError, ConfigError, DataError
from learners.algorithms.preference import comparisons, preference_loss
from learners.ranks.mailbox import CheckpointPlan
from learners.reward_model import learner as learner_module
from learners.reward_model.learner import RewardModelLearner
from learners.reward_model.records import ComparedTexts, RatedTexts, RewardModelJob
from learners.reward_model.training import train_reward_model
from learners.settings.reward_model import RewardModelLearnerConfig
from learners.settings.training import WorkerConfig
from tests.learners.conftest import NUM_THREADS

JobBuilder = Callable[..., RewardModelJob]
WORDS = {"awful": -2.0, "dull": -1.0, "plain": 0.0, "good": 1.0, "splendid": 2.0}  # word -> its text's rating


@pytest.fixture
def job(tiny_model: str, tmp_path: Path) -> JobBuilder:
    """Short texts whose rating one word decides; keyword arguments replace fields, also those of workers and optimizer."""

    def build(*, num_texts: int = 48, output: str = "reward", **fields: Any) -> RewardModelJob:
        workers = {"num_threads": NUM_THREADS, "compute_dtype": "float32", "num_cpus": 0.5}
        workers |= {name: fields.pop(name) for name in list(fields) if name in WorkerConfig.model_fields}
        # A large eps keeps Adam's division from turning rounding noise into steps.
        optimizer = {"learning_rate": 1e-3, "eps": 1e-3}
        optimizer |= {name: fields.pop(name) for name in list(fields) if name in ("learning_rate", "eps")}
        config = RewardModelLearnerConfig.model_validate({"batch_size": 8, "workers": workers, "optimizer": optimizer} | fields)
        rng = np.random.default_rng(0)
        words = [str(word) for word in rng.choice(list(WORDS), num_texts)]
        texts = [f"{'so ' * int(rng.integers(0, 4))}{word} a film" for word in words]
        token_ids = tuple(encode_texts(byte_tokenizer(), texts, max_tokens=config.max_tokens))
        ratings = tuple(WORDS[word] for word in words)
        pairs = tuple((i, j) for i in range(num_texts) for j in range(num_texts) if ratings[i] > ratings[j])
        return RewardModelJob(
            model_path=tiny_model,
            train=RatedTexts(token_ids=token_ids, ratings=ratings),
            held_out=ComparedTexts(token_ids=token_ids, pairs=pairs),
            config=config,
            seed=0,
            output_dir=tmp_path / output,
            checkpoints=CheckpointPlan(directory=tmp_path / f"{output}-checkpoints", keep=1, facts={"seed": "0"}),
        )

    return build


def test_the_loss_matches_a_hand_computation() -> None:
    scores_B = tensor([1.0, 0.0, 0.5])
    better_BB = comparisons(tensor([2.0, 0.0, 1.9]), min_rating_gap=0.5)
    assert better_BB.nonzero().tolist() == [[0, 1], [2, 1]]  # 2.0 and 1.9 are too close
    output = preference_loss(scores_B, better_BB)
    assert_close(output.loss, tensor(0.393669))  # (log(1 + e^-1) + log(1 + e^-0.5)) / 2 = (0.313262 + 0.474077) / 2
    assert output.metrics["reward_model/train_accuracy"] == 1.0


def test_ties_are_no_comparison_even_without_a_gap() -> None:
    assert comparisons(tensor([1.0, 1.0, 0.0]), min_rating_gap=0.0).nonzero().tolist() == [[0, 2], [1, 2]]


def test_a_batch_without_comparisons_has_no_loss_and_no_gradient() -> None:
    scores_B = tensor([3.0, -1.0], requires_grad=True)
    loss = preference_loss(scores_B, comparisons(tensor([1.0, 1.0]), min_rating_gap=0.5)).loss
    loss.backward()
    assert loss == 0.0
    assert scores_B.grad is not None
    assert scores_B.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("lora", [None, {"rank": 8}])
def test_a_resumed_learner_goes_on_bit_by_bit(job: JobBuilder, lora: dict[str, Any] | None) -> None:
    unbroken = RewardModelLearner(job(lora=lora))
    batches = unbroken.batches()
    for _ in range(3):
        unbroken.update(next(batches))
    resumed = RewardModelLearner(job(lora=lora))
    resumed.restore(unbroken.snapshot())
    for batch in batches:
        unbroken.update(batch)
    for batch in resumed.batches():
        resumed.update(batch)
    expected, found = unbroken.snapshot(), resumed.snapshot()
    assert found.numbers == expected.numbers == {"num_steps_done": 6, "num_optimizer_steps": 6}
    assert [name for name, tensor in expected.tensors.items() if not torch.equal(tensor, found.tensors[name])] == []


def test_an_adapter_and_the_head_learn_and_are_merged_into_a_plain_reward_model(job: JobBuilder) -> None:
    plan = job(num_texts=160, num_epochs=8, lora={"rank": 8}, learning_rate=3e-3, eps=1e-8)  # all right on each of four seeds
    learner = RewardModelLearner(plan)
    before = {name: parameter.clone() for name, parameter in learner._model.named_parameters()}
    for batch in learner.batches():
        learner.update(batch)
    moved = {name for name, parameter in learner._model.named_parameters() if not torch.equal(before[name], parameter)}
    assert moved == {name for name in before if ".lora_" in name or name == "score.weight"}
    kept = {name for name in learner.snapshot().tensors if name.startswith("model/")}
    assert kept == {f"model/{name}" for name in moved}
    assert learner.accuracy() > 0.9
    learner.normalise()
    learner.export()
    assert not [name for name in load_file(plan.output_dir / "model.safetensors") if "lora" in name or "base_layer" in name]
    token_ids = plan.held_out.token_ids[:8]
    read = load_reward_model(str(plan.output_dir), dtype="float32")
    assert_close(last_token_scores(read, token_ids), last_token_scores(learner._model, token_ids), atol=1e-4, rtol=1e-4)


@pytest.mark.numeric
def test_the_update_does_not_depend_on_the_micro_batches(job: JobBuilder) -> None:
    whole, cut = (_trained(job(output=str(size), micro_batch_tokens=size)) for size in (4096, 30))
    for name, parameter in whole.items():
        assert_close(cut[name], parameter, atol=1e-6, rtol=0)


@pytest.mark.numeric
@pytest.mark.parametrize("fields", [{}, {"lora": {"rank": 8}}, {"activation_checkpointing": True, "num_frozen_layers": 1}])
def test_packed_texts_give_the_same_update(job: JobBuilder, fields: dict[str, Any]) -> None:
    padded, packed = (_trained(job(output=way, packing=way, micro_batch_tokens=60, **fields)) for way in ("padded", "packed"))
    for name, parameter in padded.items():
        assert_close(packed[name], parameter, atol=1e-6, rtol=0)


@pytest.mark.numeric
def test_recomputed_activations_give_the_same_update(job: JobBuilder) -> None:
    plain, again = (_trained(job(output=str(flag), activation_checkpointing=flag)) for flag in (False, True))
    assert [name for name, parameter in plain.items() if not parameter.equal(again[name])] == []


def test_one_pack_at_a_time_has_a_graph(job: JobBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a backward pass needs is what fills memory, so `micro_batch_tokens` bounds it."""
    graphs: list[int] = []  # that are alive, after each pack with a gradient

    def recording_scores(model: PreTrainedModel, token_ids: Sequence[Sequence[int]], *, is_packed: bool) -> Tensor:
        scores_N = last_token_scores(model, token_ids, is_packed=is_packed)
        if scores_N.requires_grad:
            graphs.append(1 + (graphs[-1] if graphs else 0))
            scores_N.register_hook(lambda gradient_N: graphs.append(graphs[-1] - 1))
        return scores_N

    monkeypatch.setattr(learner_module, "last_token_scores", recording_scores)
    learner = RewardModelLearner(job(micro_batch_tokens=60))
    learner.update(next(learner.batches()))
    assert graphs == [1, 0] * (len(graphs) // 2)
    assert len(graphs) > 2  # several packs


def test_packs_add_up_to_the_gradient_of_the_whole_batch(job: JobBuilder) -> None:
    """Against one graph over all texts."""
    learner = RewardModelLearner(job(micro_batch_tokens=60))
    batches = learner.batches()
    learner.update(next(batches))  # else the head is at zero, and the trunk has no gradient
    batch = next(batches)
    model, data = copy.deepcopy(learner._model), job().train
    model.zero_grad()
    ratings_B = tensor([data.ratings[text] for text in batch], dtype=torch.float64)
    scores_B = last_token_scores(model, [data.token_ids[text] for text in batch])
    preference_loss(scores_B, comparisons(ratings_B, min_rating_gap=learner._config.min_rating_gap)).loss.backward()
    norm = learner.update(batch)["optim/grad_norm"]
    scale = min(1.0, learner._config.optimizer.max_grad_norm / norm)
    assert norm > 0
    for ours, expected in zip(learner._model.parameters(), model.parameters(), strict=True):
        assert ours.grad is not None
        assert expected.grad is not None
        assert_close(ours.grad, expected.grad * scale, atol=1e-6, rtol=1e-4)


def test_each_pass_is_one_permutation_and_a_fraction_is_a_part_of_one(job: JobBuilder) -> None:
    batches = list(RewardModelLearner(job(num_epochs=2.5)).batches())
    assert len(batches) == 15  # 48 texts x 2.5 passes / 8
    assert sorted(text for batch in batches[:6] for text in batch) == list(range(48))
    assert batches[6:12] != batches[:6]


def test_frozen_layers_and_embeddings_keep_their_weights(job: JobBuilder, tiny_model: str) -> None:
    start = load_file(Path(tiny_model) / "model.safetensors")
    trained = _trained(job(num_frozen_layers=1))
    changed = {name for name, parameter in start.items() if not trained[name].equal(parameter)}
    assert changed
    assert all(name.startswith(("model.layers.1.", "model.norm.")) for name in changed)


def numbers(model: RewardModel, texts: list[str]) -> list[float]:
    scores = [score for score in model.score_texts(texts) if isinstance(score, float)]
    assert len(scores) == len(texts)
    return scores


def test_it_learns_what_people_prefer_and_the_folder_scores_alike(job: JobBuilder) -> None:
    learner = RewardModelLearner(job(num_epochs=12, learning_rate=3e-3, eps=1e-8))
    for batch in learner.batches():
        learner.update(batch)
    assert learner.accuracy() > 0.95
    learner.normalise()
    learner.export()
    words = list(WORDS)
    folder = str(job().output_dir)
    model = RewardModel(RewardModelScorerConfig(model=folder, dtype="float32", num_threads=1))
    scores = numbers(model, [f"{word} a film" for word in words])
    assert sorted(scores) == scores
    # The 48 training texts fit into the sample that the normalisation is taken over.
    trained_on = numbers(model, [model.tokenizer.decode(ids[:-1]) for ids in job().train.token_ids])
    assert np.mean(trained_on) == pytest.approx(0.0, abs=1e-4)
    assert np.std(trained_on) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_epochs": 0.1}, "do not fill one batch"),
        ({"num_workers": 9}, "leaves some of the 9 workers"),
        ({"num_frozen_layers": 3}, "num_frozen_layers=3.*has 2"),
    ],
)
def test_settings_that_cannot_work_are_refused(job: JobBuilder, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RewardModelLearner(job(**fields))


def test_texts_need_one_rating_each() -> None:
    with pytest.raises(DataError, match="2 texts but 1 ratings"):
        RatedTexts(token_ids=((1,), (2,)), ratings=(0.0,))


@pytest.mark.usefixtures("local_ray")
def test_two_ranks_learn_what_one_rank_learns(job: JobBuilder, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    results = []
    for num_workers in (1, 2):
        # Batches of seven: ranks get unequal shares.
        config = job(output=str(num_workers), num_workers=num_workers, batch_size=7, num_epochs=0.5)
        result = train_reward_model(
            config, storage_path=tmp_path / "storage", on_step=lambda step, total, metrics: steps.append((step, total))
        )
        results.append((result, load_file(tmp_path / str(num_workers) / "model.safetensors")))
    assert steps == 2 * [(1, 3), (2, 3), (3, 3)]  # 48 texts x 0.5 // 7
    (one_result, one), (two_result, two) = results
    assert one_result.accuracy == two_result.accuracy
    assert one_result.num_texts == 21
    for name, parameter in one.items():
        assert_close(two[name], parameter, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("local_ray")
def test_a_failing_rank_is_explained(job: JobBuilder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_frozen_layers=3"):
        train_reward_model(job(num_frozen_layers=3), storage_path=tmp_path / "storage", on_step=lambda *report: None)


@pytest.mark.usefixtures("local_ray")
def test_ranks_that_do_not_come_are_told(job: JobBuilder, tmp_path: Path) -> None:
    with pytest.raises(
        ActorLostError, match=r"has not come: it has not started within 0\.1 s.*learner\.workers\.start_deadline_s"
    ):
        train_reward_model(job(start_deadline_s=0.1), storage_path=tmp_path / "storage", on_step=lambda *report: None)
    result = train_reward_model(job(num_epochs=0.2), storage_path=tmp_path / "storage", on_step=lambda *report: None)
    assert result.num_steps == 1  # the place of the first ranks is free again


def _trained(job: RewardModelJob) -> dict[str, Tensor]:
    """Weights after two steps."""
    learner = RewardModelLearner(job)
    for batch in list(learner.batches())[:2]:
        learner.update(batch)
    learner.export()
    return load_file(job.output_dir / "model.safetensors")
