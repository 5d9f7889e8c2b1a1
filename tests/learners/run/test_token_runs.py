"""A language model of one's own from a text through RLlib's PPO to a folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from actors.config import RewardModelScorerConfig
from actors.scoring.reward_head import start_reward_model
from actors.scoring.reward_model import RewardModel
from actors.sources.models import resolve_model
from actors.sources.tiny_model import byte_tokenizer
from cluster.errors import ConfigError, DataError
from cluster.storage.run_directory import read_summary
from learners.language_models.files import load_language_model
from learners.language_models.sampling import sample
from learners.rllib.training import RLlibTraining
from learners.run import commands
from learners.run.plan import plan_run
from learners.settings.run import load_run_config

TEXT = "\n".join(f"{first} + {second} = {first + second}" for first in range(10) for second in range(10))
PRETRAIN = {"algorithm": "pretrain", "network": {"kind": "lstm", "hidden_size": 24}, "num_steps": 60, "context_tokens": 20}
PPO = {
    "algorithm": "rllib_ppo",
    "num_env_steps": 512,
    "gamma": 1.0,
    "lr": 0.01,
    "train_batch_size_per_learner": 256,
    "minibatch_size": 128,
    "num_epochs": 2,
}
PROMPTS = {"kind": "arithmetic", "max_operand": 9, "num_train": 50, "num_held_out": 10}
TASK = {"kind": "tokens", "prompts": PROMPTS, "max_completion_tokens": 6}
SCORERS = [{"kind": "function", "function": "length", "weight": -1.0}]


def pretrained(path: Path, **network: Any) -> Path:
    (path / "text.txt").write_text(TEXT)
    learner = PRETRAIN | {"network": network or PRETRAIN["network"]}
    values = {
        "name": "start",
        "runs_dir": str(path),
        "text": {"path": str(path / "text.txt"), "end_after": "line"},
        "learner": learner,
    }
    (path / "start.yaml").write_text(yaml.safe_dump(values))
    return commands.run_training(load_run_config(path / "start.yaml")) / "language_model"


def write_config(path: Path, model: Path, **others: Any) -> Path:
    evaluation = {"num_prompts": 10, "samples_per_prompt": 4, "judges": [{"function": "repetition"}]}
    run = {"name": "sums", "runs_dir": str(path), "model": str(model)}
    values = run | {"task": TASK, "scorers": SCORERS, "learner": PPO, "evaluation": evaluation}
    path.mkdir(exist_ok=True)
    (path / "sums.yaml").write_text(yaml.safe_dump(values | {"checkpoint": {"every_num_env_steps": 256}} | others))
    return path / "sums.yaml"


@pytest.mark.cold_start
@pytest.mark.usefixtures("ray_to_join")
def test_a_run_learns_reports_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pretrained(tmp_path)
    run = commands.run_training(load_run_config(write_config(tmp_path / "whole", model)))
    summary = read_summary(run)
    assert summary["state"] == "completed"
    assert list(summary["wall_s"]) == ["evaluate before", "train", "evaluate after", "export"]
    before, after = summary["before"], summary["after"]
    assert before["kl_nats_per_completion"] == pytest.approx(0, abs=1e-5)  # the start itself
    assert after["kl_nats_per_completion"] > 0
    assert before["num_completions"] == 40
    assert before["score_mean"] == -before["completion_tokens_mean"]
    assert 1 < before["perplexity_under_start"] < 384
    assert "On 10 held-out prompts the score went from" in (run / "report.html").read_text()
    learned = load_language_model(run / "language_model")
    assert learned.vocabulary == load_language_model(model).vocabulary
    assert (run / "language_model" / "tokenizer.json").is_file()
    assert len(sample(learned, [[3]], max_tokens=2, temperature=1.0, seed=0)[0]) <= 2

    iterate = RLlibTraining.iterate

    def broken(training: RLlibTraining) -> dict[str, float]:
        if training.num_env_steps >= 256:
            raise OSError("the disk broke")
        return iterate(training)

    monkeypatch.setattr(RLlibTraining, "iterate", broken)
    with pytest.raises(Exception, match="the disk broke"):
        commands.run_training(load_run_config(write_config(tmp_path / "cut", model)))
    monkeypatch.setattr(RLlibTraining, "iterate", iterate)
    cut = commands.resume_run(tmp_path / "cut" / "sums", [], fresh=False)
    assert read_summary(cut)["after"] == after
    weights = Path("language_model") / "model.safetensors"
    assert (cut / weights).read_bytes() == (run / weights).read_bytes()
    assert (cut / "evaluation" / "after.json").read_text() == (run / "evaluation" / "after.json").read_text()


@pytest.mark.cold_start
@pytest.mark.usefixtures("no_ray")
def test_reward_models_and_functions_score_together_for_env_runners(tmp_path: Path) -> None:
    judge = start_reward_model(resolve_model("tiny"), dtype="float32", num_layers=None)
    torch.nn.init.normal_(judge.score.weight, generator=torch.Generator().manual_seed(0))
    judge.save_pretrained(tmp_path / "judge")
    byte_tokenizer().save_pretrained(tmp_path / "judge")
    reward_model = {"kind": "reward_model", "model": str(tmp_path / "judge"), "weight": 2.0, "dtype": "float32", "num_cpus": 0.1}
    learner = PPO | {"num_env_steps": 256, "num_env_runners": 1, "num_cpus_per_env_runner": 0.5}
    path = write_config(tmp_path / "run", pretrained(tmp_path), scorers=[*SCORERS, reward_model], learner=learner)
    run = commands.run_training(load_run_config(path))
    samples = json.loads((run / "evaluation" / "after.json").read_text())
    model = RewardModel(RewardModelScorerConfig.model_validate(reward_model))
    texts = [sample["prompt"] + sample["completion"] for sample in samples]
    found = [value for value in model.score_texts(texts) if isinstance(value, float)]
    expected = [2.0 * value - sample["num_tokens"] for value, sample in zip(found, samples, strict=True)]
    # Float32 sums of other batches: the last digits differ.
    assert [sample["score"] for sample in samples] == pytest.approx(expected, abs=1e-4)
    assert len({round(value, 3) for value in found}) > 20  # texts differ for the model
    [line] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    before = read_summary(run)["before"]
    assert line["episode/return_mean"] < -6  # the least that lengths alone give: env runners hear the reward model, too
    assert line["episode/return_mean"] == pytest.approx(before["score_mean"], abs=2 * before["score_std"])  # other prompts


@pytest.mark.cold_start
@pytest.mark.usefixtures("no_ray")
def test_a_text_without_a_score_ends_the_run_with_its_problem(tmp_path: Path) -> None:
    scorers = [{"kind": "python", "path": "json:dumps", "num_cpus": 0}]
    path = write_config(tmp_path / "run", pretrained(tmp_path), scorers=scorers, learner=PPO | {"num_env_runners": 1})
    with pytest.raises(
        DataError, match=r"texts have no score; first, reward function json:dumps raised TypeError.*correct the scorer and resume"
    ):
        commands.run_training(load_run_config(path))
    assert read_summary(tmp_path / "run" / "sums")["state"] == "failed"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("task.max_completion_tokens=60", "makes texts of up to 67 tokens, and the model reads 32; lower it"),
        ("evaluation.num_prompts=11", "num_prompts=11 is more than the 10 held-out prompts of task.prompts.kind=arithmetic"),
        ("learner.network.vf_share_layers=true", "take learner.network out"),
        ("evaluation.every_num_steps=5", "every_num_steps=5 is for methods of ours"),
        ("learner.algorithm=rllib_dqn", "learner.algorithm: .*rllib_ppo"),
        ("scorers.0.function=lenght", "scorers.0.*function.*length"),
        ("learner.options={kl_cof: 1}", "learner.options.kl_cof: RLlib has no such setting"),
    ],
)
def test_what_is_wrong_is_told_first(tmp_path: Path, override: str, problem: str) -> None:
    model = pretrained(tmp_path, kind="transformer", hidden_size=16, head_dim=8, max_position_embeddings=32)
    path = write_config(tmp_path, model)
    with pytest.raises(ConfigError, match=problem):
        commands.run_training(load_run_config(path, [override]))
    assert not (tmp_path / "sums").exists()


def test_the_plan_knows_the_environment(tmp_path: Path) -> None:
    plan = plan_run(load_run_config(write_config(tmp_path, pretrained(tmp_path))))
    assert plan["environment"] == "tokens (arithmetic)"
    assert plan["actions"] == "Discrete(384)"
    assert plan["evaluation"] == "40 completions"
    assert plan["optimizer_steps_per_iteration"] == 2 * 2
    assert [role["role"] for role in plan["placement"]["roles"]] == ["driver", "scorer length"]
