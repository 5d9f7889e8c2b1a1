"""TRL's GRPO trainer on generated sums, in TRL's own environment: reads the work as JSON on stdin, prints seconds as JSON.

Run by `sums_against_trl`; imports nothing of ours.
"""

import json
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl import GRPOConfig, GRPOTrainer


def main() -> None:
    work = json.load(sys.stdin)
    answers, sys.stdout = sys.stdout, sys.stderr  # the trainer prints its progress
    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype="float32")
    freeze(model, work["num_frozen_layers"], trains_embeddings=work["trains_embeddings"])
    number = re.compile(work["number"])

    def is_right(completion: str, answer: str) -> float:
        found = number.search(completion)
        return float(found is not None and found.group() == answer)

    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=lambda completions, answer, **_: list(map(is_right, completions, answer)),
        args=GRPOConfig(output_dir=work["folder"], seed=work["seed"], **trainer_settings(work)),
        train_dataset=Dataset.from_dict({"prompt": work["prompts"], "answer": work["answers"]}),
    )
    started_s = time.perf_counter()
    trainer.train()
    train_s = time.perf_counter() - started_s
    trainer.save_model(work["folder"])
    tokenizer.save_pretrained(work["folder"])
    answers.write(json.dumps({"train_s": train_s, "log": trainer.state.log_history}) + "\n")


def freeze(model: PreTrainedModel, num_layers: int, *, trains_embeddings: bool) -> None:
    model.get_input_embeddings().requires_grad_(trains_embeddings)  # and with them the tied head
    for layer in model.model.layers[:num_layers]:
        layer.requires_grad_(False)


def trainer_settings(work: Mapping[str, Any]) -> dict[str, Any]:
    """One batch of completions is sampled, then cut into minibatches, each of which is one step of the optimizer."""
    batch_size = work["prompts_per_step"] * work["samples_per_prompt"]
    num_minibatches = batch_size // work["minibatch_size"]
    return {
        "use_cpu": True,
        "bf16": True,  # autocast, over weights in float32
        "per_device_train_batch_size": work["minibatch_size"],
        "steps_per_generation": num_minibatches,
        "num_generations": work["samples_per_prompt"],
        "max_completion_length": work["max_completion_tokens"],
        "max_steps": work["num_steps"] * num_minibatches,
        "temperature": 1.0,
        "beta": work["kl_coef"],
        "learning_rate": work["learning_rate"],
        "adam_beta2": work["adam_beta2"],
        "lr_scheduler_type": "linear",
        "loss_type": work["loss_type"],
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
    }


if __name__ == "__main__":
    main()
