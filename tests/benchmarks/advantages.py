"""Seconds of generalised advantage estimation in blocks of tokens, against a loop over single tokens.

Run: python -m tests.benchmarks.advantages [--json]; on a GPU where there is one, else on the CPU. Prints the median of rounds by
turns, and the ratio; below 1 blocks are faster.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from learners.algorithms.advantages.gae import gae

SIZES = ((64, 64), (512, 1024), (256, 4096))  # trajectories, tokens
NUM_ROUNDS = 7
GAMMA, GAE_LAMBDA = 1.0, 0.95


def token_by_token(rewards_BT: Tensor, values_BT: Tensor, last_values_B: Tensor, mask_BT: Tensor) -> Tensor:
    advantages_BT = torch.zeros_like(rewards_BT)
    later_advantage_B, later_value_B = torch.zeros_like(last_values_B), last_values_B
    for t in range(rewards_BT.shape[1] - 1, -1, -1):
        surprise_B = rewards_BT[:, t] + GAMMA * later_value_B - values_BT[:, t]
        later_advantage_B = torch.where(mask_BT[:, t], surprise_B + GAMMA * GAE_LAMBDA * later_advantage_B, later_advantage_B)
        later_value_B = torch.where(mask_BT[:, t], values_BT[:, t], later_value_B)
        advantages_BT[:, t] = torch.where(mask_BT[:, t], later_advantage_B, 0.0)
    return advantages_BT


def in_blocks(rewards_BT: Tensor, values_BT: Tensor, last_values_B: Tensor, mask_BT: Tensor) -> Tensor:
    return gae(rewards_BT, values_BT, last_values_B, mask_BT, gamma=GAMMA, gae_lambda=GAE_LAMBDA)


def seconds(function: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> float:
    is_cuda = arguments[0].is_cuda
    if is_cuda:
        torch.cuda.synchronize()
    begun_s = time.perf_counter()
    function(*arguments)
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begun_s


def measure(num_trajectories: int, num_tokens: int, device: str) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    rewards_BT, values_BT = (torch.randn(num_trajectories, num_tokens, generator=generator).to(device) for _ in range(2))
    lengths_B = torch.randint(1, num_tokens + 1, (num_trajectories, 1), generator=generator)
    mask_BT = (torch.arange(num_tokens) < lengths_B).to(device)
    arguments = (rewards_BT, values_BT, torch.zeros(num_trajectories, device=device), mask_BT)
    torch.testing.assert_close(in_blocks(*arguments), token_by_token(*arguments), atol=1e-4, rtol=1e-4)
    times = [(seconds(token_by_token, arguments), seconds(in_blocks, arguments)) for _ in range(NUM_ROUNDS)]
    loop_s, blocks_s = (statistics.median(each) for each in zip(*times, strict=True))
    return {"loop_s": loop_s, "blocks_s": blocks_s, "ratio": blocks_s / loop_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {f"{trajectories} x {tokens}": measure(trajectories, tokens, device) for trajectories, tokens in SIZES}
    if arguments.json:
        sys.stdout.write(json.dumps({"device": device, **found}) + "\n")
        return
    for size, values in found.items():
        sys.stdout.write(
            f"{device}, {size}: {1000 * values['loop_s']:.1f} ms token by token, {1000 * values['blocks_s']:.1f} ms in blocks "
            f"({values['ratio']:.2f})\n"
        )


if __name__ == "__main__":
    main()
