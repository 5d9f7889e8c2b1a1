"""What a run ran on can be told without importing it."""

import platform

from cluster.host.versions import machine, versions


def test_versions_name_python_and_what_is_installed() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert "ray" in found
    assert "numpy" in found


def test_machine_has_cores_and_memory() -> None:
    found = machine()
    assert set(found) == {"system", "cpu", "num_cores", "memory_gib"}
    assert int(found["num_cores"]) >= 1
    assert float(found["memory_gib"]) > 0
