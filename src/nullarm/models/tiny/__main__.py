"""`python -m nullarm.models.tiny build world --out DIR`: train a built-in model again."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nullarm.errors import NullarmError
from nullarm.models.tiny.build import build, tell
from nullarm.models.tiny.recipe import RECIPES


def main(arguments: list[str] | None = None) -> int:
    """Run the command; progress goes to stderr, the build note as JSON to stdout."""
    parser = argparse.ArgumentParser(prog="python -m nullarm.models.tiny", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build", help="train a built-in model into a directory, replacing it")
    builder.add_argument("name", choices=sorted(RECIPES))
    builder.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    try:
        note = build(chosen.name, chosen.out, tell)
    except NullarmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(note))
    return 0


if __name__ == "__main__":
    sys.exit(main())
