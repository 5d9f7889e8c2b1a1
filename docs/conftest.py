"""Runs the code blocks of these pages, in order, in a folder of their own for each page.

| block | what happens |
|---|---|
| any language with `title="FILE"` | FILE is written |
| `python` | runs; names live on in the blocks below |
| `sh` | runs in bash, must succeed; a lone `rayward serve` stays up until the page ends |
| `text`, `console`, others | shown only |

`<!-- first: COMMAND -->` runs a command that a reader has run in an earlier chapter, unless it has run already: `runs/` is
shared by all pages, so that several chapters look at one run.
"""

import contextlib
import io
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sybil import Document, Example, Region, Sybil

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(
    r'^```(?P<language>\w+)(?: title="(?P<file>[^"]+)")?\n(?P<code>.*?)^```$|^<!-- first: (?P<first>.*?) -->$', re.M | re.S
)
STARTS_PROCESSES = re.compile(r"^rayward (quickstart|train|sweep|serve)", re.M)
DOCUMENTED_PORT = "8000"
STOP_S = 60  # until an endpoint has ended


@dataclass(slots=True)
class Folder:
    """Where one page's blocks run, and what they have started."""

    path: Path
    variables: dict[str, str]
    already_run: set[str]  # over all pages
    endpoints: list[subprocess.Popen[str]] = field(default_factory=list)


@pytest.hookimpl(tryfirst=True)  # a worker of xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    """A page that starts Ray anywhere is marked as a whole. Blocks build on those above, so a page stays in one worker; pages
    that look at one run stay together, and the one that shows how to start it comes first."""
    pages = [item for item in items if item.path.suffix == ".md"]
    shown, expected = ({path: _starts(path, group) for path in {item.path for item in pages}} for group in ("code", "first"))
    shared = set().union(*expected.values())
    for item in pages:
        commands = shown[item.path] | expected[item.path]
        if commands:
            item.add_marker(pytest.mark.cold_start)
            item.add_marker(pytest.mark.timeout(600))
        if config.pluginmanager.hasplugin("xdist"):
            item.add_marker(pytest.mark.xdist_group("pages" if commands & shared else item.path.name))
    items[:] = [item for item in items if item.path.suffix != ".md"] + sorted(pages, key=lambda item: bool(expected[item.path]))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """The folder of runs and the commands that have run."""
    return tmp_path_factory.mktemp("docs") / "runs", set()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shared: tuple[Path, set[str]]) -> Iterator[Folder]:
    """`rayward` on the path is this checkout's; `configs` and `runs` are where the pages say."""
    runs, already_run = shared
    runs.mkdir(exist_ok=True)
    path = tmp_path_factory.mktemp("page")
    (path / "runs").symlink_to(runs)
    (path / "configs").symlink_to(ROOT / "configs")
    command = path / ".bin" / "rayward"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m rayward "$@"\n')
    command.chmod(0o755)
    variables = {
        **os.environ,
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PORT": str(_free_port()),
    }
    here = Folder(path=path, variables=variables, already_run=already_run)
    with contextlib.chdir(path):
        sys.path.insert(0, str(path))
        try:
            yield here
        finally:
            sys.path.remove(str(path))
            for endpoint in here.endpoints:
                endpoint.terminate()  # a background job of a shell has SIGINT ignored, and so have its children
                endpoint.communicate(timeout=STOP_S)


def _starts(path: Path, group: str) -> set[str]:
    """The commands of a page that start Ray, from the blocks that it shows (`code`) or from what it expects (`first`)."""
    matches = FENCE.finditer(path.read_text(encoding="utf-8"))
    commands = [match[group].strip() for match in matches if match[group] and match["language"] in ("sh", None)]
    return {command for command in commands if STARTS_PROCESSES.search(command)}


def _blocks(document: Document) -> Iterator[Region]:
    for match in FENCE.finditer(document.text):
        evaluate = _evaluator(match)
        if evaluate is not None:
            yield Region(match.start(), match.end(), match, evaluate)


def _evaluator(match: re.Match[str]) -> Callable[[Example], None] | None:
    if match["first"]:
        return _run_first
    if match["file"]:
        return _write
    return {"python": _run_python, "sh": _run_shell}.get(match["language"])


def _write(example: Example) -> None:
    path = Path(example.parsed["file"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(example.parsed["code"], encoding="utf-8")


def _run_python(example: Example) -> None:
    """What it prints must be the `text` block that follows it, if one follows at once."""
    printed = io.StringIO()
    code = _with_own_port(example.parsed["code"], example.namespace["folder"])
    with contextlib.redirect_stdout(printed):
        exec(compile(code, f"{example.path}:{example.line}", "exec"), example.namespace)
    expected = re.match(r"\n+```text\n(.*?)^```$", example.document.text[example.end :], re.M | re.S)
    if expected:
        assert printed.getvalue() == expected[1]


def _run_first(example: Example) -> None:
    folder: Folder = example.namespace["folder"]
    if example.parsed["first"] not in folder.already_run:
        _shell(example.parsed["first"], folder)


def _run_shell(example: Example) -> None:
    _shell(example.parsed["code"].strip(), example.namespace["folder"])


def _shell(code: str, folder: Folder) -> None:
    folder.already_run.add(code)
    if re.fullmatch("rayward serve.*", code) and "|" not in code:
        _serve(code, folder)
        return
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", _with_own_port(code, folder)],
        env=folder.variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def _serve(code: str, folder: Folder) -> None:
    """Returns when the endpoint says where it answers."""
    port = folder.variables["PORT"]
    endpoint = subprocess.Popen(
        [str(folder.path / ".bin" / "rayward"), *shlex.split(code)[1:], "--port", port],
        env=folder.variables,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder.endpoints.append(endpoint)
    assert endpoint.stderr is not None
    lines = []
    for line in endpoint.stderr:
        lines.append(line)
        if f":{port}/v1" in line:
            return
    raise AssertionError("".join(lines))


def _with_own_port(code: str, folder: Folder) -> str:
    return code.replace(f":{DOCUMENTED_PORT}", f":{folder.variables['PORT']}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _forget_modules(namespace: dict[str, Any]) -> None:
    """A later page may write a module of the same name."""
    folder: Folder = namespace["folder"]
    for path in folder.path.glob("*.py"):
        sys.modules.pop(path.stem, None)


pytest_collect_file = Sybil(
    parsers=[_blocks], patterns=["*.md", "**/*.md"], fixtures=["folder"], teardown=_forget_modules
).pytest()
