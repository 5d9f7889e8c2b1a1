"""TRL's GRPO trainer at work, in TRL's own environment: reads the work as JSON on stdin, prints seconds a step as JSON.

Run by `peer_trl`; imports nothing of ours.
"""

import json
import sys
import tempfile
import time

from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Stopwatch(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.ends_s.append(time.perf_counter())

    def on_step_end(self, *_: object, **__: object) -> None:
        self.ends_s.append(time.perf_counter())


def main() -> None:
    work = json.load(sys.stdin)
    answers, sys.stdout = sys.stdout, sys.stderr  # the trainer prints its progress
    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=work["model"],
            reward_funcs=lambda completions, **_: [-0.01 * len(completion) for completion in completions],
            args=GRPOConfig(
                output_dir=folder,
                model_init_kwargs={"dtype": work["dtype"]},
                use_cpu=True,
                bf16=work["dtype"] == "bfloat16",
                per_device_train_batch_size=work["num_prompts"] * work["num_samples"],
                num_generations=work["num_samples"],
                max_completion_length=work["num_tokens"],
                beta=work["kl_coef"],
                max_steps=work["num_steps"],
                learning_rate=1e-6,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
            ),
            train_dataset=Dataset.from_dict({"prompt": work["prompts"]}),
            callbacks=[stopwatch],
        )
        trainer.train()
    seconds = [end - start for start, end in zip(stopwatch.ends_s, stopwatch.ends_s[1:], strict=False)]
    answers.write(json.dumps({"step_s": seconds}) + "\n")


if __name__ == "__main__":
    main()
