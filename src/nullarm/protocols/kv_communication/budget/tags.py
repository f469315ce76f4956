"""Run tags and directories, as the source's runbook names them."""

from __future__ import annotations

from typing import Any

from nullarm.study.plan import Cell

STEPS = ("step_0_baselines", "step_1_kv_ptq")


def run_tag(cell: Cell) -> str:
    """Such as `step0_<prefix>`, `step1_int8_<prefix>`, `step3_int8_p0p5_back_<prefix>`.

    What follows the source's milestones has the arm's own name: `step5_<arm>_<prefix>`.
    """
    channel: Any = cell.settings["channel"]
    share = f"{channel['proportion']:g}".replace(".", "p")
    step: dict[int, str] = {
        0: "step0",
        2: f"step1_{channel['codec']}",
        3: f"step3_{channel['codec']}_p{share}_{channel['order']}",
    }
    return f"{step.get(cell.settings['milestone'], f'step5_{cell.arm}')}_{cell.settings['run_tag_prefix']}"


def run_directory(cell: Cell) -> str:
    """Below the output directory: `step_0_baselines/<run_tag>`, or `step_1_kv_ptq/<run_tag>` for all that quantises."""
    return f"{STEPS[cell.settings['milestone'] > 0]}/{run_tag(cell)}"
