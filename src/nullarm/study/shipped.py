"""The studies that come with nullarm: `nullarm run rank_mechanism_tiny` finds them by name."""

from __future__ import annotations

from pathlib import Path

from nullarm.errors import StudyError, nearest

_HERE = Path(__file__).resolve()
_PLACES = (_HERE.parents[1] / "shipped_studies", _HERE.parents[3] / "studies")
"""In an installed wheel, and in a checkout."""


def shipped_studies() -> dict[str, Path]:
    """Path of every shipped study by its name."""
    return {path.stem: path for place in _PLACES if place.is_dir() for path in sorted(place.glob("*.yaml"))}


def study_path(name_or_path: str) -> Path:
    """The file that the user means: a path, or the name of a shipped study.

    Raises:
        StudyError: It is neither.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    studies = shipped_studies()
    if name_or_path in studies:
        return studies[name_or_path]
    raise StudyError(
        f"no study file {name_or_path!r}{nearest(name_or_path, studies)}",
        valid=["a path to a YAML file", *studies],
        next_command="`nullarm init` writes one to start from",
    )
