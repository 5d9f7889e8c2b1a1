"""What a vLLM engine on CPU needs in its processes' environment, for generators and for served replicas alike."""

import os
import sys
from pathlib import Path

OPENMP_LIBRARY = Path(sys.prefix) / "lib" / "libiomp5.so"  # package intel-openmp
TCMALLOC_LIBRARIES = tuple(
    Path("/usr/lib") / f"{machine}-linux-gnu" / "libtcmalloc_minimal.so.4" for machine in ("x86_64", "aarch64")
)
OPENMP_SPIN_MS = 5  # how long an idle thread of libiomp5 spins; its default of 200 starves the processes beside it


def cpu_engine_environment(num_threads: int, *, eager: bool) -> dict[str, str]:
    """Variables to set before vLLM's processes start. `num_threads`: OpenMP threads of one engine.

    `eager`: compile nothing. vLLM's `enforce_eager` spares the model alone: its sampler still waits 3 s for a C++ compiler.
    """
    return {
        **cpu_preload(),
        "KMP_BLOCKTIME": str(OPENMP_SPIN_MS),
        "OMP_NUM_THREADS": str(num_threads),
        # Bound threads of two engines would share cores while others idle; the operating system places unbound ones.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        **({"TORCH_COMPILE_DISABLE": "1"} if eager else {}),
    }


def cpu_preload() -> dict[str, str]:
    """`LD_PRELOAD`, or nothing where the libraries are missing. Generation gains 10-20 %."""
    libraries = [path for path in (OPENMP_LIBRARY, *TCMALLOC_LIBRARIES) if path.is_file()]
    if not libraries:
        return {}
    inherited = [part for part in os.environ.get("LD_PRELOAD", "").split(":") if part]
    added = [str(path) for path in libraries if str(path) not in inherited]
    return {"LD_PRELOAD": ":".join(added + inherited)}
