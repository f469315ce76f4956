"""Train the toy in child processes that are killed with SIGKILL at random moments, and resumed until they finish.

Run by `test_kill_and_resume.py` in a process of its own: `python kill_and_resume.py DIRECTORY KILLS SEED`. Prints as
JSON the losses and weights of an undisturbed run and of every killed and finished one, and the number of kills.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from toy_training import Toy, never, toy_fit, toy_settings, weights

STEPS, STEP_S = 60, 0.003
SETTINGS = toy_settings(steps=STEPS, checkpoint_every=1, keep_checkpoints=2, gradient_accumulation=2)


def train(directory: Path, *, slowly: bool) -> dict[str, object]:
    def pace() -> bool:
        time.sleep(STEP_S if slowly else 0)
        return never()

    model = Toy()
    result = toy_fit(directory, model, SETTINGS, should_stop=pace)
    skipped = [entry.reason for entry in result.skipped]
    return {"losses": result.losses, "weights": weights(model), "resumed": result.resumed_from, "skipped": skipped}


def newest(directory: Path) -> str:
    return max((path.name for path in directory.glob("step-*")), default="")


def in_a_child(directory: Path, answer: Path, *, killed_by: random.Random | None) -> bool:
    """Whether the child finished before it was killed: most often some milliseconds after a first checkpoint."""
    before = newest(directory)
    child = os.fork()
    if child == 0:
        answer.write_text(json.dumps(train(directory, slowly=True)))
        os._exit(0)
    if killed_by is not None:
        while killed_by.random() < 0.998 and newest(directory) == before:
            time.sleep(0.002)
        time.sleep(killed_by.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if status and not os.WIFSIGNALED(status):
        raise SystemExit(f"the child failed with status {status}")
    return status == 0


def main(directory: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.ERROR)
    undisturbed = train(directory / "undisturbed", slowly=False)
    rng, killed = random.Random(seed), 0
    finished: list[object] = []
    while killed < kills:
        run, answer = directory / f"run-{len(finished)}", directory / f"answer-{len(finished)}.json"
        # A run may start over a few times before its first checkpoint; the last one is left to finish.
        while not in_a_child(run, answer, killed_by=rng if killed < kills else None):
            killed += 1
        finished.append(json.loads(answer.read_text()))
    json.dump({"undisturbed": undisturbed, "finished": finished, "killed": killed}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
