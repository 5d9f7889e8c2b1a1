"""Draws docs/pictures/quickstart.png: before and after, from the quickstart's table in EXPERIMENTS.md.

Run: python -m tests.experiments.quickstart_figure
"""

import re
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
HEADING = "### The quickstart, end to end"
BEFORE, AFTER = "#9aa5b1", "#1f7a5c"
PANELS = (  # title, column of the table, factor
    ("positive completions, %\n(a judge that was not trained on)", 4, 100),
    ("score of the reward model", 2, 1),
)


def main() -> None:
    rows = quickstart_rows((ROOT / "EXPERIMENTS.md").read_text(encoding="utf-8"))
    figure, panels = plt.subplots(1, len(PANELS), figsize=(9, 2.6), layout="constrained", sharey=True)
    for panel, (title, column, factor) in zip(panels, PANELS, strict=True):
        for height, row in enumerate(reversed(rows)):
            before, after = (factor * float(number) for number in re.findall(r"-?\d+\.\d+", row[column])[:2])
            panel.annotate("", (after, height), (before, height), arrowprops={"arrowstyle": "-|>", "color": AFTER, "lw": 2})
            panel.plot(before, height, "o", color=BEFORE, markersize=9)
            panel.plot(after, height, "o", color=AFTER, markersize=9)
            for value, color in ((before, BEFORE), (after, AFTER)):
                panel.text(value, height + 0.2, f"{value:.0f}" if factor > 1 else f"{value:.2f}", ha="center", color=color)
        panel.set_title(title, fontsize=10)
        panel.set_ylim(-0.5, len(rows) - 0.3)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
    panels[0].set_xlim(0, 100)
    panels[0].set_yticks(range(len(rows)), [f"seed {row[0]}" for row in reversed(rows)])
    panels[0].text(2, -0.42, "before", color=BEFORE, weight="bold")
    panels[0].text(18, -0.42, "after 26 steps of PPO", color=AFTER, weight="bold")
    picture = ROOT / "docs" / "pictures" / "quickstart.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)


def quickstart_rows(experiments: str) -> list[list[str]]:
    """Cells of the first table below the quickstart's heading, a row a seed."""
    section = experiments.split(HEADING, 1)[1]
    rows = re.findall(r"^\| (\d.*) \|$", section.split("\n\nEvery bar", 1)[0], flags=re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in rows]


if __name__ == "__main__":
    main()
