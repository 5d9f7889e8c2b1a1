"""Libraries that a CPU engine runs faster with when they are loaded before it."""

import sys
from pathlib import Path

OPENMP_LIBRARY = Path(sys.prefix) / "lib" / "libiomp5.so"  # package intel-openmp
TCMALLOC_LIBRARIES = tuple(
    Path("/usr/lib") / f"{machine}-linux-gnu" / "libtcmalloc_minimal.so.4" for machine in ("x86_64", "aarch64")
)
