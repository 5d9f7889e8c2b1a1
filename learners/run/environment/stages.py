"""What runs in environments share, whatever learns: their stages, and where each leaves what it found."""

from pathlib import Path

from learners.evaluation.returns import EnvironmentEvaluation, write_evaluation
from learners.run.session import Session

ENVIRONMENT_STAGES = ("evaluate before", "train", "evaluate after")
CHECKPOINTS = "checkpoints"


def write_down(session: Session, found: EnvironmentEvaluation, file: Path) -> None:
    """Into the file, and the numbers into the summary under its name."""
    write_evaluation(session.path / file, found)
    session.directory.write_summary({file.stem: found.numbers()})
