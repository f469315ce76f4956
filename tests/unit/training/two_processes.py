"""Train the toy in the processes that torchrun started: `two_processes.py DIRECTORY STOP_AFTER DROPOUT`.

STOP_AFTER is a number of steps, 0 for never. The answer is printed as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from toy_training import Toy, never, stop_after, toy_fit, toy_settings, weights

from nullarm.errors import Preempted

torch.set_num_threads(1)
steps = int(sys.argv[2])
processes = PartialState(cpu=True)
first = processes.is_main_process
# Only the first process is asked to stop; the others must hear of it.
asked = stop_after(steps) if steps and first else never
answer: dict[str, object]
model = Toy(dropout=float(sys.argv[3]))
try:
    settings = toy_settings(steps=14, batch_size=4, checkpoint_every=100)
    result = toy_fit(Path(sys.argv[1]), model, settings, should_stop=asked)
    answer = {"losses": result.losses, "resumed": result.resumed_from, "weights": weights(model)}
except Preempted as error:
    answer = {"stopped": error.problem}
if first:
    print(json.dumps(answer))
processes.wait_for_everyone()
processes.destroy_process_group()
