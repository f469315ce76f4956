"""Whether this machine is ready for a plan: each check says what to do when it fails."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from nullarm.sites.devices import memory_bytes
from nullarm.sites.provenance import gpus
from nullarm.study.plan import Plan
from nullarm.study.spec import Study

DISK_RESERVE = 1.2
"""Free space asked for, as a multiple of the plan's estimate."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    cure: str = ""
    """What to do when it is not ok."""


def check_machine(study: Study, plan: Plan, root: Path) -> list[Check]:
    """Checks that hold for every protocol: GPUs, memory, disk and caches."""
    return [_gpus(study, plan), _memory(plan), _disk(plan, root), _cache(plan)]


def existing_parent(path: Path) -> Path:
    """`path`, or the nearest directory above it that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def _gpus(study: Study, plan: Plan) -> Check:
    need, found = study.resources.gpus, gpus()
    if not need:
        return Check("gpu", True, "not needed")
    memory = max((cell.estimate.memory_bytes for cell in plan), default=0)
    least = min((int(gpu["free_bytes"]) for gpu in found), default=0)
    ok = len(found) >= need and least >= memory
    if not found:
        cure = "run it on a machine with a GPU, or set resources.gpus=0"
        return Check("gpu", False, f"0 found; a cell needs {need} with about {_size(memory)}", cure)
    detail = f"{len(found)} found, {_size(least)} free each; a cell needs {need} and about {_size(memory)}"
    return Check("gpu", ok, detail, "rent a larger GPU, or lower parameters.training.batch_size")


def _memory(plan: Plan) -> Check:
    need = max((cell.estimate.memory_bytes for cell in plan), default=0)
    free = memory_bytes()
    return Check("memory", free >= need or bool(gpus()), f"{_size(free)} available, a cell needs about {_size(need)}",
                 "run fewer cells at a time: --at-once 1")  # fmt: skip


def _disk(plan: Plan, root: Path) -> Check:
    free = shutil.disk_usage(existing_parent(root)).free
    need = int(plan.disk_bytes * DISK_RESERVE)
    detail = f"{_size(free)} free at {existing_parent(root)}, the study needs about {_size(need)}"
    return Check("disk", free >= need, detail, "choose a larger disk with --dir")


def _cache(plan: Plan) -> Check:
    """Hub models are downloaded to `HF_HOME`: on a rented box that must be the big disk."""
    hub = sorted(
        {content.split("@")[0] for cell in plan for content in cell.inputs.values() if content.startswith("hub:")}
    )
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    if not hub:
        return Check("cache", True, "no hub downloads")
    free = shutil.disk_usage(existing_parent(home)).free
    need = 2 * max((cell.estimate.memory_bytes for cell in plan), default=0)
    detail = f"HF_HOME={home}, {_size(free)} free, {', '.join(hub)} may need {_size(need)}"
    return Check("cache", free >= need, detail, "export HF_HOME=/path/on/the/big/disk")


def _size(count: float) -> str:
    return f"{count / (1 << 30):.2f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.1f} MiB"
