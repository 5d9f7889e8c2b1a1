"""Our GRPO and TRL's on the same generated sums: python -m tests.experiments.sums_against_trl FOLDER [--seeds 3].

Both start from the same weights with the prompts, sampling, frozen layers, batches and optimizer steps of
`configs/train/grpo_arithmetic.yaml`. One evaluation judges all policies: sampled answers to the held-out sums, and the exact KL
to the start along them, in nats a completion. What stands in FOLDER/results.jsonl is not done again. To be run with nothing
beside it.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from actors.generation.rendering import load_tokenizer, render_prompts
from actors.rewards.number_match import NUMBER
from actors.sources.models import resolve_model
from actors.tasks import build_task_sets
from actors.tasks.task_set import TaskSet
from cluster.types import Prompt
from learners.settings.run import PolicyRunConfig, load_run_config
from tests.benchmarks.peer_trl import ROOT, trl_python

CONFIG = ROOT / "configs" / "train" / "grpo_arithmetic.yaml"
NUM_SAMPLES = 8  # of each held-out prompt
EVALUATION_SEED = 1
PARTS_OF_STEP = ("time/rollout_s", "time/learn_s", "time/publish_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to train. Produced by `contenders`, consumed by `main`."""

    name: str
    is_ours: bool
    settings: Mapping[str, Any]  # ours: what differs from the configuration; TRL's: of its trainer


CONTENDERS = (
    Contender(name="Rayward", is_ours=True, settings={}),
    Contender(name="TRL", is_ours=False, settings={}),
    Contender(name="TRL, embeddings trained", is_ours=False, settings={"trains_embeddings": True}),
    Contender(name="Rayward, no KL", is_ours=True, settings={"learner.kl.coef": 0}),
    Contender(name="TRL, no KL", is_ours=False, settings={"kl_coef": 0.0}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="name of one contender")
    parser.add_argument("--set", action="append", default=[], help="a.b=c of ours, under a name of its own: --only NAME")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    done = {(line["name"], line["seed"]) for line in _lines(results)}
    judge = Judge()
    for seed in range(arguments.seeds):
        for contender in _chosen(arguments.only, arguments.set):
            if (contender.name, seed) in done:
                continue
            run = folder / f"{contender.name.lower().replace(', ', '-').replace(' ', '-')}-s{seed}"
            train_s, policy = (train_ours if contender.is_ours else train_theirs)(contender, seed, run)
            result = {"name": contender.name, "seed": seed, "train_s": train_s, **judge.judged(policy)}
            with results.open("a") as file:
                file.write(json.dumps(result) + "\n")
            sys.stdout.write(f"{_shown(result)}\n")


def train_ours(contender: Contender, seed: int, run: Path) -> tuple[float, Path]:
    """Seconds of its steps, and the policy's folder."""
    overrides = [f"{key}={value}" for key, value in contender.settings.items()]
    rayward = Path(sys.executable).with_name("rayward")
    command = [str(rayward), "train", str(CONFIG), f"seed={seed}", f"runs_dir={run.parent}", f"name={run.name}", *overrides]
    subprocess.run(command, check=True)
    seconds = sum(line.get(part, 0.0) for line in _lines(run / "metrics.jsonl") for part in PARTS_OF_STEP)
    (policy,) = (run / "policies").iterdir()
    return seconds, policy


def train_theirs(contender: Contender, seed: int, run: Path) -> tuple[float, Path]:
    """Seconds of its training loop, and the policy's folder."""
    config = _config()
    learner, (train, _) = config.learner, build_task_sets(config.task)
    work = {
        "model": resolve_model(config.model),
        "folder": str(run),
        "seed": seed,
        "prompts": [prompt.text for prompt in rendered(config, train)],
        "answers": [prompt.task.reference for prompt in rendered(config, train)],
        "number": NUMBER.pattern,
        "num_steps": learner.num_steps,
        "prompts_per_step": learner.prompts_per_step,
        "samples_per_prompt": config.sampling.samples_per_prompt,
        "max_completion_tokens": config.sampling.max_completion_tokens,
        "minibatch_size": learner.minibatch_size,
        "num_frozen_layers": learner.num_frozen_layers,
        "kl_coef": learner.kl.coef,
        "learning_rate": learner.optimizer.learning_rate,
        "adam_beta2": learner.optimizer.betas[1],
        "loss_type": "grpo",  # the mean over a completion's tokens first, as in our preset
        "trains_embeddings": False,
        **contender.settings,
    }
    child = [str(trl_python()), str(Path(__file__).with_name("sums_against_trl_child.py"))]
    done = subprocess.run(child, input=json.dumps(work), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)["train_s"], run


class Judge:
    """Samples answers to the held-out sums, and measures how far a policy has gone from the start. In float32."""

    def __init__(self) -> None:
        config = _config()
        start = resolve_model(config.model)
        self._num_tokens = config.sampling.max_completion_tokens
        self._prompts = rendered(config, build_task_sets(config.task)[1])
        self._tokenizer = AutoTokenizer.from_pretrained(start, padding_side="left")
        self._start = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32).eval()

    @torch.inference_mode()
    def judged(self, folder: Path) -> dict[str, float]:
        """Share of right answers, its standard error over prompts, and KL to the start in nats a completion."""
        policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        torch.manual_seed(EVALUATION_SEED)
        read = self._tokenizer(
            [prompt.text for prompt in self._prompts], return_tensors="pt", padding=True, add_special_tokens=False
        )
        models = [_Reader(model, read) for model in (policy, self._start)]
        kl = torch.zeros(len(self._prompts) * NUM_SAMPLES)
        is_going = torch.ones(len(kl), dtype=torch.bool)
        sampled = []
        for _ in range(self._num_tokens):
            mine, first = (model.next_logprobs for model in models)
            kl += (mine.exp() * (mine - first)).sum(-1) * is_going
            chosen = torch.multinomial(mine.exp(), 1)
            sampled.append(torch.where(is_going[:, None], chosen, self._tokenizer.eos_token_id))
            is_going = is_going & (chosen[:, 0] != self._tokenizer.eos_token_id)
            for model in models:
                model.read(chosen)
        answers = self._tokenizer.batch_decode(torch.cat(sampled, 1), skip_special_tokens=True)
        references = [prompt.task.reference for prompt in self._prompts for _ in range(NUM_SAMPLES)]
        right = torch.tensor([_is_right(answer, reference) for answer, reference in zip(answers, references, strict=True)])
        of_prompts = right.view(len(self._prompts), NUM_SAMPLES).mean(1)
        return {
            "accuracy": of_prompts.mean().item(),
            "standard_error": (of_prompts.std() / len(of_prompts) ** 0.5).item(),
            "kl_nats": kl.mean().item(),
        }


class _Reader:
    """A model that has read the prompts once, and follows the samples of each."""

    def __init__(self, model: PreTrainedModel, prompts: Mapping[str, torch.Tensor]) -> None:
        self._model = model
        positions = (prompts["attention_mask"].cumsum(1) - 1).clamp(min=0)
        read = model(**prompts, position_ids=positions, use_cache=True, logits_to_keep=1)
        self._cache = read.past_key_values
        self._cache.batch_repeat_interleave(NUM_SAMPLES)
        self._mask = prompts["attention_mask"].repeat_interleave(NUM_SAMPLES, 0)
        self.next_logprobs = log_softmax(read.logits[:, -1], -1).repeat_interleave(NUM_SAMPLES, 0)  # (samples, vocabulary)

    def read(self, chosen: torch.Tensor) -> None:
        """`chosen`: (samples, 1), the next token of each."""
        self._mask = torch.cat([self._mask, torch.ones_like(chosen)], 1)
        positions = self._mask.sum(1, keepdim=True) - 1
        following = self._model(
            input_ids=chosen, attention_mask=self._mask, position_ids=positions, past_key_values=self._cache, use_cache=True
        )
        self.next_logprobs = log_softmax(following.logits[:, -1], -1)


def rendered(config: PolicyRunConfig, tasks: TaskSet) -> tuple[Prompt, ...]:
    return render_prompts(tasks, load_tokenizer(resolve_model(config.model)), task_config=config.task).prompts


def _config() -> PolicyRunConfig:
    config = load_run_config(CONFIG)
    assert isinstance(config, PolicyRunConfig)
    return config


def _chosen(only: str, overrides: Sequence[str]) -> Iterator[Contender]:
    if overrides:
        yield Contender(name=only, is_ours=True, settings=dict(override.split("=", 1) for override in overrides))
        return
    yield from (contender for contender in CONTENDERS if only in ("", contender.name))


def _is_right(answer: str, reference: str) -> float:
    found = NUMBER.search(answer)
    return float(bool(found and found.group() == reference))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _shown(result: Mapping[str, Any]) -> str:
    return (
        f"{result['name']}, seed {result['seed']}: {100 * result['accuracy']:.1f} % right "
        f"({100 * result['standard_error']:.1f}), {result['kl_nats']:.2f} nats, {result['train_s']:.0f} s"
    )


if __name__ == "__main__":
    main()
