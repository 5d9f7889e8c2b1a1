"""A user's function by name: what is wrong with it is told without running it."""

import sys
from pathlib import Path

import pytest

from actors.user_code.function import load_user_function, user_function_problem

MODULE = """
raise RuntimeError("the check must not run this")

def score(trajectory): ...
async def score_slowly(trajectory): ...
other = score
if True:
    from json import loads
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "package_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('nor this')")
    (package / "rewards.py").write_text(MODULE)
    (package / "broken.py").write_text("def score(:\n")
    (package / "lazy.py").write_text("def __getattr__(name): ...\n")
    (package / "stars.py").write_text("from json import *\n")
    plain_folders = tmp_path / "folder_of_a_test" / "inner"
    plain_folders.mkdir(parents=True)
    (plain_folders / "rewards.py").write_text(MODULE)
    metadata = tmp_path / "rewards_of_a_test-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: rewards-of-a-test\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[rayward.reward_functions]\ndumps-of-a-test = json:dumps\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "path",
    [
        "package_of_a_test.rewards:score",
        "package_of_a_test.rewards:score_slowly",
        "package_of_a_test.rewards:other",
        "package_of_a_test.rewards:loads",
        "package_of_a_test.lazy:anything",
        "package_of_a_test.stars:loads",
        "folder_of_a_test.inner.rewards:score",
        "math:sqrt",
        "json.decoder:JSONDecoder.decode",
        "dumps-of-a-test",
    ],
)
def test_what_can_be_imported_has_no_problem(path: str) -> None:
    assert user_function_problem(path) is None
    assert "package_of_a_test" not in sys.modules


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("package_of_a_test.rewards:scroe", "module 'package_of_a_test.rewards' has no 'scroe'; did you mean 'score'?"),
        ("package_of_a_test.nothing:score", "there is no module 'package_of_a_test.nothing'"),
        ("nothing_of_a_test.rewards:score", "there is no module 'nothing_of_a_test.rewards'"),
        ("math.deeper:score", "there is no module 'math.deeper'"),
        ("package_of_a_test.broken:score", "module 'package_of_a_test.broken' is not valid Python: invalid syntax"),
        ("__main__:main", "there is no module '__main__'"),
        ("rewards.score", "is neither package.module:function nor an entry point of the group rayward.reward_functions"),
        ("a:b:c", "is neither package.module:function"),
        ("../a:b", "is neither package.module:function"),
        ("", r"(those installed: dumps-of-a-test)"),
    ],
)
def test_what_cannot_be_imported_is_explained(path: str, problem: str) -> None:
    assert problem in str(user_function_problem(path))


def test_the_working_folder_is_searched(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = modules / "elsewhere"
    folder.mkdir()
    (folder / "local_of_a_test.py").write_text("def score(trajectory): ...\n")
    monkeypatch.chdir(folder)
    assert user_function_problem("local_of_a_test:score") is None


def test_functions_are_loaded_by_path_and_by_entry_point() -> None:
    import json

    assert load_user_function("json:dumps") is load_user_function("dumps-of-a-test") is json.dumps


def test_only_what_can_be_called_is_a_function() -> None:
    with pytest.raises(TypeError, match="json:__version__ is a str, not a function"):
        load_user_function("json:__version__")
