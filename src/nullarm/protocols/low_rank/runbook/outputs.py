"""What a run ends with: files under the names of the source's runbook, and the closing block.

Under `output/`:

| file | holds |
|---|---|
| `summary.json`, `summary.txt` | arms, speculation, sessions, verdicts, tolerances, failures: as data, and for people |
| `arms/ARM/log.txt`, `arms/ARM/metrics.json` | what the cells of an arm printed and measured |
| `meta.json` | study, settings, hashes of plan and analysis, content ids |
| `env.txt` | code, packages and machines of the finished cells |
| `gpu_query.csv` | what was seen of the GPU in each timed run |
| `mcr_ablation*` | the null re-run, see `null_rerun` |

The source's tree (`benchmarks/paperB_ablation_…/`) has a name with the instance and the date in it; here that is the
study's directory. All is written anew each time from the store, and is the same while the store is.
"""

from __future__ import annotations

from nullarm.analysis import Analysis
from nullarm.protocols.low_rank.runbook.arm_files import ARMS, write_arm
from nullarm.protocols.low_rank.runbook.closing import closing_block
from nullarm.protocols.low_rank.runbook.contents import Contents
from nullarm.protocols.low_rank.runbook.environment import write_environment
from nullarm.protocols.low_rank.runbook.files import without_credentials, write_data, write_text
from nullarm.protocols.low_rank.runbook.null_rerun import null_rerun, write_null_rerun
from nullarm.protocols.low_rank.runbook.progress import arm_of
from nullarm.protocols.low_rank.runbook.summary import summary
from nullarm.protocols.low_rank.sessions import timing_sessions
from nullarm.protocols.low_rank.tables import MEASURE
from nullarm.store.study_store import StudyStore
from nullarm.study.plan import Cell


def write_cell(store: StudyStore, cell: Cell) -> None:
    """What a cell that has just ended fills: the files of its arm, and those of the null re-run if that was timed.

    Raises:
        IntegrityError: An artefact is not what its hash says.
        StorageError: The disk is full, read-only or gone.
    """
    if arm := arm_of(cell):
        write_arm(store, arm)
    if cell.stage == MEASURE and cell.slice == store.lock.study.parameters.get("rerun"):
        write_null_rerun(store, null_rerun(store, timing_sessions(store)))


def write_outputs(store: StudyStore, analysis: Analysis) -> str:
    """All files, and the closing block.

    Raises:
        IntegrityError: An artefact is not what its hash says.
        StorageError: The disk is full, read-only or gone.
    """
    contents, output = Contents(store, analysis), store.paths.output
    lines = closing_block(contents)
    for arm in contents.study.arms:
        write_arm(store, arm)
    files = [
        write_data(output / "summary.json", summary(contents)),
        write_text(output / "summary.txt", "\n".join(lines) + "\n"),
        *write_environment(store, analysis, [*contents.sessions.values()]),
        *write_null_rerun(store, contents.rerun),
    ]
    told = [
        *lines,
        "",
        *(f"wrote {path}" for path in files),
        f"logs of {len(contents.study.arms)} arms: {output / ARMS}",
    ]
    return without_credentials("\n".join(told))
