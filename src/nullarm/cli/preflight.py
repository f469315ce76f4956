"""`nullarm preflight`: is this machine ready for a plan."""

from __future__ import annotations

from pathlib import Path

import click

from nullarm.cli.options import directory_option, json_option, prepared_study, print_json, study_options


@click.command()
@study_options
@directory_option
@json_option
def preflight(
    study: str, overrides: tuple[str, ...], profile: str | None, directory: Path | None, as_json: bool
) -> None:
    """Check this machine against a plan."""
    from nullarm.conduct import default_directory
    from nullarm.errors import PreflightError
    from nullarm.sites.preflight import Check, check_machine

    prepared = prepared_study(study, overrides, profile)
    checks = [
        Check(
            "study", not prepared.design.refusals, "; ".join(prepared.design.refusals) or "valid, and can reach its α"
        ),
        *check_machine(prepared.study, prepared.plan, directory or default_directory(prepared.study)),
        *prepared.protocol.checks(prepared.study),
    ]
    if as_json:
        print_json([{"name": c.name, "ok": c.ok, "detail": c.detail, "cure": c.cure} for c in checks])
    else:
        for check in checks:
            cure = "" if check.ok else f"  → {check.cure}"
            click.echo(f"{'ok  ' if check.ok else 'FAIL'}  {check.name:<10} {check.detail}{cure}")
    if bad := [check for check in checks if not check.ok]:
        raise PreflightError(f"{len(bad)} check(s) failed: {bad[0].name}: {bad[0].detail}", next_command=bad[0].cure)
