"""The study file as typed data: what is asked, of which arms, judged how, at what price."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

FORMAT: Final = 1
"""Version of the study file and of the study directory."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")]


class Strict(BaseModel):
    """Base of everything read from a study file: frozen, unknown keys refused, every field documented."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Arm(Strict):
    """One level of a factor."""

    role: Literal["treatment", "control", "reference"] = "treatment"
    """What the arm is for: the treatment, a control that stands for a null, or a reference to compare with."""
    null: str | None = None
    """For a control: the null hypothesis it stands for, in words."""
    replicates: int = Field(default=1, ge=1, le=1000)
    """How many independent draws of this arm each seed gets (the K shuffles of a shuffled control)."""

    @model_validator(mode="after")
    def _control_states_its_null(self) -> Arm:
        if self.role == "control" and not self.null:
            raise ValueError("a control must state the null it stands for: add `null: <sentence>`")
        return self


class Contrast(Strict):
    """One comparison that the study declares before any cell runs."""

    name: Name
    """Name of the contrast, as it appears in the report."""
    treatment: Name
    """The arm under test."""
    control: Name
    """The arm it is tested against."""
    kind: Literal["superiority", "non_inferiority", "equivalence", "difference"] = "superiority"
    """What is claimed when it succeeds. `difference` declares no direction: its test has two sides."""
    test: Literal["within_seed_randomisation", "paired_t", "paired_items", "paired_blocks"] = "paired_t"
    """The test that carries the level: randomisation over a control's replicates, a t test over seeds, a t test over
    items (their clusters), which speaks of the models at hand and of prompts like these, not of a training recipe, or
    a t test over the blocks of a timing session, whose metric is the logarithm of tokens a second."""
    margin: float | None = Field(default=None, ge=0)
    """Smallest effect that matters, in units of the metric (over blocks, 0.005 is half a per cent of the tokens a
    second); the analysis' margin when left out."""
    primary: bool = False
    """The one contrast that answers the question. Exactly one is primary."""

    @model_validator(mode="after")
    def _has_a_test_of_its_kind(self) -> Contrast:
        if self.kind == "difference" and self.test == "within_seed_randomisation":
            raise ValueError(f"contrast {self.name!r}: a difference has two sides, and randomisation here has one")
        return self


class Analysis(Strict):
    """How the numbers will be judged.

    Its hash is stored before any cell runs; a later change is reported as exploratory.
    """

    metric: str
    """Per-item measurement that is compared, larger is better (for example `accuracy`)."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Level of every test, after Holm's correction over the declared contrasts."""
    margin: float = Field(gt=0)
    """Smallest effect that matters (δ), in units of the metric; also the bound of equivalence."""
    contrasts: tuple[Contrast, ...] = Field(min_length=1)
    """The comparisons, declared before any cell runs."""
    incomplete: Literal["invalid", "drop_seed"] = "invalid"
    """What an incomplete matrix of cells means: no verdict, or a verdict on the seeds that are complete."""
    resamples: int = Field(default=10_000, ge=200, le=1_000_000)
    """Bootstrap resamples and Monte-Carlo permutations."""
    seed: int = Field(default=0, ge=0)
    """Seed of the resampling."""
    expected_sd: float | None = Field(default=None, gt=0)
    """Expected standard deviation between replicates of one arm at one seed, in units of the metric. The plan's minimum
    detectable effect rests on it; `nullarm power --pilot DIR` measures it."""

    @model_validator(mode="after")
    def _contrasts_are_distinct(self) -> Analysis:
        names = [c.name for c in self.contrasts]
        if len(set(names)) != len(names):
            raise ValueError(f"contrast names repeat: {sorted(n for n in set(names) if names.count(n) > 1)}")
        if same := [c.name for c in self.contrasts if c.treatment == c.control]:
            raise ValueError(f"contrast {same[0]!r} compares an arm with itself")
        if sum(c.primary for c in self.contrasts) != 1:
            raise ValueError("exactly one contrast must have `primary: true`")
        return self

    @property
    def primary(self) -> Contrast:
        """The contrast that answers the question."""
        return next(c for c in self.contrasts if c.primary)


class Resources(Strict):
    """What one cell needs, and how stubbornly it is tried."""

    cpus: int = Field(default=1, ge=1)
    """CPU threads of one cell."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of one cell."""
    device: str | None = None
    """Machine that `nullarm plan` estimates time and cost for; `nullarm plan --device` overrides it."""
    attempts: int = Field(default=3, ge=1, le=100)
    """How often a cell whose process died is started again. An error of the cell's own is not repeated."""


class Budget(Strict):
    """Limits of one study on one machine."""

    max_cost: float | None = Field(default=None, gt=0)
    """Spend at which no further cell starts and running cells stop at a safe point, in US dollars."""
    max_runtime_h: float | None = Field(default=None, gt=0)
    """Wall-clock hours of one `nullarm run`, with the same effect."""
    price_per_hour: float = Field(default=0.0, ge=0)
    """Price of the machine, in US dollars an hour."""


class Study(Strict):
    """A question, a protocol with its parameters, factors, seeds, the declared analysis, resources and budget."""

    format: Literal[1] = FORMAT
    """Version of this file format."""
    name: Name
    """Name of the study; the study directory carries it."""
    question: str = Field(min_length=1)
    """The question in one sentence, as the report prints it."""
    protocol: str = Field(min_length=1)
    """How cells are planned, run and analysed: a built-in protocol or `package.module:Class`."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the protocol; `nullarm plan --schema` prints what each protocol takes."""
    factors: dict[Name, dict[Name, Arm]] = Field(min_length=1)
    """Named axes and their arms."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(min_length=1)
    """Seeds; every arm runs at every seed."""
    analysis: Analysis
    """The declared analysis."""
    resources: Resources = Resources()
    """What a cell needs."""
    budget: Budget = Budget()
    """What the study may cost."""
    smoke: bool = False
    """A rehearsal: its cells have identities of their own and never enter a verdict."""
    profiles: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    """Named sets of overrides (`--profile NAME`); `DEV_MODE=1` selects `quick` and sets `smoke`."""

    @field_validator("seeds")
    @classmethod
    def _seeds_are_distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if repeated := sorted({s for s in seeds if seeds.count(s) > 1}):
            raise ValueError(f"seeds repeat: {repeated}; each seed must occur once")
        return seeds

    @model_validator(mode="after")
    def _arms_have_one_name_each(self) -> Study:
        names = [name for levels in self.factors.values() for name in levels]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"arm names repeat over the factors: {repeated}; each arm must have its own")
        return self

    @model_validator(mode="after")
    def _contrasts_name_arms(self) -> Study:
        arms = set(self.arms)
        for contrast in self.analysis.contrasts:
            for role in ("treatment", "control"):
                if (arm := getattr(contrast, role)) not in arms:
                    raise ValueError(
                        f"contrast {contrast.name!r}: {role} {arm!r} is not an arm of this study; arms: {sorted(arms)}"
                    )
        return self

    @property
    def arms(self) -> Mapping[str, Arm]:
        """All arms of all factors, by name."""
        return {name: arm for levels in self.factors.values() for name, arm in levels.items()}
