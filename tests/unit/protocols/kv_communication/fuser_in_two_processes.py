"""Train a fuser in the processes that torchrun started: `fuser_in_two_processes.py DIRECTORY fresh|fixed`.

Each process writes what it ends with to `DIRECTORY/rank<n>.json`. With `fixed`, gates are, and some of them closed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from communication_models import open_fuser, receiver, sharer
from small_lessons import loss_of, trained

torch.set_num_threads(1)
directory = Path(sys.argv[1])
processes = PartialState(cpu=True)
fuser = open_fuser(sharer(), receiver())
if sys.argv[2] == "fixed":
    fuser[0].gate_logit("key").data.fill_(-1)
    fuser[2].gate_logit("value").data.fill_(-1)
    fuser.fix_gates()
before = [p.sum().item() for p in fuser.parameters()]
result = trained(loss_of(fuser), directory / "checkpoints")
ends = {name: p.flatten().tolist() for name, p in fuser.named_parameters()}
changed = sum(p.sum().item() != was for p, was in zip(fuser.parameters(), before, strict=True))
answer = {"losses": result.losses, "weights": ends, "changed": changed, "processes": processes.num_processes}
(directory / f"rank{processes.process_index}.json").write_text(json.dumps(answer))
processes.wait_for_everyone()
processes.destroy_process_group()
