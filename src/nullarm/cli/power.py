"""`nullarm power`: what a design can detect, before money is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nullarm.cli.options import json_option, prepared_study, print_json, study_options


def _positive(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 < value < float("inf"):
        raise click.BadParameter(f"{value} is not a number above 0", context, option)
    return value


@click.command()
@study_options
@click.option("--pilot", type=click.Path(path_type=Path), help="Measure the noise in this study directory.")
@click.option("--aa", default=None, metavar="ARM[,ARM]", help="Arms of the pilot that differ by chance alone.")
@click.option(
    "--sd",
    type=float,
    default=None,
    callback=_positive,
    help="Standard deviation between such cells.",
)
@click.option("--effect", type=float, default=None, callback=_positive, help="Effect to detect; else the margin.")
@json_option
def power(
    study: str, overrides: tuple[str, ...], profile: str | None, pilot: Path | None, aa: str | None, sd: float | None,
    effect: float | None, as_json: bool,
) -> None:  # fmt: skip
    """What a design can detect, and how many seeds it takes."""
    declared = prepared_study(study, overrides, profile).study
    noise_sd = _noise_sd(declared, pilot, aa, sd)
    facts = _facts(declared, noise_sd, effect if effect is not None else declared.analysis.margin)
    if as_json:
        print_json(facts)
        return
    click.echo(
        f"{facts['contrast']}: A/A standard deviation {facts['sd']:.4g} in {facts['metric']}, "
        f"effect {facts['effect']:g}, α {facts['alpha']:g} over {facts['family']} contrasts"
    )
    click.echo(f"  {'seeds':>5} {'detectable':>11} {'power':>6} {'equivalence':>12}")
    for row in facts["designs"]:
        click.echo(f"  {row['seeds']:>5} " + (row["fault"] or _row(row)))
    needed = facts["seeds_needed"]
    click.echo(f"seeds needed for 80 % power: {needed if needed is not None else 'more than 1,000'}")


def _row(row: dict[str, Any]) -> str:
    return f"{row['detectable']:>11.4f} {row['power']:>6.2f} {row['equivalence']:>12.2f}"


def _noise_sd(study: Any, pilot: Path | None, aa: str | None, sd: float | None) -> float:
    from nullarm.analysis import pilot_noise
    from nullarm.errors import UsageError
    from nullarm.store.study_store import StudyStore

    if sd is not None:
        return sd
    if pilot is not None:
        arms = aa.split(",") if aa else [study.analysis.primary.control]
        return pilot_noise(StudyStore.open(pilot), arms).cell_sd
    if study.analysis.expected_sd is None:
        raise UsageError("the noise is not known", valid="--pilot DIR, --sd X, or analysis.expected_sd in the study")
    return float(study.analysis.expected_sd)


def _facts(study: Any, sd: float, effect: float) -> dict[str, Any]:
    import numpy as np

    from nullarm.analysis import contrast_design
    from nullarm.stats.noise import Noise
    from nullarm.stats.power import seeds_needed

    contrast = study.analysis.primary
    design, noise = contrast_design(study, contrast), Noise(sd)
    rng = np.random.default_rng(study.analysis.seed)
    seeds = sorted({len(study.seeds), *(n for n in (3, 4, 5, 6, 8, 10, 12, 16) if n != len(study.seeds))})
    return {
        "study": study.name, "contrast": contrast.name, "metric": study.analysis.metric, "alpha": design.alpha,
        "family": design.family, "sd": sd, "effect": effect,
        "designs": [_at(design, noise, n, effect, rng) for n in seeds],
        "seeds_needed": seeds_needed(design, noise, effect=effect, rng=rng),
    }  # fmt: skip


def _at(design: Any, noise: Any, seeds: int, effect: float, rng: Any) -> dict[str, Any]:
    from dataclasses import replace

    from nullarm.stats.power import detection_probability, equivalence_probability, minimum_detectable_effect

    here = replace(design, seeds=seeds)
    if fault := here.fault():
        return {"seeds": seeds, "fault": fault, "detectable": None, "power": None, "equivalence": None}
    return {
        "seeds": seeds, "fault": None,
        "detectable": minimum_detectable_effect(here, noise, rng=rng),
        "power": detection_probability(here, noise, effect, rng=rng),
        "equivalence": equivalence_probability(here, noise, effect, rng=rng),
    }  # fmt: skip
