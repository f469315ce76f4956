"""Compression of a layer against plain `torch.linalg.svd`, and tokens through factored layers against dense ones.

    python benchmarks/low_rank.py                                    # Qwen2.5-0.5B's shape, CPU, one thread
    python benchmarks/low_rank.py --shape llama-3.1-8b --slots down --dtype bfloat16 --layers 0
    python benchmarks/gpu/low_rank.py                                # Qwen2.5-7B's shape, bf16, one GPU

Options: --shape --slots --tokens --layers --dtype --device --rounds --json FILE; `--layers 0` leaves the tokens out.
Weights and inputs are random, which costs what real ones cost.

Every matrix shape of a layer is compressed once, at break-even (the largest rank that takes no more numbers), by every
way in a process of its own: `svd` and `svd_llm` of nullarm, in float64 through the Gram matrix of the smaller side, and
the peer, `torch.linalg.svd` of the same matrix in fp32, which reads no inputs. `svd` and the peer have to agree in the
error they leave. `layer` adds up all matrices of one. Seconds are process CPU seconds with one thread, or on a GPU wall
seconds until it is idle; `peer ÷ it` leaves calibration out. Peak memory is `ru_maxrss` of the whole process, imports
included, or what the GPU allocated; the goal is 1.5 GB for `svd_llm`, calibration included.

A token is one position through all blocks of a model cut to `--layers`, batch 1, no cache and no head: `dense`, factors
of each matrix (`svd`) at break-even and at half of that rank, and bases that q, k and v, and gate and up, share (`grc`)
at theirs. Rounds alternate between the ways; a figure is the median.

On 21 November 2026, two cores of an AMD EPYC, torch 2.13.0, one thread, other work on the machine; no GPU was at hand:

- `down` of Llama-3.1-8B (the second command), rank 3185: `svd_llm` 9.4 s for 4096 tokens, 21.1 s and 9.2 s, 1344 MB;
  `svd` 32.5 s and 9.4 s, 1031 MB; the peer 102.3 s, 1347 MB without calibration.
- A layer of Qwen2.5-0.5B (the first): `svd` 2.0 s, `svd_llm` 3.0 s and 3.7 s for calibration, at most 839 MB, the peer
  2.8 s. A token through 4 blocks: dense 18.3 ms, `svd` 19.4 ms, `grc` 19.4 ms, `svd` at half 12.6 ms. At break-even
  there is nothing to win: as many bytes, in twice as many products.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nullarm.models.shapes import SHAPES
from nullarm.protocols.low_rank.calibration.statistics import InputStatistics, InputSums
from nullarm.protocols.low_rank.factored.factors import Compressed, Factors
from nullarm.protocols.low_rank.factored.install import install
from nullarm.protocols.low_rank.methods.decompose import decompose
from nullarm.protocols.low_rank.methods.reconstruction import weight_error
from nullarm.protocols.low_rank.methods.settings import Svd, SvdLlm
from nullarm.protocols.low_rank.slots import SLOTS, Group, groups

PEER = "torch.linalg.svd"
WAYS = ("svd", "svd_llm", PEER)
PHASES = ("calibrate", "decompose", "truncate")
GOAL_BYTES = 1.5e9
"""Most that `svd_llm` may take."""
TOLERANCE = 1e-3
"""Largest difference between the errors that `svd` and the peer leave, relative."""
PART = 512
"""Tokens that come at once."""

Figures = dict[str, float]
"""Seconds of each phase, `peak_bytes`, and the relative `error` of the weights."""


class Clock:
    """Adds up seconds by phase."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = device, dict.fromkeys(PHASES, 0.0)

    def time(self, phase: str, work: Callable[[], Any]) -> Any:
        """What the work gives; its seconds are counted."""
        started = now(self.device)
        done = work()
        self.seconds[phase] += now(self.device) - started
        return done


def compress(way: str, group: Group, options: argparse.Namespace) -> Figures:
    """One way with one matrix, in this process."""
    torch.manual_seed(0)
    clock, rank, dtype = Clock(options.device), group.break_even, getattr(torch, options.dtype)
    layer = nn.Linear(group.in_features, group.out_features[0], bias=False, device=options.device, dtype=dtype)
    basis, factor = (_by_peer if way == PEER else _by_nullarm)(way, layer, rank, clock, options)
    peak = peak_bytes(options.device)
    error = weight_error([layer.weight], basis, [factor])
    return {**clock.seconds, "peak_bytes": peak, "error": error}


def _by_nullarm(way: str, layer: nn.Linear, rank: int, clock: Clock, options: argparse.Namespace) -> Any:
    inputs = calibrated(layer, clock, options) if way == "svd_llm" else None
    method = Svd() if inputs is None else SvdLlm()
    found = clock.time("decompose", lambda: decompose(method, [layer.weight], inputs))
    basis, (factor,) = clock.time("truncate", lambda: found.truncate(rank))
    return basis, factor


def _by_peer(way: str, layer: nn.Linear, rank: int, clock: Clock, options: argparse.Namespace) -> Any:
    weight = layer.weight.float()
    u, s, vt = clock.time("decompose", lambda: torch.linalg.svd(weight, full_matrices=False))
    return clock.time("truncate", lambda: (vt[:rank].contiguous(), u[:, :rank] * s[:rank]))


def calibrated(layer: nn.Linear, clock: Clock, options: argparse.Namespace) -> InputStatistics:
    """Statistics of random inputs, a part at a time; drawing them is not counted."""
    sums = InputSums(layer, options.tokens)
    for start in range(0, options.tokens, PART):
        x = torch.randn(
            min(PART, options.tokens - start), layer.in_features, device=options.device, dtype=layer.weight.dtype
        )
        clock.time("calibrate", lambda: sums.add(x))  # noqa: B023  (called at once)
    return sums.finish()


def now(device: str) -> float:
    """CPU seconds of this process, or on a GPU wall seconds once it is idle."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes(device: str) -> int:
    """The most that this process has held."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def matrices(options: argparse.Namespace) -> dict[tuple[int, int], list[Group]]:
    """The matrices of one layer, by (in, out)."""
    found: dict[tuple[int, int], list[Group]] = defaultdict(list)
    for group in groups(f"random:{options.shape}", options.slots, shared=False):
        if group.layer == 0:
            found[group.in_features, group.out_features[0]].append(group)
    return found


def in_fresh_process(way: str, slot: str, options: argparse.Namespace) -> Figures:
    """`compress` in a process of its own."""
    settings = [f"--{key}={getattr(options, key)}" for key in ("shape", "tokens", "dtype", "device")]
    command = [sys.executable, __file__, *settings, f"--slots={slot}", f"--way={way}"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: Figures = json.loads(done.stdout)
    return figures


def measure_compression(options: argparse.Namespace) -> dict[str, dict[str, Figures]]:
    """Figures by matrix and way, matrices of one shape measured once; `layer` adds them up.

    Raises:
        SystemExit: Two ways that are to find the same do not.
    """
    found: dict[str, dict[str, Figures]] = {}
    layer = {way: dict.fromkeys((*PHASES, "peak_bytes"), 0.0) for way in WAYS}
    for alike in matrices(options).values():
        slots = [group.slots[0] for group in alike]
        figures = {way: in_fresh_process(way, slots[0], options) for way in WAYS}
        require_agreement(figures, slots[0])
        found[", ".join(slots)] = figures
        for way, sums in layer.items():
            for phase in PHASES:
                sums[phase] += len(slots) * figures[way][phase]
            sums["peak_bytes"] = max(sums["peak_bytes"], figures[way]["peak_bytes"])
    return {**found, "layer": layer}


def require_agreement(figures: Mapping[str, Figures], slot: str) -> None:
    """Refuse to compare times of different results.

    Raises:
        SystemExit: The errors left are not the same.
    """
    ours, theirs = figures["svd"]["error"], figures[PEER]["error"]
    if not abs(ours - theirs) <= TOLERANCE * theirs:
        raise SystemExit(f"svd and {PEER} do not agree on {slot}: errors {ours:.6f} and {theirs:.6f}")


def random_model(options: argparse.Namespace) -> Any:
    """A model of the shape cut to some blocks."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**SHAPES[options.shape].config, "num_hidden_layers": options.layers}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(0)
    with torch.device(options.device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype)).eval()


def random_factors(options: argparse.Namespace, *, shared: bool, share: float) -> Compressed:
    """Factors of all matrices at a share of the break-even rank."""
    rng = torch.Generator(options.device).manual_seed(0)

    def draw(rows: int, columns: int) -> Tensor:
        drawn: Tensor = torch.randn(rows, columns, generator=rng, device=options.device)
        return drawn / math.sqrt(columns)

    return {
        (group.layer, group.slots): Factors(
            group.slots,
            draw(int(share * group.break_even), group.in_features),
            tuple(draw(out, int(share * group.break_even)) for out in group.out_features),
        )
        for group in groups(f"random:{options.shape}", SLOTS, shared=shared)
        if group.layer < options.layers
    }


def models(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Every way to keep the weights, by its name."""
    yield "dense", random_model(options)
    for name, shared, share in (("svd", False, 1.0), ("grc", True, 1.0), ("svd at half", False, 0.5)):
        model = random_model(options)
        install(model, random_factors(options, shared=shared, share=share))
        yield name, model


def measure_tokens(options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a token."""
    found, ids = dict(models(options)), torch.tensor([[7]], device=options.device)
    times: dict[str, list[float]] = defaultdict(list)
    for counted in range(-2, options.rounds):  # two to warm up
        for name, model in found.items():
            started = now(options.device)
            for _ in range(options.repeats):
                model.base_model(input_ids=ids, use_cache=False)
            if counted >= 0:
                times[name].append((now(options.device) - started) / options.repeats)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def print_compression(options: argparse.Namespace, found: Mapping[str, Mapping[str, Figures]]) -> None:
    kind = "CPU s" if options.device == "cpu" else "wall s"
    print(f"random:{options.shape}, {options.dtype}, {options.device}, torch {torch.__version__}, {kind}")
    print(f"{'matrix':<10}{'way':<18}{'calibrate':>10}{'decompose':>10}{'truncate':>10}{'peer ÷ it':>10}{'peak MB':>9}")
    for matrix, ways in found.items():
        theirs = sum(ways[PEER][phase] for phase in PHASES)
        for way, figures in ways.items():
            phases = "".join(f"{figures[phase]:>10.2f}" for phase in PHASES)
            ratio = theirs / (figures["decompose"] + figures["truncate"])
            print(f"{matrix:<10}{way:<18}{phases}{ratio:>10.2f}{figures['peak_bytes'] / 1e6:>9.0f}")
    peak = found["layer"]["svd_llm"]["peak_bytes"]
    holds = "holds" if peak <= GOAL_BYTES else "does not hold"
    print(
        f"svd_llm with {options.tokens} tokens of calibration: {peak / 1e6:.0f} MB, ≤ {GOAL_BYTES / 1e6:.0f}: {holds}"
    )


def print_tokens(options: argparse.Namespace, times: Mapping[str, float]) -> None:
    print(f"a token through {options.layers} blocks, medians of {options.rounds} rounds")
    print(f"{'weights':<14}{'ms':>9}{'tok/s':>9}{'dense ÷ it':>12}")
    for name, value in times.items():
        print(f"{name:<14}{1e3 * value:>9.3f}{1 / value:>9.1f}{times['dense'] / value:>12.2f}")


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark and print tables."""
    options = arguments(given)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if options.way:
        [[group]] = matrices(options).values()
        print(json.dumps(compress(options.way, group, options)))
        return
    compression = measure_compression(options)
    print_compression(options, compression)
    tokens = measure_tokens(options) if options.layers else {}
    if tokens:
        print_tokens(options, tokens)
    if options.json:
        figures = {"compression": compression, "token_s": tokens, "torch": torch.__version__}
        settings = {key: value for key, value in vars(options).items() if key not in ("json", "way")}
        options.json.write_text(json.dumps({**settings, **figures}, indent=1) + "\n")


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    gated = [name for name, shape in SHAPES.items() if not shape.config["model_type"].startswith("gpt")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen2.5-0.5b", choices=gated)
    parser.add_argument("--slots", nargs="+", default=SLOTS, choices=SLOTS, help="matrices to compress")
    parser.add_argument("--tokens", type=int, default=4096, help="of calibration")
    parser.add_argument("--layers", type=int, default=4, help="blocks that a token goes through; 0 leaves it out")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5, help="tokens of a round")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # measure one way only, in this process
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
