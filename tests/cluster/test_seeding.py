"""Seeds depend on what they are for and on nothing else."""

import subprocess
import sys

from cluster.seeding import MAX_SEED, derive_seed


def test_the_value_is_fixed_for_ever() -> None:
    # The first 8 bytes of sha256("0\x1fprompts\x1f0") modulo 2**31; while it stands, old runs can be repeated.
    assert derive_seed(0, "prompts", 0) == 553913606


def test_seeds_do_not_depend_on_the_process() -> None:
    command = "from cluster.seeding import derive_seed; print(derive_seed(7, 'rollout', 3))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", command],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert outputs == {str(derive_seed(7, "rollout", 3))}


def test_every_part_counts_and_parts_do_not_run_together() -> None:
    seeds = [
        derive_seed(1, "rollout", 0),
        derive_seed(2, "rollout", 0),
        derive_seed(1, "prompts", 0),
        derive_seed(1, "rollout", 1),
        derive_seed(1, "rollout0"),
        derive_seed(11, "ollout", 0),
        derive_seed("rollout", 1, 0),
    ]
    assert len(set(seeds)) == len(seeds)


def test_seeds_stay_in_the_range_that_every_library_takes() -> None:
    seeds = [derive_seed("range", index) for index in range(2000)]
    assert min(seeds) >= 0
    assert max(seeds) <= MAX_SEED
    assert len(set(seeds)) == len(seeds)
    # A quarter of them falls into each quarter of the range: 500 +- 5 standard deviations of 19.4.
    quarters = [sum(seed // ((MAX_SEED + 1) // 4) == quarter for seed in seeds) for quarter in range(4)]
    assert all(400 < count < 600 for count in quarters)
