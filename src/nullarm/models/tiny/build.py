"""Building a built-in model, checking what it learned, and finding one that is already built."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nullarm.errors import ModelError
from nullarm.models.cache import cache_dir, writing_to
from nullarm.models.quiet import without_progress_bars
from nullarm.models.tiny.making import examine, train
from nullarm.models.tiny.recipe import RECIPES

SHIPPED = Path(__file__).parent / "data"
BUILD_NOTE = "build.json"
Say = Callable[[str], None]


def tell(line: str) -> None:
    """Progress for people: stderr, so that stdout stays fit for machines."""
    print(line, file=sys.stderr, flush=True)


def directory_of(name: str, say: Say = tell) -> Path:
    """Directory of a built-in model, as `from_pretrained` wants it: shipped, cached, or built now into the cache.

    A shipped model is used only when it was made by exactly this recipe and code.

    Raises:
        ModelError: No seed of the recipe learned enough.
        StorageError: The cache cannot be written.
    """
    if ready := ready_directory(name):
        return ready
    target = _cached(name)
    with writing_to(target.parent), _lock(target):
        if not target.is_dir():
            say(f"building builtin:{name} once (about a minute)")
            build(name, target, say)
    return target


def ready_directory(name: str) -> Path | None:
    """Directory of a built-in model that need not be built any more, or None."""
    if _recipe_hash(SHIPPED / name) == RECIPES[name].content_hash():
        return SHIPPED / name
    return _cached(name) if _cached(name).is_dir() else None


def _cached(name: str) -> Path:
    return cache_dir() / "builtin" / f"{name}-{RECIPES[name].content_hash()[:20]}"


def build(name: str, out: Path, say: Say = tell) -> dict[str, Any]:
    """Build into `out`, which appears whole or not at all and replaces what was there.

    Returns:
        The build note: recipe hash, seed, scores, CPU seconds.

    Raises:
        ModelError: No seed of the recipe learned enough.
        StorageError: The directory cannot be written.
    """
    from nullarm.models.threads import one_thread

    with writing_to(out.parent), _staging(out) as staging:
        with one_thread():
            note = _train_and_examine(name, staging, say)
        (staging / BUILD_NOTE).write_text(json.dumps(note, indent=2) + "\n", "utf-8")
    return note


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A directory beside `out` that takes its place when all went well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=out.parent, prefix=".tmp-"))
    staging.chmod(0o755)
    replaced = staging.with_name(f"{staging.name}-replaced")
    try:
        yield staging
        if out.exists():
            os.rename(out, replaced)
        os.rename(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _train_and_examine(name: str, out: Path, say: Say) -> dict[str, Any]:
    """Train with one seed after another until a model passes, and save that."""
    recipe = RECIPES[name]
    recipe_hash = recipe.content_hash()  # of the code that is running, before anybody edits it
    for seed in recipe.seeds:
        start = time.process_time()
        say(f"builtin:{name}, seed {seed}")
        model, tokenizer = train(recipe, seed, say, lambda base: directory_of(base, say))
        cpu_s = round(time.process_time() - start, 1)
        exams = examine(recipe, model, tokenizer)
        for exam in exams:
            say(f"seed {seed} after {cpu_s} CPU s, {exam}")
        short = [f"{exam.name} {skill}" for exam in exams for skill in exam.short]
        if not short:
            _save(model, tokenizer, out)
            scores = {exam.name: exam.scores for exam in exams}
            return {"recipe": recipe_hash, "seed": seed, "scores": scores, "cpu_s": cpu_s}
        say(f"seed {seed} is short in {', '.join(short)}; trying the next seed")
    wanted = {exam.name: dict(exam.marks) for exam in exams}
    raise ModelError(
        f"no seed of the recipe of builtin:{name} learned enough",
        value=recipe.seeds,
        valid=f"accuracies of at least {wanted}",
        next_command="pip install -c constraints.txt nullarm, which has the tested versions",
    )


def _save(model: Any, tokenizer: Any, out: Path) -> None:
    with without_progress_bars():
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    for path in out.iterdir():
        path.chmod(0o644)  # safetensors writes files for their owner only; shipped ones are for everybody


def _recipe_hash(directory: Path) -> str | None:
    note = directory / BUILD_NOTE
    return str(json.loads(note.read_text("utf-8"))["recipe"]) if note.is_file() else None


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Let one process build while others wait for it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f"{target.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
