"""These tests are collected where torch sees a CUDA device, and nowhere else; at their end stands one table."""

from pathlib import Path

import pytest

from tests.gpu.devices import described, num_devices
from tests.gpu.table import Row, table
from tests.learners.conftest import ppo_config, scored_batch, tiny_model

__all__ = ["ppo_config", "scored_batch", "tiny_model"]

collect_ignore_glob = [] if num_devices() else ["test_*.py"]
OUTCOMES = {"passed": "passed", "failed": "FAILED", "error": "FAILED before it ran", "skipped": "not run"}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = []
    for key, outcome in OUTCOMES.items():
        for report in terminalreporter.stats.get(key, []):
            if "tests/gpu/" in report.nodeid:
                why = {"because it": str(report.longrepr[2]).removeprefix("Skipped: ")} if key == "skipped" else {}
                rows.append(Row(check=report.nodeid, outcome=outcome, measured={**dict(report.user_properties), **why}))
    if rows:
        terminalreporter.section("for EXPERIMENTS.md")
        for line in table(rows, machine=described()):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def smollm2() -> str:
    """A real model from a Python package: no hub is asked."""
    from actors.sources.models import resolve_model

    return resolve_model("smollm2-135m-instruct")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return tmp_path / "runs"
