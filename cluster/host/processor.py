"""What the processor of this host can do."""

from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")  # x86 twice, Arm


def bfloat16_flags(cpuinfo: Path = CPUINFO) -> list[str]:
    """The processor's instructions for products in bfloat16, by the kernel's names; nothing where it has or lists none."""
    return sorted(_flags(cpuinfo).intersection(BFLOAT16_FLAGS))


@cache
def multiplies_bfloat16() -> bool:
    """Whether bfloat16 is the faster type here. Without instructions for it a product took 120 times as long as in float32
    (EXPERIMENTS.md, "Types of number")."""
    return bool(bfloat16_flags())


def _flags(cpuinfo: Path) -> set[str]:
    """Feature flags of the first core."""
    if not cpuinfo.is_file():
        return set()
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):  # x86, Arm
            return set(value.split())
    return set()
