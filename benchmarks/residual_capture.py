"""Capture of a pair of models: against the plain loop, TransformerLens, nnsight, and the least that has to be done.

    python benchmarks/residual_capture.py                            # Qwen2.5-0.5B's shape, 4 blocks, CPU
    python benchmarks/residual_capture.py --shape tiny-qwen2 --layers 2 --prompts 8
    python benchmarks/gpu/residual_capture.py                        # Qwen2.5-7B's shape, bf16, one GPU

Options: --shape --layers --prompts --tokens --dtype --device --rounds --json FILE. Weights are random, which costs what
real ones cost; the second model's are nine tenths the first's. Every way reads the same prompts and gives the same
metrics, block by block and position by position, through the model's own final norm:

- of each model: norm, its change from the block before, cosine with the block before, entropy;
- of both: cosine, distance, relative distance, KL both ways, Jensen-Shannon, the 25 largest shifts of logits each way.

`nullarm` measures more, which the others are spared: loss and rank of the next token, largest logits, their overlap.
`loop` goes by prompt, block and position, one vocabulary projection of each model at a time. `TransformerLens`
(`run_with_cache`) and `nnsight` (a trace of all blocks) collect residuals of all prompts at once; then both take the
metrics block by block from whole logits. `floor` is two forwards without heads and the bare vocabulary projections.

Before any timing all ways must agree on the first prompt. Rounds alternate between the ways; a figure is the median
over rounds of process CPU seconds with one thread, or on a GPU of wall seconds until it is idle. Peak memory is what
`nullarm` adds in a process of its own, tables included, with the prompts once and eight times over, in batches of half
the prompts.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoConfig, AutoModelForCausalLM

from nullarm.models.anatomy import Anatomy, anatomy
from nullarm.models.instantiate import tokenizer_for
from nullarm.models.shapes import SHAPES
from nullarm.protocols.residual.capture.batch import Capture
from nullarm.protocols.residual.capture.numbers import measure as numbers_on_host
from nullarm.protocols.residual.capture.pair_lens import lens_of
from nullarm.protocols.residual.capture.pair_models import Loaded, PairModels
from nullarm.protocols.residual.capture.rows import BatchNumbers, scalars_table, topk_table
from nullarm.protocols.residual.reading.alignment import SharedVocabulary
from nullarm.protocols.residual.reading.rows import Row
from nullarm.protocols.residual.reading.tokens import Encoded
from nullarm.protocols.residual.runs import SIDES, single_pass

Numbers = dict[str, Tensor]
"""Metric to its values [layers, N], or [layers, N, TOP_K], of N positions, one prompt after the other."""
Way = Callable[[Tensor], Any]
"""Measures the prompts with token ids [prompt, position]."""

TOP_K = 25
RUN_METRICS = ("norm", "norm_delta", "cosine_prev", "entropy")
PAIR_METRICS = ("cosine", "norm_diff", "relative_diff", "kl_div", "kl_reverse", "js")
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest difference between two ways, relative to the metric's largest value, or to 1 where that is smaller."""
GOALS = {"loop": 100.0, "TransformerLens": 1.0, "nnsight": 1.0, "floor": 1 / 1.5}
"""Seconds of each way over those of `nullarm`, at least."""
MISSING = "not installed: pip install -e '.[peers]'"


class Ways:
    """One pair of models, measured in several ways.

    Args:
        options: `shape`, `layers`, `dtype`, `device`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        base, sft = (random_model(options, seed) for seed in (0, 1))
        with torch.no_grad():
            for theirs, ours in zip(base.parameters(), sft.parameters(), strict=True):
                ours.lerp_(theirs, 0.9)
        self.pair = anatomy(base), anatomy(sft)
        self.shape, self.device = options.shape, torch.device(options.device)
        self.capture = self._capture()

    def _capture(self) -> Capture:
        base, sft = (Loaded(part, tokenizer=None) for part in self.pair)
        models = PairModels(base, sft, self.device)
        ids = np.arange(SHAPES[self.shape].config["vocab_size"])
        lens = lens_of(models, SharedVocabulary(ids, ids, 0, 0, ()), "norm", None, top_k=TOP_K, tracked=[])
        return Capture(models, single_pass(), lens, range(base.layers), same_tokens=True, direct_change=False)

    def nullarm(self, ids: Tensor) -> BatchNumbers:
        """Ours."""
        rows = [_row(prompt, tuple(row)) for prompt, row in enumerate(ids.tolist())]
        [streams] = self.capture.streams([rows])
        return numbers_on_host(self.capture, rows, streams)

    def loop(self, ids: Tensor) -> Numbers:
        """By prompt, block and position, every number fetched as it is made."""
        found: dict[str, list[Any]] = defaultdict(list)
        for row in ids.to(self.device):
            streams = [_hidden_states(part, row[None]) for part in self.pair]
            for layer in range(1, len(streams[0])):
                for position in range(len(row)):
                    here = [stream[layer][0, position] for stream in streams]
                    before = [stream[layer - 1][0, position] for stream in streams]
                    for name, value in self._metrics(here, before).items():
                        found[name].append(value.tolist())
        cut = (len(ids), len(self.pair[0].blocks), ids.shape[1])
        whole = {name: torch.tensor(values) for name, values in found.items()}
        return {name: v.reshape(*cut, *v.shape[1:]).transpose(0, 1).flatten(1, 2) for name, v in whole.items()}

    def transformer_lens(self) -> Way:
        """`run_with_cache` of block outputs.

        Raises:
            ImportError: It is not installed.
        """
        bridge = importlib.import_module("transformer_lens.model_bridge").TransformerBridge
        peers = [
            bridge.boot_transformers(
                "random",
                hf_model=_twin(part.model),
                tokenizer=tokenizer_for(SHAPES[self.shape]),
                device=str(self.device),
            )
            for part in self.pair
        ]
        names = [f"blocks.{k}.hook_resid_post" for k in range(len(self.pair[0].blocks))]
        names = ["blocks.0.hook_resid_pre", *names]

        def run(ids: Tensor) -> Numbers:
            ids = ids.to(self.device)
            caches = [peer.run_with_cache(ids, names_filter=names, return_type=None)[1] for peer in peers]
            return self._by_block([[cache[name] for name in names] for cache in caches])

        return run

    def nnsight(self) -> Way:
        """A trace of block outputs.

        Raises:
            ImportError: It is not installed.
        """
        library = importlib.import_module("nnsight")
        peers = [library.NNsight(anatomy(_twin(part.model)).trunk) for part in self.pair]

        def run(ids: Tensor) -> Numbers:
            ids, streams = ids.to(self.device), []
            for peer in peers:
                with peer.trace(input_ids=ids, use_cache=False):
                    stream = library.save([peer.layers[0].input] + [block.output for block in peer.layers])
                streams.append(stream)
            return self._by_block(streams)

        return run

    def _by_block(self, streams: list[list[Tensor]]) -> Numbers:
        """All metrics, a block at a time, from residuals [layers + 1] of [prompt, position, d_model]."""
        found: dict[str, list[Tensor]] = defaultdict(list)
        for layer in range(1, len(streams[0])):
            here, before = ([stream[at].flatten(0, 1) for stream in streams] for at in (layer, layer - 1))
            for name, values in self._metrics(here, before).items():
                found[name].append(values)
        return {name: torch.stack(values).cpu() for name, values in found.items()}

    def _metrics(self, here: list[Tensor], before: list[Tensor]) -> Numbers:
        """All metrics of one block, from both models' residuals […, d_model] behind it and before it."""
        logits = [part.head(part.final_norm(h)).float() for part, h in zip(self.pair, here, strict=True)]
        logp, logq = (z.log_softmax(-1) for z in logits)
        p, q = logp.exp(), logq.exp()
        middle = torch.logaddexp(logp, logq) - math.log(2)
        change = logits[1] - logits[0]
        base, sft = (h.float() for h in here)
        numbers = {
            "cosine": cosine_similarity(base, sft, dim=-1),
            "norm_diff": (sft - base).norm(dim=-1),
            "relative_diff": (sft - base).norm(dim=-1) / base.norm(dim=-1),
            "kl_div": (q * (logq - logp)).sum(-1),
            "kl_reverse": (p * (logp - logq)).sum(-1),
            "js": ((p * (logp - middle)).sum(-1) + (q * (logq - middle)).sum(-1)) / 2,
            "increased": change.topk(TOP_K).values,
            "decreased": change.topk(TOP_K, largest=False).values,
        }
        for side, h, below, x, log_x in zip(SIDES, (base, sft), before, (p, q), (logp, logq), strict=True):
            numbers[f"norm {side}"] = h.norm(dim=-1)
            numbers[f"norm_delta {side}"] = h.norm(dim=-1) - below.float().norm(dim=-1)
            numbers[f"cosine_prev {side}"] = cosine_similarity(h, below.float(), dim=-1)
            numbers[f"entropy {side}"] = -(x * log_x).sum(-1)
        return numbers

    def floor(self, ids: Tensor) -> None:
        """Two forwards without heads, and one vocabulary projection per block and position, nothing kept."""
        for part in self.pair:
            states = part.trunk(input_ids=ids.to(self.device), use_cache=False).last_hidden_state.flatten(0, 1)
            states = states.repeat(len(part.blocks), 1)
            for weight in torch.split(part.head.weight, 2048):
                torch.mm(states, weight.T)

    def all(self) -> Iterator[tuple[str, Way | None]]:
        """Every way by its name; None for a library that is not installed."""
        yield "nullarm", self.nullarm
        yield "loop", self.loop
        for name, make in (("TransformerLens", self.transformer_lens), ("nnsight", self.nnsight)):
            try:
                yield name, make()
            except ImportError:
                yield name, None
        yield "floor", self.floor


def random_model(options: argparse.Namespace, seed: int) -> Any:
    """A model of the shape cut to some blocks, logits spread about as widely as a trained model's."""
    settings = {**SHAPES[options.shape].config, "num_hidden_layers": options.layers, "initializer_range": 0.06}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(seed)
    with torch.device(options.device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype)).eval()


def random_prompts(options: argparse.Namespace, count: int) -> Tensor:
    """Token ids [prompt, position]."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(3, SHAPES[options.shape].config["vocab_size"], (count, options.tokens), generator=rng)


def numbers_of(measured: BatchNumbers) -> Numbers:
    """What `nullarm` measured, in the form of the other ways."""
    pair, of_pair = measured.scalars["pair", "base-sft"], measured.ranked["pair", "base-sft"]
    numbers = {name: pair[name].values[1:] for name in PAIR_METRICS}
    for side in SIDES:
        of_run = measured.scalars["run", side]
        numbers |= {f"{name} {side}": of_run[name].values[1:] for name in RUN_METRICS}
    numbers |= {direction: of_pair[direction].values for direction in ("increased", "decreased")}
    return {name: torch.from_numpy(values) for name, values in numbers.items()}


def require_agreement(ours: Numbers, theirs: Numbers, way: str, tolerance: float) -> None:
    """Refuse to time ways that measure different things.

    Raises:
        SystemExit: They do not agree within the tolerance.
    """
    for name, values in theirs.items():
        error = float((ours[name] - values).abs().max() / values.abs().max().clamp(min=1))
        if not error <= tolerance:
            raise SystemExit(f"nullarm and {way} do not agree in {name!r}: {error:.1e} off, {tolerance:g} allowed")
    if missing := ours.keys() - theirs.keys():
        raise SystemExit(f"{way} does not measure {sorted(missing)}")


def seconds(way: Way, ids: Tensor, device: str) -> float:
    """Seconds of one round: wall on a GPU, until it is idle; else CPU seconds of this process."""
    if device == "cpu":
        started = time.process_time()
        way(ids)
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    way(ids)
    torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(options: argparse.Namespace) -> dict[str, float | None]:
    """Median seconds of every way that is installed."""
    ways, ids = Ways(options), random_prompts(options, options.prompts)
    found = dict(ways.all())
    ours = numbers_of(ways.nullarm(ids[:1]))
    for name, way in found.items():
        if way is not None and name not in ("nullarm", "floor"):
            require_agreement(ours, way(ids[:1]), name, TOLERANCE[options.dtype])
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for name, way in found.items():
            if way is not None:
                times[name].append(seconds(way, ids, options.device))
    return {name: statistics.median(times[name]) if name in times else None for name in found}


def peak_bytes(options: argparse.Namespace) -> int:
    """Most that `nullarm` adds to memory, prompts in batches of `options.batch`, tables made and dropped."""
    ways, ids = Ways(options), random_prompts(options, options.prompts)
    batches = torch.split(ids, options.batch)
    ways.nullarm(batches[0][:1, :2])  # load libraries
    on_gpu = options.device != "cpu"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = torch.cuda.memory_allocated() if on_gpu else _resident("VmRSS")
    for batch in batches:
        measured = ways.nullarm(batch)
        scalars_table(measured), topk_table(measured)
    return (torch.cuda.max_memory_allocated() if on_gpu else _resident("VmHWM")) - before


def peak_in_fresh_process(options: argparse.Namespace, times: int) -> int:
    """`peak_bytes` with so many times the prompts, in batches as large as ever."""
    keys = ("shape", "layers", "tokens", "dtype", "device")
    settings = [f"--{key}={getattr(options, key)}" for key in keys]
    # Two batches at the least: from the second on, memory holds what the allocator keeps from the one before.
    count = [f"--prompts={times * options.prompts}", f"--batch={max(1, options.prompts // 2)}"]
    done = subprocess.run([sys.executable, __file__, *settings, *count], check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout)


def print_table(options: argparse.Namespace, times: Mapping[str, float | None], peaks: Sequence[int]) -> None:
    positions = options.layers * options.prompts * options.tokens
    kind = "CPU s" if options.device == "cpu" else "wall s"
    print(
        f"random:{options.shape}, {options.layers} blocks, {options.dtype}, {options.device}, torch {torch.__version__}"
    )
    print(f"{options.prompts} prompts × {options.tokens} tokens, medians of {options.rounds} rounds")
    print(f"{'way':<16}{kind:>9}{'ms/position':>13}{'× nullarm':>11}  goal")
    for name, value in times.items():
        if value is None:
            print(f"{name:<16}{'—':>9}{'—':>13}{'—':>11}  {MISSING}")
            continue
        ratio = value / (times["nullarm"] or math.nan)
        print(f"{name:<16}{value:>9.3f}{1e3 * value / positions:>13.3f}{ratio:>11.2f}  {_goal(name, ratio)}")
    if times["loop"] and times["floor"]:
        print(f"no way can be more than {times['loop'] / times['floor']:.1f} × as fast as the loop: that is the floor")
    once, eightfold = (peak / 2**20 for peak in peaks)
    flat = "flat" if eightfold <= 1.1 * once else "not flat"
    print(f"peak memory: {once:.0f} MiB, with 8 × the prompts {eightfold:.0f} MiB: {flat}")


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark and print a table."""
    options = arguments(given)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if options.batch:
        print(peak_bytes(options))
        return
    peaks = [peak_in_fresh_process(options, times) for times in (1, 8)]
    times = measure(options)
    print_table(options, times, peaks)
    if options.json:
        figures = {"seconds": times, "peak_bytes": peaks, "torch": torch.__version__}
        settings = {key: value for key, value in vars(options).items() if key not in ("json", "batch")}
        options.json.write_text(json.dumps({**settings, **figures}, indent=1) + "\n")


def _hidden_states(part: Anatomy, ids: Tensor) -> list[Tensor]:
    """Residuals [layers + 1] of [1, position, d_model]; the library norms its last one, so a hook takes that."""
    last: list[Tensor] = []
    hook = part.blocks[-1].register_forward_hook(lambda block, args, output: last.append(output))
    try:
        found = part.model(ids, output_hidden_states=True, use_cache=False).hidden_states
    finally:
        hook.remove()
    return [*found[:-1], *last]


def _twin(model: Any) -> Any:
    """The same weights in modules of its own, as the libraries change modules."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def _row(prompt: int, ids: tuple[int, ...]) -> Row:
    encoded = Encoded(prompt, "identity", "", ids, None, tuple(map(str, ids)))
    positions = tuple(range(len(ids)))
    return Row(encoded, encoded, positions, positions)


def _goal(name: str, ratio: float) -> str:
    if name not in GOALS:
        return ""
    return f"≥ {GOALS[name]:.3g}: {'holds' if ratio >= GOALS[name] else 'does not hold'}"


def _resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen2.5-0.5b", choices=[n for n, s in SHAPES.items() if "qwen" in n])
    parser.add_argument("--layers", type=int, default=4, help="blocks of each model")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32, help="of each prompt")
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--batch", type=int, default=0, help=argparse.SUPPRESS)  # measure memory only, in this process
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
