"""A simulation, not a measurement: what a run's driver, generators and learner do with their time, from 1 to 1,000 generators.

Run: python -m tests.experiments.control_plane_simulation [--json], for two minutes. Prints a table, and draws control_plane.png
beside this file. The load grows with the cluster: each generator gets 8 prompts of 8 samples a step. There are two sets of costs:
rates of a small model that were measured on CPUs, and rates that are assumed for a model of 7B parameters on GPUs. The driver's
costs are measured in both, the scorers' assumed. "Taking turns" runs on as many devices as generators and ranks together, and
each of them does both.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.experiments.control_plane import Costs, Outcome, Roles, Run, Workload
from tests.experiments.control_plane_schedules import asynchronous, synchronous, taking_turns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = Path(__file__).with_name("control_plane.png")
NUMS_GENERATORS = (1, 4, 16, 64, 256, 1000)
PROMPTS_PER_GENERATOR = 8
WORKLOAD = Workload(  # of one generator
    prompts_per_step=PROMPTS_PER_GENERATOR,
    samples_per_prompt=8,
    num_steps=16,
    mean_tokens=1024.0,
    sigma=0.6,  # the longest of 64 completions has about 3.5 times the tokens of the mean
    max_tokens=4096,
    seed=0,
)
MAX_NUM_SEQUENCES = 64
MAX_IN_FLIGHT = 2 * MAX_NUM_SEQUENCES // WORKLOAD.samples_per_prompt  # as `RolloutPool`: two batches' worth of prompts
GENERATORS_PER_SCORER = 4

# `pool_held` of tests/benchmarks/dispatch.py over 4 actors, 512 calls in flight, and a little less with 4,096; two cores of an
# AMD EPYC with AVX-512, other work beside, 2026-11-29. 14 microseconds of it are the pool's, the rest is Ray's.
DRIVER_ITEM_S = 0.00045
DRIVER_STEP_S = 0.010  # the hand-off to the learner and back; two cores of an Intel Xeon, 2026-11-21


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Costs, and how many learner ranks there are for each generator."""

    title: str
    costs: Costs
    ranks_per_generator: float


SETTINGS = (
    Setting(
        title="SmolLM2-135M, CPUs, measured",
        costs=Costs(
            driver_item_s=DRIVER_ITEM_S,
            driver_step_s=DRIVER_STEP_S,
            sequence_token_s=64 / 490,  # 64 sequences together 490 tokens/s; Intel Xeon, 2026-11-21
            score_s=0.05,
            rank_token_s=1 / 310,  # forward and backward; Intel Xeon, 2026-11-21
            publish_s=0.53,  # four generators of one host, hashed once; AMD EPYC, 2026-11-28
            switch_s=30.0,  # an engine's start, for without a GPU it cannot sleep; Intel Xeon, 2026-11-21
        ),
        ranks_per_generator=1.0,
    ),
    Setting(
        title="7B, GPUs, assumed",
        costs=Costs(
            driver_item_s=DRIVER_ITEM_S,
            driver_step_s=DRIVER_STEP_S,
            sequence_token_s=1 / 40,
            score_s=0.05,
            rank_token_s=1 / 6000,
            publish_s=2.0,
            switch_s=5.0,
        ),
        ranks_per_generator=0.5,
    ),
)
SCHEDULES: dict[str, Callable[[Run], Outcome]] = {
    "synchronous": synchronous,
    "staleness 1": partial(asynchronous, max_staleness=1),
    "staleness 4": partial(asynchronous, max_staleness=4),
    "taking turns": taking_turns,
}
COLOURS = dict(zip(SCHEDULES, ("#667380", "#0b6fb8", "#009e73", "#d0680b"), strict=True))


def simulated(setting: Setting, schedule: str, num_generators: int) -> dict[str, Any]:
    """One row of the table."""
    num_ranks = max(1, round(setting.ranks_per_generator * num_generators))
    num_devices = num_generators + num_ranks
    takes_turns = schedule == "taking turns"
    roles = Roles(
        num_generators=num_devices if takes_turns else num_generators,
        max_num_sequences=MAX_NUM_SEQUENCES,
        max_in_flight=MAX_IN_FLIGHT,
        num_scorers=-(-num_generators // GENERATORS_PER_SCORER),
        num_ranks=num_devices if takes_turns else num_ranks,
    )
    run = Run(roles, setting.costs, replace(WORKLOAD, prompts_per_step=PROMPTS_PER_GENERATOR * num_generators))
    outcome = SCHEDULES[schedule](run)
    generating_ns = run.generators.busy_ns / MAX_NUM_SEQUENCES  # devices' time with all slots taken
    learning_ns = run.learner.busy_ns * roles.num_ranks
    return {
        "setting": setting.title,
        "generators": num_generators,
        "schedule": schedule,
        "step_s": outcome.wall_ns / 1e9 / WORKLOAD.num_steps,
        "driver_frac": run.driver.busy_ns / outcome.wall_ns,
        "generators_idle_frac": 1 - generating_ns / roles.num_generators / outcome.wall_ns,
        "learner_idle_frac": run.learner.idle_ns / outcome.wall_ns,
        "devices_idle_frac": 1 - (generating_ns + learning_ns) / num_devices / outcome.wall_ns,
        "staleness_mean": float(np.mean(outcome.staleness)),
        "staleness_max": max(outcome.staleness),
    }


def all_rows() -> list[dict[str, Any]]:
    rows = []
    for setting in SETTINGS:
        for num_generators in NUMS_GENERATORS:
            found = [simulated(setting, schedule, num_generators) for schedule in SCHEDULES]
            rows += [{**row, "throughput": found[0]["step_s"] / row["step_s"]} for row in found]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown, a part for each setting."""
    lines = []
    for setting in SETTINGS:
        lines += [
            f"{setting.title}:",
            "",
            "| generators | schedule | step, s | driver busy | generators idle | learner idle | all devices idle "
            "| staleness, mean (largest) | throughput |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['generators']:,} | {row['schedule']} | {row['step_s']:.0f} | {row['driver_frac']:.2%} "
            f"| {row['generators_idle_frac']:.0%} | {row['learner_idle_frac']:.0%} | {row['devices_idle_frac']:.0%} "
            f"| {row['staleness_mean']:.2f} ({row['staleness_max']}) | {row['throughput']:.2f} |"
            for row in rows
            if row["setting"] == setting.title
        ]
        lines.append("")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], picture: Path) -> None:
    """A row of panels for each setting."""
    import matplotlib.pyplot as plt

    figure, all_axes = plt.subplots(len(SETTINGS), 4, figsize=(15, 6.4), layout="constrained", sharex=True)
    for setting, (driver, idle, staleness, throughput) in zip(SETTINGS, all_axes, strict=True):
        for schedule in SCHEDULES:
            found = [row for row in rows if (row["setting"], row["schedule"]) == (setting.title, schedule)]
            _curve(driver, found, "driver_frac", schedule)
            if schedule == "taking turns":
                _curve(idle, found, "devices_idle_frac", schedule)
            else:
                _curve(idle, found, "generators_idle_frac", schedule)
                _curve(idle, found, "learner_idle_frac", schedule, linestyle="--")
            _curve(staleness, found, "staleness_mean", schedule)
            _curve(throughput, found, "throughput", schedule)
        driver.set_title("driver's processor, share in use", fontsize=10)
        driver.set_yscale("log")
        idle.set_title("idle: generators (-), learner (- -); in turns, devices", fontsize=10)
        staleness.set_title("staleness, mean in versions", fontsize=10)
        throughput.set_title("throughput over synchronous", fontsize=10)
        for axes in (driver, idle):
            axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        for axes in (idle, staleness, throughput):
            axes.set_ylim(bottom=0)
        driver.set_ylabel(setting.title, fontsize=10)
    for axes in all_axes.flat:
        axes.set_xscale("log")
        axes.set_xticks(NUMS_GENERATORS, [f"{number:,}" for number in NUMS_GENERATORS])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e3e7eb")
    for axes in all_axes[-1]:
        axes.set_xlabel("generators")
    all_axes[0, 0].legend(fontsize=9)
    figure.suptitle("A simulation: discrete events, 8 prompts of 8 samples a generator and step", fontsize=11)
    figure.savefig(picture, dpi=130)


def _curve(axes: "Axes", rows: list[dict[str, Any]], column: str, schedule: str, *, linestyle: str = "-") -> None:
    values = [row[column] for row in rows]
    axes.plot(NUMS_GENERATORS, values, marker="o", ms=4, ls=linestyle, color=COLOURS[schedule], label=schedule)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    is_json = parser.parse_args().json
    rows = all_rows()
    draw(rows, PICTURE)
    sys.stdout.write(json.dumps(rows) + "\n" if is_json else table(rows))


if __name__ == "__main__":
    main()
