"""The environment of a vLLM engine on CPU."""

from pathlib import Path

import pytest

import cluster.host.cpu_engine as cpu_engine
from cluster.host.cpu_engine import cpu_engine_environment, cpu_preload


def test_threads_are_counted_but_not_bound() -> None:
    environment = cpu_engine_environment(3, eager=True)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_only_an_eager_engine_compiles_nothing() -> None:
    assert cpu_engine_environment(1, eager=True)["TORCH_COMPILE_DISABLE"] == "1"
    assert "TORCH_COMPILE_DISABLE" not in cpu_engine_environment(1, eager=False)


def test_preload_joins_what_is_there_and_keeps_what_was_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    openmp, tcmalloc = tmp_path / "libiomp5.so", tmp_path / "libtcmalloc_minimal.so.4"
    openmp.touch()
    tcmalloc.touch()
    monkeypatch.setattr(cpu_engine, "OPENMP_LIBRARY", openmp)
    monkeypatch.setattr(cpu_engine, "TCMALLOC_LIBRARIES", (tcmalloc, tmp_path / "missing.so"))
    monkeypatch.setenv("LD_PRELOAD", f"/opt/own.so:{openmp}")
    assert cpu_preload() == {"LD_PRELOAD": f"{tcmalloc}:/opt/own.so:{openmp}"}


def test_preload_is_empty_without_the_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu_engine, "OPENMP_LIBRARY", tmp_path / "libiomp5.so")
    monkeypatch.setattr(cpu_engine, "TCMALLOC_LIBRARIES", ())
    assert cpu_preload() == {}
