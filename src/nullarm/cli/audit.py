"""`nullarm audit`: the singular spectra of any PEFT adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nullarm.cli.options import json_option, print_json


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--base", type=click.Path(path_type=Path), help="Checkpoint directory of the base model, for the ratios.")
@click.option("--suggest", type=click.Choice(["global", "per-layer"]), default="per-layer", show_default=True,
              help="Suggest one rank for all modules, or one for each.")  # fmt: skip
@click.option("--allow-pickle", is_flag=True, help="Also read adapter_model.bin, with weights_only=True.")
@json_option
def audit(directory: Path, base: Path | None, suggest: str, allow_pickle: bool, as_json: bool) -> None:
    """Audit the singular spectra of a PEFT adapter."""
    from nullarm.protocols.rank_mechanism.audit import audit_adapter
    from nullarm.protocols.rank_mechanism.suggest import suggestion

    found = audit_adapter(directory, base=base, allow_pickle=allow_pickle)
    suggested = suggestion(found, "global" if suggest == "global" else "per-layer")
    data = {**found.to_json(), "suggestion": suggested}
    if as_json:
        print_json(data)
    else:
        _print(data)


def _print(data: dict[str, Any]) -> None:
    width = max((len(module["name"]) for module in data["modules"]), default=6)
    click.echo(
        f"{'module':<{width}} {'r':>4} {'k@90':>5} {'k@99':>5} {'stable':>7} {'‖ΔW‖_F':>9} {'UDR':>8}  suggested"
    )
    pattern = data["suggestion"].get("rank_pattern", {})
    for module in data["modules"]:
        suggested = pattern.get(module["name"], data["suggestion"].get("rank"))
        click.echo(
            f"{module['name']:<{width}} {module['r']:>4} {module['energy_rank_90']:>5} {module['energy_rank_99']:>5} "
            f"{_number(module['stable_rank']):>7} {_number(module['frobenius_norm_scaled']):>9} "
            f"{_number(module.get('udr')):>8}  {suggested}"
        )
    total = sum(module["params"] for module in data["modules"])
    click.echo(
        f"{len(data['modules'])} modules, {total:,} LoRA parameters; suggested {data['suggestion']['parameters']:,}"
    )
    for note in data["summary"].get("notes", []):
        click.echo(f"note: {note}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
