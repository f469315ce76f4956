"""template_experiment: how much of a small world a decoder learns from its documents.

Instance  development: any machine, tiny on a CPU; production: one GPU of 80 GB
Cost      development: less than $0.10; production: about $13, 6.5 h at $2.00 (an estimate, see the cell "model")
Run       DEV_MODE=True python experiments/template_experiment.py; without DEV_MODE in production; or cell by cell
"""

# %% Setup: what is chosen stands in configs/, what is found goes to runs/ and checkpoints/.
import json
import os
import random
from pathlib import Path

import plotly.graph_objects as go
import torch
import yaml
from plotly.subplots import make_subplots
from transformers import LlamaConfig, LlamaForCausalLM

from nullarm.errors import Preempted
from nullarm.models.hashing import settings_hash
from nullarm.models.tasks.base import Encoded
from nullarm.models.tiny.examine import examine
from nullarm.models.tiny.pretrain import pack, world_tokenizer
from nullarm.models.tiny.recipe import WORLD
from nullarm.models.tiny.world import World
from nullarm.sites.devices import find_device
from nullarm.sites.gpu_monitor import GpuMonitor
from nullarm.training.batches import Batches
from nullarm.training.loop import fit
from nullarm.training.settings import TrainSettings
from nullarm.training.signals import stop_on_signals

NAME = "template_experiment"
SEED = 0
PASSES = 4  # forward passes per step in production: a batch of 64 rows in pieces that fit the GPU
DEV_MODE = os.environ.get("DEV_MODE", "").strip().lower() in ("1", "true", "yes", "on")
os.environ["DEV_MODE"] = str(DEV_MODE)  # for what reads it below, where it is set here by hand

ROOT = next((place for place in (Path.cwd(), *Path.cwd().parents) if (place / "configs").is_dir()), Path.cwd())
config = yaml.safe_load((ROOT / "configs" / ("dev_config.yaml" if DEV_MODE else "prod_config.yaml")).read_text())
shape, training, checkpoint = config["model"], config["training"], config["checkpoint"]
if not torch.cuda.is_available():
    if not DEV_MODE:
        raise SystemExit("production needs a GPU and there is none; next: set DEV_MODE=True")
    shape |= {"d_model": 64, "layers": 2, "heads": 4}
    training |= {"batch_size": 8, "sequence_length": 64, "max_samples": 256, "epochs": 2, "learning_rate": 0.003}
    checkpoint |= {"checkpoint_every": 10}

run = f"{NAME}-dev" if DEV_MODE else NAME
passes = 1 if DEV_MODE else PASSES
results = ROOT / "runs" / run
results.mkdir(parents=True, exist_ok=True)

# %% GPU monitor: `print(monitor)` anywhere shows utilisation, memory, temperature, time and cost so far.
monitor = GpuMonitor(config["cost"]["price_per_hour"])
print(monitor)

# %% Data: documents of a built-in world, packed into rows. Put yours here; `Batches` takes ids and labels.
length, samples = training["sequence_length"], training["max_samples"] or 10_000
world, tokenizer = World(WORLD.world), world_tokenizer(WORLD)
rows = pack(world.document, tokenizer, samples * length, length, random.Random(SEED))[:samples]
items = [Encoded(ids, ids) for ids in rows.tolist()]
batches = Batches(items, batch_size=training["batch_size"] // passes, seed=SEED, pad_id=tokenizer.pad_token_id)
steps = training["epochs"] * batches.per_epoch // passes
print(f"{len(rows)} rows of {length} tokens, {steps} steps")

# %% Model: a decoder with random weights. 6 operations per parameter and token say what training it will take.
torch.manual_seed(SEED)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=length,
        hidden_size=shape["d_model"],
        intermediate_size=4 * shape["d_model"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        attention_dropout=shape["dropout"],
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
)
operations = 6 * model.num_parameters() * rows.numel() * training["epochs"]
expected_h = operations / find_device(None).flops_per_s / 3600
price = expected_h * config["cost"]["price_per_hour"]
print(f"{model.num_parameters() / 1e6:.1f}M parameters; expected: {expected_h:.2g} h, ${price:.2f}")

# %% Training: goes on from the newest checkpoint, from NULLARM_MIRROR=s3://BUCKET/PREFIX on a new machine.
settings = TrainSettings(
    steps=steps,
    batch_size=training["batch_size"] // passes,
    gradient_accumulation=passes,
    learning_rate=training["learning_rate"],
    weight_decay=training["weight_decay"],
    warmup_ratio=min(0.1, training["warmup_steps"] / steps),
    clip_norm=training["clip_norm"],
    precision="bf16" if torch.cuda.is_available() else "fp32",
    checkpoint_every=checkpoint["checkpoint_every"],
    keep_checkpoints=checkpoint["keep_checkpoints"],
)
tracker = None
if config["tracking"]["wandb"]:  # pip install 'nullarm[track]', then `wandb login`
    import wandb

    tracker = wandb.init(project="nullarm", name=run, id=run, resume="allow", config=config)


def show(step: int, loss: float) -> None:
    """What is said while the model trains."""
    if step % 10 == 0:
        print(f"step {step} of {steps} · loss {loss:.3f} · {monitor}", flush=True)
    if tracker:
        tracker.log({"loss": loss}, step=step)


with stop_on_signals() as stop:
    try:
        fitted = fit(
            model,
            batches,
            settings,
            directory=ROOT / "checkpoints" / run,
            fingerprint=settings_hash([NAME, SEED, shape, training]),  # other settings refuse these checkpoints
            seed=SEED,
            should_stop=stop,
            on_progress=show,
        )
    except Preempted as stopped:
        print(f"{stopped.problem}; start again, here or elsewhere, to go on")
        raise SystemExit(stopped.exit_code) from None

# %% Evaluation: questions about what no question was trained on, one right choice of four.
accuracy = examine(model, tokenizer, world, questions=20 if DEV_MODE else 200)
print(", ".join(f"{skill} {share:.2f}" for skill, share in accuracy.items()))

# %% Plot
figure = make_subplots(1, 2, subplot_titles=["Loss per token", "Accuracy (chance 0.25)"])
figure.add_scatter(y=fitted.losses, x=list(range(1, steps + 1)), name="loss", row=1, col=1)
figure.add_bar(x=list(accuracy), y=list(accuracy.values()), name="accuracy", row=1, col=2)
figure.add_shape(go.layout.Shape(type="line", x0=-0.5, x1=4.5, y0=0.25, y1=0.25), row=1, col=2)
figure.update_layout(title=run, showlegend=False)
figure.write_html(results / "figure.html")

# %% Summary
summary = {
    "experiment": run,
    "model": shape,
    "training": training,
    "steps": fitted.steps,
    "resumed_from": fitted.resumed_from,
    "loss": fitted.losses[-1],
    "accuracy": accuracy,
    "training_s": fitted.seconds,
    "cost_of_this_run": monitor.cost,
}
(results / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
print(f"loss {summary['loss']:.3f} · {monitor} · {results}")
