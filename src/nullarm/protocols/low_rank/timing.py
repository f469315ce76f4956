"""Arms as a timing session loads them: any model, with or without factors, or a drafter with its verifier."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from nullarm.bench.decoding import GreedyDecoding, Slowed
from nullarm.bench.fresh import FreshProcess
from nullarm.bench.runs import Run
from nullarm.bench.settings import BenchSettings
from nullarm.bench.subjects import Subject, Timing
from nullarm.models.load import load_causal_lm
from nullarm.models.reference import content_id
from nullarm.protocols.low_rank.factored.checkpoint import read_for
from nullarm.protocols.low_rank.factored.install import install
from nullarm.protocols.low_rank.factored.treatment import weights_hash
from nullarm.protocols.low_rank.speculation.rejection import rule
from nullarm.protocols.low_rank.speculation.result import Speculation
from nullarm.protocols.low_rank.speculation.subject import SpeculativeDecoding
from nullarm.protocols.low_rank.timed_arm import TimedArm


@dataclass(frozen=True)
class Subjects:
    """How to make what a session runs; small, so that another process can make it as well.

    Attributes:
        arms: `treatment` and `control`.
        dtype: Of models and factors.
        device: Where they run.
        settings: Of the session: prompt, tokens, slowdown, whether steps are compiled.
        seed: Of drawn tokens.
    """

    arms: Mapping[str, TimedArm]
    dtype: str
    device: str
    settings: BenchSettings
    seed: int

    def one(self, arm: str) -> Subject:
        """`treatment`, `control`, or `slowed`, which is the control made slower; loaded alone."""
        return Loaded(self).subject(arm)


@dataclass(frozen=True, eq=False)
class _Base:
    ref: str
    model: Any
    tokenizer: Any

    @cached_property
    def content_id(self) -> str:
        return content_id(self.ref)


@dataclass(frozen=True, eq=False)
class Loaded:
    """Models in memory: each base once, each arm's factors in modules of its own.

    Attributes:
        wanted: What is loaded, when it is first asked for.
    """

    wanted: Subjects
    _bases: dict[str, _Base] = field(default_factory=dict)
    _models: dict[str, Any] = field(default_factory=dict)

    def subject(self, name: str) -> Subject:
        """What the session runs as `treatment`, `control` or `slowed`.

        Raises:
            ModelError: A model is missing, unreadable, or another one than its factors were made from.
            UsageError: The prompt with what is written after it is longer than the model's context.
        """
        settings = self.wanted.settings
        return Slowed(self._plain("control"), settings.slowdown) if name == "slowed" else self._plain(name)

    def same(self) -> bool:
        """Whether both arms run the same weights in the same way: the rule by which a study says NO_OP.

        Raises:
            ModelError: As `subject`.
        """
        first, second = self.wanted.arms
        if self.wanted.arms[first].speculation != self.wanted.arms[second].speculation:
            return False
        return weights_hash(self._model(first)) == weights_hash(self._model(second))

    def _plain(self, role: str) -> Subject:
        arm, wanted = self.wanted.arms[role], self.wanted
        base, model = self._base(arm), self._model(role)
        prompt = torch.tensor([base.tokenizer(wanted.settings.prompt)["input_ids"]], device=model.device)
        if arm.speculation is None:
            return GreedyDecoding(role, model, prompt, most=wanted.settings.tokens, compile=wanted.settings.compile)
        drawn = rule(arm.speculation["temperature"], torch.Generator(model.device).manual_seed(wanted.seed))
        return SpeculativeDecoding(role, base.model, model, prompt, draft_length=arm.speculation["tokens"], rule=drawn)

    def _model(self, role: str) -> Any:
        """An arm's model; where it speculates, the drafter."""
        if role not in self._models:
            self._models[role] = self._made(self.wanted.arms[role])
        return self._models[role]

    def _made(self, arm: TimedArm) -> Any:
        base = self._base(arm)
        if arm.factors is None:
            return base.model
        compressed = read_for(arm.factors, arm.model, base.content_id)
        model = twin(base.model)
        install(model, compressed)
        return model

    def _base(self, arm: TimedArm) -> _Base:
        if arm.model not in self._bases:
            loaded = load_causal_lm(arm.model, dtype=self.wanted.dtype, device=self.wanted.device)
            self._bases[arm.model] = _Base(arm.model, *loaded)
        return self._bases[arm.model]


class Resident:
    """What a session calls for a run where both arms stay in memory.

    Args:
        subjects: What is run; made at the first run.
        loaded: Models of theirs that are in memory already.
    """

    def __init__(self, subjects: Subjects, loaded: Loaded | None = None) -> None:
        self._settings, self._loaded = subjects.settings, loaded or Loaded(subjects)
        self._subjects: dict[str, Subject] = {}

    def __call__(self, arm: str) -> Timing:
        """Run `treatment`, `control` or `slowed` once."""
        if not self._subjects:
            self._subjects = {name: self._loaded.subject(name) for name in ("treatment", "control")}
            self._subjects["slowed"] = Slowed(self._subjects["control"], self._settings.slowdown)
        return self._subjects[arm].run(self._settings.tokens)

    def counted(self, runs: Sequence[Run]) -> dict[int, Speculation]:
        """What the runs of a block of the contrast counted, by their number, of arms that speculate.

        Args:
            runs: The block, whose runs were the last ones. What was counted before it (warming up) is forgotten.
        """
        found: dict[int, Speculation] = {}
        for arm, subject in self._subjects.items():
            if isinstance(subject, SpeculativeDecoding):
                mine = [run.run for run in runs if (run.phase, run.arm) == ("contrast", arm)]
                found |= zip(mine, subject.runs[len(subject.runs) - len(mine) :], strict=True)
                subject.runs.clear()
        return found


def runner(subjects: Subjects, loaded: Loaded | None = None) -> Resident | FreshProcess:
    """What a session calls for a run: both arms resident, or each in a new process.

    Args:
        subjects: What is run.
        loaded: Models of theirs that are in memory already, of which new processes have no use.
    """
    if subjects.settings.procedure == "fresh_process":
        return FreshProcess(subjects.one, subjects.settings.tokens)
    return Resident(subjects, loaded)


def runner_unless_same(subjects: Subjects) -> Resident | FreshProcess | None:
    """`runner` of two arms that differ, with the models that were loaded to see it; None where both are the same.

    Raises:
        ModelError: A model is missing, unreadable, or another one than its factors were made from.
    """
    loaded = Loaded(subjects)
    if loaded.same():
        return None
    found = runner(subjects, loaded)
    del loaded
    torch.cuda.empty_cache()  # what no runner has kept is there for the processes that it starts
    return found


def twin(model: Any) -> Any:
    """A model whose modules are its own and whose tensors are the other's: layers can be replaced in one alone."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
