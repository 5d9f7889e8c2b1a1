"""Arguments and options that several commands share, and the groups of `rayward --help`."""

from pathlib import Path
from typing import Annotated

import typer

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

TRAINING, RESULTS, SERVING, SETUP = "Train a policy", "Look at results", "Serve and talk", "Set up and check"


def _runs_that_begin_with(incomplete: str) -> list[str]:
    from cluster.storage.run_directory import RUNS_DIR, SUMMARY_NAME

    return sorted(path.parent.name for path in RUNS_DIR.glob(f"*/{SUMMARY_NAME}") if path.parent.name.startswith(incomplete))


Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides, for example learner.num_steps=5", metavar="A.B=C")]
ConfigPath = Annotated[Path, typer.Argument(help="A YAML file; see configs/")]
Run = Annotated[Path, typer.Argument(help="A run directory, or its name under runs/.", autocompletion=_runs_that_begin_with)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
