"""`nullarm residual`: what residual comparisons hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nullarm.cli.options import json_option, print_json


@click.group(invoke_without_command=True)
@click.pass_context
def residual(context: click.Context) -> None:
    """Summarise the results of residual comparisons."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@residual.command()
@click.argument("inputs", metavar="INPUTS…", nargs=-1, required=True,
                type=click.Path(exists=True, path_type=Path))  # fmt: skip
@click.option("--metric", "metrics", multiple=True, metavar="NAME",
              help="A metric; repeatable. kl_div when left out, of runs entropy.")  # fmt: skip
@click.option("--axis", type=click.Choice(["layer", "token"]), default="layer", show_default=True,
              help="Summarise along layers, or along token positions.")  # fmt: skip
@click.option("--record-type", type=click.Choice(["pairwise", "runs"]), default="pairwise", show_default=True,
              help="Comparisons, or the single runs of a multi-pass capture.")  # fmt: skip
@click.option("--record", "records", multiple=True, metavar="NAME",
              help="Only this comparison or run, such as BB-SS or BB; repeatable.")  # fmt: skip
@click.option("--top-n", type=click.IntRange(0), default=5, show_default=True, help="Hotspots of each summary.")
@click.option("--token-id", "token_ids", type=int, multiple=True,
              help="Also summarise the logit of this tracked token; repeatable.")  # fmt: skip
@click.option("--logit-source", type=click.Choice(["base", "sft", "diff"]), default="diff", show_default=True,
              help="Whose logit; diff is fine-tuned − base.")  # fmt: skip
@click.option("--export", "export_path", type=click.Path(path_type=Path), metavar="PATH",
              help="Write all rows to a .csv, .json or .parquet file.")  # fmt: skip
@json_option
def report(inputs: tuple[Path, ...], export_path: Path | None, as_json: bool, **asked: Any) -> None:
    """Means, maxima and hotspots of residual comparisons, by layer or by token position.

    INPUTS are JSON files of the source's two schemas, study directories, or directories of finished captures. Every
    difference is fine-tuned − base.
    """
    from nullarm.protocols.residual.export.summary import Request, summarise
    from nullarm.protocols.residual.export.text import encoder, export, rows_of, text_of

    if export_path is not None:
        encoder(export_path)  # refuses a suffix before the work is done
    found = summarise(inputs, Request(**asked))
    if export_path is not None:
        export(found, export_path)
        click.echo(f"wrote {export_path}", err=True)
    if as_json:
        print_json(rows_of(found))
    else:
        click.echo(text_of(found))
