"""Rules of the code that a reader relies on, checked on the syntax tree of every file of ours."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.config import StrictConfig, load_config
from learners.settings.run import QuickstartConfig, load_run_config

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rayward", "cluster", "actors", "learners", "serving")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_FILES_IN_A_FOLDER = 12  # without __init__.py
VAGUE_NAMES = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "manager.py", "misc.py"}
Rule = Callable[[str], list[str]]  # what in a source breaks it
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def offenders(paths: list[Path], rule: Rule) -> list[str]:
    """Everything in `paths` that breaks `rule`, in one list, so that one test reports all of it."""
    return [f"{relative(path)}: {found}" for path in paths for found in rule(path.read_text(encoding="utf-8"))]


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


def test_nothing_that_is_read_can_run() -> None:
    assert offenders(SOURCES, unsafe_loads) == []


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


def prints(source: str) -> list[str]:
    return [f"line {call.lineno}" for name, call in calls(ast.parse(source)) if name == "print"]


def hidden_defaults(source: str) -> list[str]:
    return [f"line {call.lineno}" for name, call in calls(ast.parse(source)) if name == "getattr" and len(call.args) > 2]


def swallowed_exceptions(source: str) -> list[str]:
    """Broad handlers that do nothing: they must re-raise, log or count."""
    handlers = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ExceptHandler)]
    broad = [node for node in handlers if node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")]
    return [f"line {node.lineno}" for node in broad if all(isinstance(statement, ast.Pass) for statement in node.body)]


def lines_beyond_ascii(source: str) -> list[str]:
    return [f"line {number}" for number, line in enumerate(source.splitlines(), start=1) if not line.isascii()]


def what_is_too_long(source: str) -> list[str]:
    num_lines = len(source.splitlines())
    found = [f"{num_lines} lines"] if num_lines > MAX_FILE_LINES else []
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = [(node.name, node.end_lineno - node.lineno + 1) for node in functions if node.end_lineno is not None]
    return found + [f"{name}: {length} lines" for name, length in lengths if length > MAX_FUNCTION_LINES]


def missing_docstring(source: str) -> list[str]:
    return [] if ast.get_docstring(ast.parse(source)) else ["no docstring"]


def crowded(folders: dict[str, int]) -> list[str]:
    return [f"{folder}: {count} files" for folder, count in folders.items() if count > MAX_FILES_IN_A_FOLDER]


# (rule, files that must keep it, a source that breaks it once)
RULES = [
    pytest.param(prints, SOURCES, "print('text')", id="libraries do not print"),
    pytest.param(hidden_defaults, SOURCES, "getattr(config, 'name', 0)", id="no default hides in getattr"),
    pytest.param(swallowed_exceptions, SOURCES, "try:\n    f()\nexcept Exception:\n    pass", id="no exception is swallowed"),
    pytest.param(lines_beyond_ascii, [*SOURCES, *TESTS], "name = 'caf\u00e9'", id="code is ASCII"),
    pytest.param(what_is_too_long, SOURCES, "pass\n" * (MAX_FILE_LINES + 1), id="files are short"),
    pytest.param(what_is_too_long, SOURCES, "def f():\n" + "    pass\n" * MAX_FUNCTION_LINES, id="functions are short"),
    pytest.param(missing_docstring, SOURCES, "import json", id="every file says what it is"),
]


@pytest.mark.parametrize(("rule", "paths", "broken"), RULES)
def test_every_file_keeps_the_rule(rule: Rule, paths: list[Path], broken: str) -> None:
    assert len(rule(broken)) == 1, "the check does not see an offender"
    assert offenders(paths, rule) == []


def test_no_file_has_a_vague_name() -> None:
    assert [relative(path) for path in SOURCES if path.name in VAGUE_NAMES] == []


def test_folders_hold_few_files() -> None:
    names = [relative(path.parent) for path in SOURCES if path.name != "__init__.py"]
    assert crowded(dict(Counter(names))) == []


def test_the_check_sees_a_crowded_folder() -> None:
    assert crowded({"full": MAX_FILES_IN_A_FOLDER, "crowded": MAX_FILES_IN_A_FOLDER + 1}) == ["crowded: 13 files"]


def test_the_command_line_itself_imports_nothing_large() -> None:
    bodies = [ast.parse(path.read_text(encoding="utf-8")).body for path in (ROOT / "rayward").glob("*.py")]
    nodes = [node for body in bodies for node in body]
    modules = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    others = {name for name in modules if name.partition(".")[0] not in {"rayward", *sys.stdlib_module_names}}
    assert others <= {"typer", "cluster.errors"}


def load_with_its_schema(path: Path) -> StrictConfig:
    folder = path.parent.name
    if folder in ("train", "examples"):
        return load_run_config(path)
    if folder == "serve":
        from serving.config import ServeConfig
        from serving.scorer.config import ServeScorerConfig

        if path.stem == "scorer":
            return load_config(ServeScorerConfig, path, ["scorer.model=any"])
        return load_config(ServeConfig, path, ["model=runs/any"])
    assert re.fullmatch(r"quickstart\w*\.yaml", path.name), f"no schema is known for {path}; name it here"
    return load_config(QuickstartConfig, path)


def test_every_shipped_configuration_loads() -> None:
    for path in CONFIGS:
        assert load_with_its_schema(path), relative(path)


def test_the_files_that_are_checked_are_there() -> None:
    assert len(SOURCES) > 20
    assert len(CONFIGS) >= 5
