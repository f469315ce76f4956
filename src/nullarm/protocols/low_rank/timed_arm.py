"""What is timed, by name: a model, a directory of factors, or an arm of a study directory. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullarm.errors import UsageError, nearest
from nullarm.models.reference import parse
from nullarm.protocols.low_rank.parameters import LowRankParameters
from nullarm.protocols.low_rank.tables import COMPRESS, FACTORS
from nullarm.store.files import read_json
from nullarm.store.study_store import StudyStore

LOCK = "study.lock.yaml"
FORMS = "a model reference, a directory with compression.json, or STUDY_DIR:ARM of a low_rank study"


@dataclass(frozen=True)
class TimedArm:
    """One arm as a timing session loads it.

    Attributes:
        model: Reference of the model.
        factors: Directory of its factors, or of its drafter's; None for the model as it is loaded.
        speculation: `tokens` and `temperature` of an arm that drafts and verifies.
    """

    model: str
    factors: Path | None = None
    speculation: Mapping[str, Any] | None = None

    @property
    def as_loaded(self) -> bool:
        """Whether it is the model as it is loaded, decoded as usual."""
        return self.factors is None and self.speculation is None


def timed_arm(name: str) -> TimedArm:
    """The arm that a name stands for.

    Args:
        name: A model reference, a directory with compression.json, or `STUDY_DIR:ARM`.

    Raises:
        UsageError: The study is not of protocol low_rank, has no such arm, or has not made its factors yet.
        ModelError: It is no model reference either.
    """
    directory, colon, arm = name.rpartition(":")
    if colon and Path(directory).is_dir():
        return _of_study(Path(directory), arm)
    if colon and directory not in ("builtin", "random"):
        raise UsageError("there is no study directory", value=directory, valid=FORMS)
    if (Path(name) / LOCK).is_file():
        raise UsageError("a study directory has several arms: say which", value=name, valid=f"{name}:ARM")
    if (config := Path(name) / "compression.json").is_file():
        return TimedArm(read_json(config)["base"]["model"], Path(name))
    parse(name)
    return TimedArm(name)


def _of_study(root: Path, name: str) -> TimedArm:
    with StudyStore.open(root) as store:
        if store.lock.study.protocol != "low_rank":
            raise UsageError(f"{root} has no arms that write text", value=store.lock.study.protocol, valid=FORMS)
        parameters = LowRankParameters.model_validate(store.lock.study.parameters)
        if name not in parameters.compression:
            known = sorted(parameters.compression)
            raise UsageError(f"the study in {root} has no arm {name!r}{nearest(name, known)}", valid=known)
        arm = parameters.compression[name]
        compressed = arm.speculation.drafter if arm.speculation else name if arm.treated else None
        said = arm.speculation.model_dump(mode="json") if arm.speculation else None
        return TimedArm(parameters.model, _factors(store, compressed) if compressed else None, said)


def _factors(store: StudyStore, arm: str) -> Path:
    for cell in store.plan:
        if (cell.stage, cell.arm) == (COMPRESS, arm) and (finished := store.finished(cell.id)):
            return finished.artefact(FACTORS)
    raise UsageError(f"the factors of arm {arm!r} are not made yet", next_command=f"nullarm resume {store.paths.root}")
