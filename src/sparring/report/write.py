"""Writes the report of a run, of evaluations or of a study. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path

from ..core.writing import write_bytes
from ..records.run_folder import RunFolder
from .gather import facts
from .markdown import markdown
from .page import page
from .provenance import Base
from .subjects import is_study


def write_report(targets: Sequence[Path], out: Path | None = None, base: Base = lambda name: None) -> Path:
    """Write the report as a page, `report.html`, and of a model as `model-card.md` beside it.

    Args:
        targets: A run folder, several folders or files of evaluations, or the folder of a study.
        out: The file of the page; None for `report.html` in the folder of the first target.
        base: Gives the recipe of a name as plain values.

    Returns:
        The path of the page.

    Raises:
        UserError: If a target holds nothing to report.
    """
    found, models = facts(targets, base)
    path = out or report_path(targets)
    write_bytes(path, page(found, models).encode())
    if not is_study(targets[0]):
        write_bytes(path.with_name(RunFolder(path.parent).model_card.name), markdown(found).encode())
    return path


def report_path(targets: Sequence[Path]) -> Path:
    """The file that a report is written to if none is named; that of several targets lies in the present folder."""
    if len(targets) > 1:
        return Path("report.html")
    return RunFolder(targets[0] if targets[0].is_dir() else targets[0].parent).report
