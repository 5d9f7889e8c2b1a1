"""Rules of the code that a reader relies on, checked on the syntax tree of every file of ours."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.config import StrictConfig, load_config
from learners.settings.run import QuickstartConfig, load_run_config

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("cluster", "actors", "learners", "serving")
SOURCES = [ROOT / "rayward.py", *sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
VAGUE_NAMES = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "manager.py", "misc.py"}
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def each_file(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=relative)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name as written, call) for each call of a name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def unsafe_loads(source: str) -> list[str]:
    """What in a file could run code that it reads."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in UNSAFE_MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNSAFE_MODULES:
            found.append(str(node.module))
    for name, call in calls(tree):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name in UNSAFE_CALLS:
            found.append(name)
        if name == "torch.load" and keywords.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if keywords.get("trust_remote_code", "False") != "False":
            found.append("trust_remote_code")
        if keywords.get("shell", "False") != "False":
            found.append("shell")
        if keywords.get("allow_pickle", "False") != "False":
            found.append("allow_pickle")
    return found


@each_file(SOURCES)
def test_nothing_that_is_read_can_run(path: Path) -> None:
    assert unsafe_loads(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, cloudpickle.x",
        "from pickle import loads",
        "eval('1')",
        "yaml.load(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "load(path, trust_remote_code=True)",
        "subprocess.run(command, shell=True)",
        "np.load(path, allow_pickle=flag)",
    ],
)
def test_the_check_sees_each_unsafe_load(source: str) -> None:
    assert len(unsafe_loads(source)) == 1


def test_the_check_lets_safe_loads_pass() -> None:
    assert unsafe_loads("torch.load(path, weights_only=True)\nyaml.safe_load(text)\nmodel.eval()\nimport json") == []


@each_file(SOURCES)
def test_libraries_do_not_print(path: Path) -> None:
    assert [call.lineno for name, call in calls(ast.parse(path.read_text(encoding="utf-8"))) if name == "print"] == []


@each_file(SOURCES)
def test_no_default_hides_in_getattr(path: Path) -> None:
    found = calls(ast.parse(path.read_text(encoding="utf-8")))
    assert [call.lineno for name, call in found if name == "getattr" and len(call.args) > 2] == []


@each_file(SOURCES)
def test_no_exception_is_swallowed(path: Path) -> None:
    """A broad handler must do something: re-raise, log, count."""
    handlers = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ExceptHandler)]
    broad = [node for node in handlers if node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")]
    assert [node.lineno for node in broad if all(isinstance(statement, ast.Pass) for statement in node.body)] == []


@each_file([*SOURCES, *TESTS])
def test_code_is_ascii(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [number for number, line in enumerate(lines, start=1) if not line.isascii()] == []


@each_file(SOURCES)
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_FILE_LINES
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno is not None}
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


@each_file(SOURCES)
def test_every_file_says_what_it_is(path: Path) -> None:
    assert path.name not in VAGUE_NAMES
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_the_command_line_itself_imports_nothing_large() -> None:
    tree = ast.parse((ROOT / "rayward.py").read_text(encoding="utf-8"))
    modules = {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert modules <= {"json", "logging", "sys", "pathlib", "typing", "typer", "cluster.errors"}


def load_with_its_schema(path: Path) -> StrictConfig:
    folder = path.parent.name
    if folder == "train":
        return load_run_config(path)
    if folder == "serve":
        from serving.config import ServeConfig

        return load_config(ServeConfig, path, ["model=runs/any"])
    assert re.fullmatch(r"quickstart\w*\.yaml", path.name), f"no schema is known for {path}; name it here"
    return load_config(QuickstartConfig, path)


@each_file(CONFIGS)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert load_with_its_schema(path)


def test_the_files_that_are_checked_are_there() -> None:
    assert len(SOURCES) > 20
    assert len(CONFIGS) >= 5
