"""Runs the tests marked `numeric` under several arithmetic kernels, one process each: what holds on one make of processor only
shows here.
"""

import os
import subprocess
import sys

KERNELS: tuple[dict[str, str], ...] = (
    {},
    {"MKL_CBWR": "COMPATIBLE"},
    {"MKL_CBWR": "AVX2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ATEN_CPU_CAPABILITY": "default"},
)
THREADS = ("1", "2")


def main() -> int:
    failed = []
    for index, kernel in enumerate(KERNELS):
        environment = {"OMP_NUM_THREADS": THREADS[index % len(THREADS)], **kernel}
        sys.stderr.write(f"numeric tests with {environment}\n")
        command = [sys.executable, "-m", "pytest", "-q", "-m", "numeric", "--durations=0", "--no-header", "tests/learners"]
        if subprocess.run(command, env={**os.environ, **environment}, check=False).returncode:
            failed.append(environment)
    for environment in failed:
        sys.stderr.write(f"FAILED with {environment}\n")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
