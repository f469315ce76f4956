"""Whole rank-mechanism studies in miniature: thousands of LoRA students of linear teachers, trained at once.

A model is M linear modules d → d. The teacher adds to each an update with `rank` equal singular values; a student
learns it by stochastic gradient descent through LoRA factors. Audit, allocation and verdict are the package's own; only
model and task are replaced, by ones so small that hundreds of studies take seconds. Maps are cross-fitted: each seed is
retrained with the audit of the next, so that with a homogeneous teacher the audited map and its shuffles are
exchangeable. (In a transformer they are not: modules of equal rank still matter unequally, and an audit finds that.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nullarm.errors import InvalidResult
from nullarm.protocols.rank_mechanism.allocate import AllocationPolicy, ModuleShape, allocate
from nullarm.protocols.rank_mechanism.audit import singular_values
from nullarm.stats.judge import judge_superiority, withhold
from nullarm.stats.verdict import Judgement, Verdict

WIDTH = 12
MODULES = 10
PROBE_RANK = 8
STEPS = 60
BATCH = 16
ITEMS = 60
LEARNING_RATE = 0.05


EVERY_RANK = AllocationPolicy(energy=0.9, allowed_ranks=tuple(range(1, PROBE_RANK + 1)))


@dataclass(frozen=True)
class MicroStudy:
    """A design: seeds, shuffles per seed, and the rank of the teacher's update in each module."""

    teacher_ranks: Sequence[int]
    target_noise: float
    """Standard deviation of the noise on training targets: what makes audits of equal modules differ."""
    seeds: int = 4
    shuffles: int = 3
    policy: AllocationPolicy = EVERY_RANK


def judge_studies(design: MicroStudy, studies: int, *, seed: int) -> list[Judgement]:
    """Run `studies` independent studies and judge each."""
    generator = torch.Generator().manual_seed(seed)
    runs = studies * design.seeds
    teachers = _teachers(design.teacher_ranks, runs, generator)
    probes = _train(teachers, torch.full((runs, MODULES), PROBE_RANK), design, generator)
    spectra = _audit(*probes).reshape(studies, design.seeds, MODULES, PROBE_RANK)
    rngs = np.random.default_rng(seed).spawn(studies)
    maps = [_maps(spectra[i], design, rngs[i]) for i in range(studies)]
    admitted = [i for i in range(studies) if maps[i] is not None]
    ranks = torch.tensor([maps[i] for i in admitted])  # [admitted, seeds, 1 + K, modules]
    scores = _retrained_scores(teachers, ranks, admitted, design, generator)
    judged = {i: _judge(scores[place], rngs[i]) for place, i in enumerate(admitted)}
    refused = withhold("mechanism", Verdict.INVALID, "too few permutations", alpha=0.05, margin=0.0)
    return [judged.get(i, refused) for i in range(studies)]


def _teachers(ranks: Sequence[int], runs: int, generator: torch.Generator) -> Tensor:
    """[runs, modules, out, in] updates of Frobenius norm 1 with equal singular values."""
    frames = [torch.linalg.qr(torch.randn(runs, MODULES, WIDTH, WIDTH, generator=generator))[0] for _ in range(2)]
    sigma = torch.zeros(MODULES, WIDTH)
    for module, rank in enumerate(ranks):
        sigma[module, :rank] = rank**-0.5
    update: Tensor = (frames[0] * sigma[None, :, None, :]) @ frames[1].mT
    return update


def _train(teachers: Tensor, ranks: Tensor, design: MicroStudy, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """LoRA factors A [runs, modules, r, in], B [runs, modules, out, r] after `STEPS` of Adam on random batches."""
    runs = len(teachers)
    mask = (torch.arange(PROBE_RANK)[None, None] < ranks[..., None]).float()
    a = torch.randn(runs, MODULES, PROBE_RANK, WIDTH, generator=generator) / WIDTH**0.5 * mask[..., None]
    b = torch.zeros(runs, MODULES, WIDTH, PROBE_RANK)
    a.requires_grad_()
    b.requires_grad_()
    optimiser = torch.optim.Adam([a, b], lr=LEARNING_RATE, betas=(0.9, 0.95))
    for _ in range(STEPS):
        x = torch.randn(runs, 1, BATCH, WIDTH, generator=generator)
        noise = design.target_noise * torch.randn(runs, MODULES, BATCH, WIDTH, generator=generator)
        error = x @ (teachers - (b * mask[:, :, None]) @ a).mT + noise
        optimiser.zero_grad()
        error.square().mean(dim=(2, 3)).sum().backward()
        optimiser.step()
    return a.detach() * mask[..., None], b.detach() * mask[:, :, None]


def _audit(a: Tensor, b: Tensor) -> Tensor:
    """[runs, modules, r] singular values, by the package's audit."""
    flat = singular_values(a.flatten(0, 1).double(), b.flatten(0, 1).double())
    return flat.reshape(len(a), MODULES, -1)


def _maps(spectra: Tensor, design: MicroStudy, rng: np.random.Generator) -> list[list[list[int]]] | None:
    """[seeds][1 + K][modules] ranks of the audited map and its shuffles, or None where the strata admit too few."""
    shapes = [ModuleShape(f"layers.{m}.proj", WIDTH, WIDTH) for m in range(MODULES)]
    probe = {shape.name: PROBE_RANK for shape in shapes}
    maps = []
    for seed in range(design.seeds):
        audited = spectra[(seed + 1) % design.seeds]
        by_name = {shape.name: audited[m].tolist() for m, shape in enumerate(shapes)}
        try:
            made = allocate(by_name, shapes, probe, design.policy, shuffles=design.shuffles, rng=rng).maps
        except InvalidResult:
            return None
        arms = ["audited", *(f"shuffled_{k}" for k in range(1, design.shuffles + 1))]
        maps.append([[made[arm][shape.name] for shape in shapes] for arm in arms])
    return maps


def _retrained_scores(
    teachers: Tensor, ranks: Tensor, admitted: list[int], design: MicroStudy, generator: torch.Generator
) -> np.ndarray:
    """[admitted, seeds, 1 + K, items] scores: minus the squared error on fresh inputs, the same for all arms."""
    arms = design.shuffles + 1
    kept = teachers.reshape(-1, design.seeds, MODULES, WIDTH, WIDTH)[admitted]
    repeated = kept.unsqueeze(2).expand(-1, -1, arms, -1, -1, -1).flatten(0, 2)
    a, b = _train(repeated, ranks.flatten(0, 2), design, generator)
    items = torch.randn(len(admitted), 1, 1, 1, ITEMS, WIDTH, generator=generator)
    wrong = (repeated - b @ a).reshape(len(admitted), design.seeds, arms, MODULES, WIDTH, WIDTH)
    squared = (items @ wrong.mT).square().mean(dim=(3, 5))
    return -squared.double().numpy()


def _judge(scores: np.ndarray, rng: np.random.Generator) -> Judgement:
    return judge_superiority(
        "mechanism", scores[:, 0], scores[:, 1:], alpha=0.05, margin=0.0, test="within_seed_randomisation",
        rng=rng, resamples=400,
    )  # fmt: skip
