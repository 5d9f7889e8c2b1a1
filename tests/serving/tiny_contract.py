"""The serving contract of a folder with the tiny model, as a learner in float32 writes it."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.storage.serving_contract import ContractPrompt, ServingContract, file_digests, write_contract

TEXTS = ("The film is", "Hello, what is this?")


def seal_tiny(folder: Path, *, policy_version: int, shift: float = 0.0) -> None:
    """`shift`: nats by which it lies about every token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = []
    for text in TEXTS:
        token_ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.inference_mode():
            logprobs_TV = model(token_ids).logits[0, :-1].log_softmax(-1)
        logprobs_T = logprobs_TV.gather(1, token_ids[0, 1:, None]).squeeze(1) + shift
        prompts.append(ContractPrompt(text=text, token_ids=tuple(token_ids[0].tolist()), logprobs=tuple(logprobs_T.tolist())))
    contract = ServingContract(
        policy_version=policy_version,
        weights_dtype="float32",
        compute_dtype="float32",
        max_logprob_mismatch=0.1,
        files=file_digests(folder),
        prompts=tuple(prompts),
    )
    write_contract(folder, contract)
