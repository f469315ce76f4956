"""`nullarm plan`: everything that can be known before anything runs."""

from __future__ import annotations

from typing import Any

import click

from nullarm.cli.options import json_option, prepared_study, print_json, study_options
from nullarm.cli.progress import duration
from nullarm.stats.design import COUNTED_WHEN_MEASURED


def _print_schema(context: click.Context, option: click.Parameter, asked: bool) -> None:
    if asked:
        from nullarm.protocols.schema import study_schema

        print_json(study_schema())
        context.exit()


@click.command()
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Print the JSON Schema of the study file instead.",
)
@study_options
@click.option("--device", help="Estimate for this kind of machine (cpu, rtx4090, a100-40, a100-80, h100, h200, l40s).")
@click.option("--at-once", type=click.IntRange(1), default=None, help="Cells at a time in the time estimate.")
@click.option("--cells", "list_cells", is_flag=True, help="List every cell with what it needs.")
@json_option
def plan(
    study: str, overrides: tuple[str, ...], profile: str | None, device: str | None, at_once: int | None,
    list_cells: bool, as_json: bool,
) -> None:  # fmt: skip
    """Show cells, power, time, disk and cost before anything runs."""
    from nullarm.conduct import refuse_design

    device_override = (f"resources.device={device}",) if device else ()
    prepared = prepared_study(study, (*overrides, *device_override), profile)
    facts = _facts(prepared, at_once)
    if as_json:
        print_json({**facts, "cells": [cell.to_json() for cell in prepared.plan]})
        refuse_design(prepared)
        return
    _print_facts(facts)
    if list_cells:
        for cell in prepared.plan:
            needs = ", ".join(f"{role} {need[:8]}" for role, need in cell.needs.items())
            click.echo(f"  {cell.id[:8]}  {cell.label:<34} {duration(cell.estimate.seconds):>8}  {needs}")
    refuse_design(prepared)


def _facts(prepared: Any, at_once: int | None) -> dict[str, Any]:
    from nullarm.sites.devices import find_device

    study, plan_, design = prepared.study, prepared.plan, prepared.design
    device = find_device(study.resources.device)
    slots = at_once or _shares(study.resources)
    wall_s = plan_.wall_seconds(slots)
    stages: dict[str, int] = {}
    for cell in plan_:
        stages[cell.stage] = stages.get(cell.stage, 0) + 1
    return {
        "study": study.name, "question": study.question, "protocol": study.protocol, "smoke": study.smoke,
        "plan_hash": plan_.hash, "n_cells": len(plan_), "stages": stages,
        "dependencies": sum(len(cell.needs) for cell in plan_), "seeds": list(study.seeds),
        "alpha": study.analysis.alpha, "margin": study.analysis.margin, "metric": study.analysis.metric,
        "least_attainable_p": dict(design.least_p), "primary_test": study.analysis.primary.test,
        "minimum_detectable_effect": design.minimum_detectable_effect,
        "notes": list(design.notes), "refusals": list(design.refusals),
        "device": device.name, "cells_at_once": slots, "estimated_seconds": wall_s,
        "estimated_disk_bytes": plan_.disk_bytes,
        "estimated_cost": wall_s / 3600 * (study.budget.price_per_hour or device.price_per_hour),
    }  # fmt: skip


def _shares(resources: Any) -> int:
    """Cells at once on this machine; one when another is planned for, or when this one has too few GPUs."""
    from nullarm.engines.local import LocalEngine
    from nullarm.sites.provenance import gpus

    if resources.device or resources.gpus > len(gpus()):
        return 1
    return LocalEngine(resources.cpus, resources.gpus).room()


def _print_facts(facts: dict[str, Any]) -> None:
    stages = ", ".join(f"{count} {stage}" for stage, count in facts["stages"].items())
    effect = facts["minimum_detectable_effect"]
    lines = [
        f"{facts['study']}{' (smoke: never enters a verdict)' if facts['smoke'] else ''}: {facts['question']}",
        f"  cells          {facts['n_cells']} ({stages}), {facts['dependencies']} dependencies, seeds {facts['seeds']}",
        *_least_p(facts),
        f"  detectable     {_effect(effect, facts)}",
        f"  time           about {duration(facts['estimated_seconds'])} on {facts['device']}, "
        f"{facts['cells_at_once']} at once",
        f"  disk           about {facts['estimated_disk_bytes'] / 1e6:.1f} MB",
        f"  cost           about ${facts['estimated_cost']:.2f}",
        *(f"  note           {note}" for note in facts["notes"]),
        *(f"  refused        {refusal}" for refusal in facts["refusals"]),
    ]
    click.echo("\n".join(lines))


def _least_p(facts: dict[str, Any]) -> list[str]:
    """A line for each least p, with the contrasts that have it."""
    found: dict[float | None, list[str]] = {}
    for name, p in facts["least_attainable_p"].items():
        found.setdefault(p, []).append(name)
    return [
        f"  least p        {', '.join(names)}: {'any (continuous test)' if p is None else f'{p:.2g}'} "
        f"(α = {facts['alpha']})"
        for p, names in found.items()
    ]


def _effect(effect: float | None, facts: dict[str, Any]) -> str:
    if facts["refusals"]:
        return "nothing: the design is refused"
    if facts["primary_test"] in COUNTED_WHEN_MEASURED:
        units = facts["primary_test"].removeprefix("paired_")
        return f"not known beforehand: {units} are the units, and how much they differ shows when they are measured"
    if effect is None:
        return "unknown: set analysis.expected_sd, or measure it with `nullarm power --pilot DIR`"
    return f"{effect:.4f} in {facts['metric']} at 80 % power; margin δ = {facts['margin']}"
