"""LoRA training steps: `nullarm.training.fit` against a bare loop and against the Hugging Face Trainer, in one run.

    python benchmarks/train_lora.py                                  # the built-in tiny model, CPU
    python benchmarks/gpu/train_lora.py                              # Mistral-7B's shape, bf16, one GPU

Every way trains the same adapter on the same batches; rounds alternate, and the table gives the median of each way as a
ratio to the bare loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nullarm.models.load import load_causal_lm
from nullarm.protocols.rank_mechanism.lora import build_lora, target_modules
from nullarm.protocols.rank_mechanism.parameters import PROJECTIONS
from nullarm.training.batches import Batches
from nullarm.training.loop import fit
from nullarm.training.settings import TrainSettings


class _Item:
    """A random sequence; the second half is the response."""

    def __init__(self, generator: torch.Generator, length: int, vocabulary: int) -> None:
        self.ids = torch.randint(1, vocabulary, (length,), generator=generator).tolist()
        self.labels = [-100] * (length // 2) + self.ids[length // 2 :]


class Bench:
    """One model, adapter and set of batches, trained in several ways."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model, tokenizer = load_causal_lm(options.model, dtype=options.dtype, device=self.device)
        ranks = {module.name: options.rank for module in target_modules(model, PROJECTIONS)}
        self.model = build_lora(
            model, ranks=ranks, alpha_rule="alpha=r", alpha=options.rank, dropout=0.0, seed=0,
            init_seed_rank=options.rank, task_type="CAUSAL_LM",
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        vocabulary = int(self.model.config.vocab_size)
        items = [_Item(generator, options.length, vocabulary) for _ in range(options.batch_size * options.steps)]
        self.items = items
        pad = tokenizer.pad_token_id
        self.batches = Batches(items, batch_size=options.batch_size, seed=0, pad_id=0 if pad is None else pad)
        self.start = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}

    def reset(self) -> None:
        """The adapter as it was at first."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(self.start[name])

    def bare(self) -> None:
        """The shortest loop that trains: no clipping, no checkpoints, no counting."""
        self.model.train()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
        for step in range(self.options.steps):
            batch = {k: v.to(self.device) for k, v in self.batches.batch(step).items()}
            with torch.autocast(self.device, torch.bfloat16, enabled=self.options.dtype == "bfloat16"):
                loss = self.model(**batch).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def nullarm(self) -> None:
        """`fit`, with clipping, loss history and a checkpoint at the end."""
        settings = TrainSettings(
            steps=self.options.steps, batch_size=self.options.batch_size, learning_rate=1e-4,
            precision="bf16" if self.options.dtype == "bfloat16" else "fp32", checkpoint_every=self.options.steps,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as scratch:
            fit(
                self.model, self.batches, settings, directory=Path(scratch), fingerprint="bench", seed=0,
                should_stop=lambda: False,
            )  # fmt: skip

    def trainer(self) -> None:
        """Hugging Face Trainer, with a checkpoint at the end."""
        from transformers import Trainer, TrainingArguments

        with tempfile.TemporaryDirectory() as scratch:
            arguments = TrainingArguments(
                output_dir=scratch, max_steps=self.options.steps, learning_rate=1e-4, report_to=[], logging_steps=10,
                per_device_train_batch_size=self.options.batch_size, bf16=self.options.dtype == "bfloat16",
                save_steps=self.options.steps, disable_tqdm=True, use_cpu=self.device == "cpu",
            )  # fmt: skip
            data = [{"input_ids": i.ids, "labels": i.labels, "attention_mask": [1] * len(i.ids)} for i in self.items]
            Trainer(self.model, arguments, train_dataset=data, data_collator=_collate).train()

    def seconds(self, way: Callable[[], None]) -> float:
        """Wall seconds of one round."""
        self.reset()
        self._wait()
        started = time.perf_counter()
        way()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def _collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:world")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    bench = Bench(options)
    ways = {"bare loop": bench.bare, "nullarm": bench.nullarm, "HF Trainer": bench.trainer}
    for way in ways.values():
        bench.seconds(way)
    times = {name: [bench.seconds(way) for _ in range(options.rounds)] for name, way in ways.items()}
    floor = statistics.median(times["bare loop"])
    tokens = options.steps * options.batch_size * options.length
    print(f"{options.model}, {options.steps} steps of {options.batch_size} × {options.length} tokens, {bench.device}")
    print(f"{'way':<12} {'ms/step':>9} {'tokens/s':>10} {'× bare loop':>12}")
    rows = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in rows.items():
        print(f"{name:<12} {1e3 * seconds / options.steps:>9.2f} {tokens / seconds:>10.0f} {seconds / floor:>12.3f}")
    print(json.dumps({"seconds": rows, "device": bench.device, **vars(options)}))


if __name__ == "__main__":
    main()
