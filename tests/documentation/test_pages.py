"""What the pages of docs/ say of the code is so: messages, metrics, settings, commands; and their English."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
PACKAGES = ("actors", "cluster", "learners", "rayward", "serving")
DESCRIBED = re.compile(r"^::: ([\w.]+)$", re.M)
MESSAGE_ROW = re.compile(r"^\| `(?P<message>.+?)` \| ", re.M)
GAP = "..."
# Words that a reader of English would not expect in their place.
ODD_WORDS = re.compile(r"\b(mend(s|ed)?|kin|hurts?|obeys?|burdens?|a Ctrl-C|anew|perhaps|thereby|heretofore)\b")

sys.path.insert(0, str(ROOT / ".ci"))  # the generators are programs of the build, in no package


def texts(node: ast.AST) -> Iterator[str]:
    """Every text in a syntax tree; what an f-string fills in is a gap."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts(child)


@pytest.fixture(scope="module")
def said_by_the_code() -> list[str]:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return [" ".join(text.split()) for path in paths for text in texts(ast.parse(path.read_text(encoding="utf-8")))]


def is_said(message: str, code: list[str]) -> bool:
    """Whether one text of the code holds the message's fixed parts in their order."""
    parts = [part.strip() for part in message.split(GAP) if part.strip(" ;,:?")]
    pattern = re.compile(".*".join(re.escape(part) for part in parts), re.S)
    return any(pattern.search(text) for text in code)


def test_every_message_of_troubleshooting_is_one_of_the_code(said_by_the_code: list[str]) -> None:
    messages = MESSAGE_ROW.findall((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    assert len(messages) > 50
    assert [message for message in messages if not is_said(message, said_by_the_code)] == []


def test_the_check_of_messages_sees_one_that_is_gone(said_by_the_code: list[str]) -> None:
    assert not is_said("...: no such moon; look up", said_by_the_code)


def test_every_logged_metric_has_a_meaning_and_no_other_has() -> None:
    from metric_page import MEANINGS, NAMED_BY_A_STAR, logged_metrics

    assert logged_metrics() - NAMED_BY_A_STAR == set(MEANINGS)


def test_every_key_of_a_file_is_on_a_page() -> None:
    from config_pages import PAGES, config_pages, sections_of, sections_on

    from rayward.settings import schemas

    for kind in ("policy", "reward_model", "planning", "tabular", "rllib", "serve"):  # a quickstart holds the first two
        listed = [section for page in PAGES.values() if page.kind == kind for section in sections_on(page)]
        assert sorted(listed) == sorted(sections_of(schemas()[kind])), kind
    pages = config_pages()
    for name, page in PAGES.items():
        keys = {key.key for section in sections_on(page).values() for key in section}
        assert [key for key in sorted(keys) if f"| `{key}` |" not in pages[name]] == []


def test_every_command_is_on_the_page_with_what_it_takes() -> None:
    from command_page import command_page

    page = command_page()
    for command in (
        "quickstart",
        "train",
        "resume",
        "scale",
        "plan",
        "serve",
        "runs",
        "show",
        "doctor",
        "models fetch",
        "keys add",
        "chat",
    ):
        assert f"## rayward {command}\n" in page
    assert "| `--fresh` |" in page


def test_the_fault_table_is_that_of_the_tests() -> None:
    from reference_pages import on_page_markdown

    page = on_page_markdown("before\n<!-- fault table -->")
    assert page.startswith("before\n| row | fault | promise | where |\n")
    assert "| 4 | the driver dies |" in page


def test_every_field_of_a_request_is_in_the_tables() -> None:
    from reference_pages import on_page_markdown

    from serving.feedback_api import PostedPreference
    from serving.guard.request_fields import ChatFields, CompletionFields

    page = on_page_markdown((ROOT / "docs" / "reference" / "http.md").read_text(encoding="utf-8"))
    for fields in (ChatFields, CompletionFields, PostedPreference):
        assert [name for name in fields.model_fields if f"| `{name}` |" not in page] == []
    assert "| `temperature` | both | number, at least 0, at most 2 |" in page


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_pages_are_in_plain_english_and_ascii(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.isascii()
    assert [match[0] for match in ODD_WORDS.finditer(text)] == []


def test_what_the_reference_describes_is_there() -> None:
    """Tested here as well as by `make docs`, which takes longer to tell."""
    described = [name for page in PAGES for name in DESCRIBED.findall(page.read_text(encoding="utf-8"))]
    assert len(described) > 5
    assert [name for name in described if not is_defined(name)] == []
    assert not is_defined("cluster.types.Moon")


def is_defined(name: str) -> bool:
    """A module, or something that its file defines."""
    module, _, inside = name.rpartition(".")
    if (ROOT / Path(*name.split("."))).with_suffix(".py").is_file() or (ROOT / Path(*name.split("."))).is_dir():
        return True
    path = (ROOT / Path(*module.split("."))).with_suffix(".py")
    if not path.is_file():
        return False
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    names = [node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assigned = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    annotated = [node.target for node in nodes if isinstance(node, ast.AnnAssign)]
    return inside in [*names, *(target.id for target in [*assigned, *annotated] if isinstance(target, ast.Name))]
