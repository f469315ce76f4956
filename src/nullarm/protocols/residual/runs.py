"""Runs and comparisons: which embedding, which body, which unembedding; and which run is compared with which.

A run is one way through the models. Its embedding and its unembedding may be the other model's. A comparison is a pair
of runs; every difference is right − left, fine-tuned − base when the left run is the base model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

Side = Literal["base", "sft"]
"""Which of the two models."""

SIDES: tuple[Side, Side] = ("base", "sft")


@dataclass(frozen=True)
class Run:
    """One way through the models.

    Attributes:
        name: `base`, `sft`, or two letters, embedding and body: `BB`, `BS`, `SB`, `SS`.
        body: Whose blocks and final norm.
        embedding: Whose token embeddings enter the body.
        unembedding: Whose vocabulary projection is applied to the normed residuals.
    """

    name: str
    body: Side
    embedding: Side
    unembedding: Side

    @property
    def forward(self) -> tuple[Side, Side]:
        """(body, embedding): runs that share it share their residuals."""
        return self.body, self.embedding


@dataclass(frozen=True)
class Comparison:
    """A pair of runs.

    Attributes:
        name: Name of the pair, for example `base-sft` or `BB-BS`.
        left: Name of the run that fills the base fields.
        right: Name of the run that fills the fine-tuned fields.
    """

    name: str
    left: str
    right: str


@dataclass(frozen=True)
class Passes:
    """All runs of a capture and all comparisons between them."""

    runs: tuple[Run, ...]
    comparisons: tuple[Comparison, ...]
    multi_pass: bool = False

    def run(self, name: str) -> Run:
        """The run called `name`."""
        return next(run for run in self.runs if run.name == name)

    def index(self, name: str) -> int:
        """Position of the run called `name`."""
        return next(i for i, run in enumerate(self.runs) if run.name == name)

    @property
    def forwards(self) -> tuple[tuple[Side, Side], ...]:
        """The distinct (body, embedding) passes, in the order of the runs."""
        return tuple(dict.fromkeys(run.forward for run in self.runs))

    @classmethod
    def from_json(cls, capture: Mapping[str, Any]) -> Passes:
        """Those of a finished capture, as it describes itself (`tables.CAPTURE`)."""
        return cls(
            tuple(Run(**run) for run in capture["runs"]),
            tuple(Comparison(**comparison) for comparison in capture["comparisons"]),
            capture["multi_pass"],
        )

    @property
    def own(self) -> Comparison | None:
        """The comparison of the base model with the fine-tuned one, each with its own parts."""
        own = {run.name: run.body for run in self.runs if run.body == run.embedding == run.unembedding}
        return next((c for c in self.comparisons if (own.get(c.left), own.get(c.right)) == SIDES), None)

    @property
    def primary(self) -> Comparison:
        """The models' own comparison, or the first there is."""
        return self.own or self.comparisons[0]

    @property
    def factorial(self) -> tuple[str, str, str, str] | None:
        """Names of the runs BB, BS, SB, SS (embedding, body), unembedding the body's, when all four are there."""
        found = {(r.embedding, r.body): r.name for r in self.runs if r.unembedding == r.body}
        cells = [found.get((embedding, body)) for embedding in SIDES for body in SIDES]
        names = [name for name in cells if name is not None]
        return (names[0], names[1], names[2], names[3]) if len(names) == 4 else None


CANONICAL = (
    Run("BB", body="base", embedding="base", unembedding="base"),
    Run("BS", body="sft", embedding="base", unembedding="sft"),
    Run("SB", body="base", embedding="sft", unembedding="base"),
    Run("SS", body="sft", embedding="sft", unembedding="sft"),
)
"""The four runs of the multi-pass capture: first letter the embedding, second the body."""


def single_pass() -> Passes:
    """Both models as they are, compared."""
    runs = tuple(Run(side, side, side, side) for side in SIDES)
    return Passes(runs, (Comparison("base-sft", "base", "sft"),))


def multi_pass(runs: Sequence[Run] = CANONICAL, pairs: Sequence[tuple[str, str]] = ()) -> Passes:
    """The runs of a multi-pass capture, with the named pairs, or with all of them in order."""
    chosen = pairs or tuple(combinations([run.name for run in runs], 2))
    return Passes(tuple(runs), tuple(Comparison(f"{a}-{b}", a, b) for a, b in chosen), multi_pass=True)
