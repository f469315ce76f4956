"""A protocol whose arms misbehave, each in the way it is called: `support.misbehaving:Misbehaving`."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import ClassVar

from nullarm.errors import ModelError
from nullarm.protocols.base import CellContext, CellResult
from nullarm.protocols.rehearsal import Rehearsal


class Misbehaving(Rehearsal):
    name: ClassVar[str] = "misbehaving"

    def run_cell(self, context: CellContext) -> CellResult:
        if context.cell.arm == "vanishes":  # without a word, and with the exit code of success
            os._exit(0)
        if context.cell.arm == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if context.cell.arm == "hangs":  # and looks at no request to stop
            context.progress(0, 1, "hanging")
            time.sleep(3600)
        if context.cell.arm == "refuses":
            raise ModelError("there is no such model", value="nowhere")
        if context.cell.arm == "chatters":
            print("to standard output")
            print("to standard error", file=sys.stderr)
            os.system("echo from a child process")
        if context.cell.arm == "undertrained":
            return CellResult({"accuracy": 0.1}, "undertrained", "accuracy 0.1 is below 0.6")
        return super().run_cell(context)
