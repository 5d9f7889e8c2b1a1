"""Pages of docs/reference that are made from the code; mkdocs calls `on_files` and `on_page_markdown` when it builds.

Configuration comes from the pydantic classes, commands from typer, metrics from the names that the code logs, fields of
requests from the classes that check them, and the table of faults from the page of their tests.
"""

from pathlib import Path
from typing import Any

from command_page import command_page
from config_pages import config_pages
from metric_page import metric_page
from request_fields import feedback_table, sampling_table

FAULTS = Path(__file__).resolve().parent.parent / "tests" / "faults" / "README.md"


def reference_pages() -> dict[str, str]:
    """Path under docs/ -> Markdown."""
    return {
        **{f"reference/{name}.md": text for name, text in config_pages().items()},
        "reference/commands.md": command_page(),
        "reference/metrics.md": metric_page(),
    }


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those that lie in docs/."""
    from mkdocs.structure.files import File

    for path, text in reference_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables where a page asks for them."""
    for mark, table in TABLES.items():
        if mark in markdown:
            markdown = markdown.replace(mark, table())
    return markdown


def fault_table() -> str:
    return "\n".join(line for line in FAULTS.read_text(encoding="utf-8").splitlines() if line.startswith("|"))


TABLES = {
    "<!-- fault table -->": fault_table,
    "<!-- request fields -->": sampling_table,
    "<!-- feedback fields -->": feedback_table,
}
