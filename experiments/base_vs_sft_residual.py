"""base_vs_sft_residual: where in depth and position does fine-tuning change the residual stream?

Instance  development: any machine, the built-in pair; production: one GPU, see `nullarm plan configs/prod_config.yaml`
Cost      development: nothing; production: cents a pair of 7B models, downloads aside
Run       DEV_MODE=True python experiments/base_vs_sft_residual.py; without DEV_MODE in production; or cell by cell
Pair      RESIDUAL_BASE_MODEL and RESIDUAL_SFT_MODEL name another one, RESIDUAL_PROMPT_FILE other prompts
"""

# %% Setup: what is compared stands in configs/, what is found goes to runs/.
import os
from pathlib import Path

import plotly.graph_objects as go

from nullarm.cli.execute import use_device
from nullarm.conduct import conclude, default_directory, lay_down, prepare, run
from nullarm.engines.inline import InlineEngine
from nullarm.errors import CellsFailed
from nullarm.protocols.residual.export.grids import build_residual_grid
from nullarm.protocols.residual.export.sources import records_from
from nullarm.sites.gpu_monitor import GpuMonitor
from nullarm.store.study_store import StudyStore

DEV_MODE = os.environ.get("DEV_MODE", "").strip().lower() in ("1", "true", "yes", "on")
os.environ["DEV_MODE"] = str(DEV_MODE)  # for what reads it below, where it is set here by hand
ROOT = next((place for place in (Path.cwd(), *Path.cwd().parents) if (place / "configs").is_dir()), Path.cwd())
if DEV_MODE:  # a pair that needs no download and no GPU
    os.environ.setdefault("RESIDUAL_BASE_MODEL", "builtin:world")
    os.environ.setdefault("RESIDUAL_SFT_MODEL", "builtin:world-chat")
    os.environ.setdefault("RESIDUAL_DEVICE", "cpu")
# The configurations follow Yes and No, which are no tokens of the built-in pair.
overrides = ("parameters.tracked.strings=[Ġthe, Ġof]",) if DEV_MODE else ()
config = ROOT / "configs" / ("dev_config.yaml" if DEV_MODE else "prod_config.yaml")
monitor = GpuMonitor(price_per_hour=0.0 if DEV_MODE else 2.0)

# %% Plan: the configuration as a study, with the control that shows what the instrument makes up.
prepared = prepare(str(config), overrides=overrides)
print(prepared.study.question)
for key, reason in prepared.not_carried.items():
    print(f"not carried: {key}: {reason}")
for note in prepared.design.notes:
    print(note)

# %% Capture: every cell is kept as it ends; interrupted, start again and it goes on.
use_device(os.environ.get("RESIDUAL_DEVICE"))
store: StudyStore = lay_down(prepared, ROOT / default_directory(prepared.study))
result = run(store, InlineEngine(), lambda state: print(f"{state.done}/{state.total} cells · {monitor}", flush=True))
if result.failed:
    raise CellsFailed(f"{len(result.failed)} cell(s) failed: {'; '.join(result.failed.values())}",
                      next_command=f"nullarm logs {store.paths.root}")  # fmt: skip

# %% Verdicts, report, and the lines that say where the JSON is.
conclusion = conclude(store)
print(conclusion.closing)
print(f"report: {conclusion.report}")

# %% A look at one grid: layers down, positions across.
grid = build_residual_grid(records_from(store.paths.root), "kl_div")[0]
figure = go.Figure(go.Heatmap(z=grid.values, x=[f"{i} {t}" for i, t in enumerate(grid.tokens)], y=grid.layers))
figure.update_layout(title=f"KL(fine-tuned ‖ base), nats: {grid.label}", xaxis_title="position", yaxis_title="layer")
figure.write_html(store.paths.root / "grid.html")
print(f"{store.paths.root / 'grid.html'} · {monitor}")
