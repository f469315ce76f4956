"""Arms as a timing session loads them: any model, with or without factors, or a drafter with its verifier."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from nullarm.bench.decoding import GreedyDecoding, Slowed
from nullarm.bench.fresh import FreshProcess
from nullarm.bench.settings import BenchSettings
from nullarm.bench.subjects import Subject, Timing
from nullarm.models.load import load_causal_lm
from nullarm.protocols.low_rank.factored.checkpoint import read
from nullarm.protocols.low_rank.factored.install import install
from nullarm.protocols.low_rank.factored.treatment import treatment_hash
from nullarm.protocols.low_rank.speculation.rejection import rule
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

    def all(self) -> dict[str, Subject]:
        """`treatment`, `control`, and `slowed`, which is the control made slower."""
        loaded = _Loaded(self)
        control = loaded.subject("control")
        return {
            "treatment": loaded.subject("treatment"),
            "control": control,
            "slowed": Slowed(control, self.settings.slowdown),
        }

    def one(self, arm: str) -> Subject:
        """One of them, loaded alone."""
        loaded = _Loaded(self)
        return Slowed(loaded.subject("control"), self.settings.slowdown) if arm == "slowed" else loaded.subject(arm)

    def same(self) -> bool:
        """Whether both arms would run the same weights, to the same logits on the prompt, in the same way."""
        loaded, (first, second) = _Loaded(self), self.arms.values()
        if first.speculation != second.speculation:
            return False
        hashes = [treatment_hash(loaded.model(arm), loaded.prompt(arm)) for arm in (first, second)]
        return hashes[0] == hashes[1]


@dataclass(frozen=True)
class _Loaded:
    """Models that are loaded once, each arm's factors in modules of its own."""

    wanted: Subjects
    bases: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def subject(self, role: str) -> Subject:
        """What the session runs for a role."""
        arm, wanted = self.wanted.arms[role], self.wanted
        model, prompt = self.model(arm), self.prompt(arm)
        if arm.speculation is None:
            return GreedyDecoding(role, model, prompt, most=wanted.settings.tokens, compile=wanted.settings.compile)
        drawn = rule(arm.speculation["temperature"], torch.Generator(model.device).manual_seed(wanted.seed))
        verifier, _ = self._base(arm)
        return SpeculativeDecoding(role, verifier, model, prompt, draft_length=arm.speculation["tokens"], rule=drawn)

    def model(self, arm: TimedArm) -> Any:
        """An arm's model; where it speculates, the drafter."""
        model, _ = self._base(arm)
        if arm.factors is None:
            return model
        model = twin(model)
        install(model, read(arm.factors).compressed)
        return model

    def prompt(self, arm: TimedArm) -> torch.Tensor:
        """The prompt in an arm's tokens, `[1, position]`."""
        model, tokenizer = self._base(arm)
        return torch.tensor([tokenizer(self.wanted.settings.prompt)["input_ids"]], device=model.device)

    def _base(self, arm: TimedArm) -> tuple[Any, Any]:
        if arm.model not in self.bases:
            self.bases[arm.model] = load_causal_lm(arm.model, dtype=self.wanted.dtype, device=self.wanted.device)
        return self.bases[arm.model]


def runner(subjects: Subjects) -> Callable[[str], Timing]:
    """What a session calls for a run: both arms resident, loaded at the first call, or each in a new process."""
    settings = subjects.settings
    if settings.procedure == "fresh_process":
        return FreshProcess(subjects.one, settings.tokens)
    resident: dict[str, Subject] = {}

    def run(arm: str) -> Timing:
        if not resident:
            resident.update(subjects.all())
        return resident[arm].run(settings.tokens)

    return run


def twin(model: Any) -> Any:
    """A model whose modules are its own and whose tensors are the other's: layers can be replaced in one alone."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
