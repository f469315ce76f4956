"""Speculative decoding: ours, against transformers' assisted generation and the verifier alone, in one run.

    python benchmarks/speculation.py                                 # the built-in model, its linears at rank 16, CPU
    python benchmarks/speculation.py --model random:qwen2.5-0.5b --ranks 64 --tokens 32 --prompts 2
    python benchmarks/speculation.py --model Qwen/Qwen2.5-7B --device cuda --dtype bfloat16 --ranks 256 1024

Options: --model REF --dtype --device --ranks K... --draft-lengths GAMMA... --tokens --prompts --rounds --json FILE.

The drafter is the model with its projections cut to rank K by `torch.linalg.svd`, as two products. Everyone decodes
greedily, as many tokens, after the same prompts. `alone` is the verifier with a static cache (`bench.decoding`),
`generate` is its `generate`, `assisted` the same with the drafter as `assistant_model`, its draft length held constant
and its confidence not looked at, so that it drafts as much as ours does; it cannot be asked to do otherwise.
`drafter` is the drafter alone. Rounds alternate between the ways; seconds are wall seconds, prompts read, medians over
rounds. × is tokens per second over those of `generate`, the way that both speculative ones are meant to speed up.

α, tokens per round and c are of our rounds; predicted is the formula of Leviathan et al. at these; measured is our
tokens per second of decoding over those of `alone`. The formula takes verifying γ + 1 tokens to last as long as a step
of `alone`: where it lasts longer, measured is lower. `same` is how many prompts were continued by the very tokens of
`alone`: all of them in fp32, but for ties. On a model as small as the built-in one, a pass costs the same whatever the
ranks are: nothing can be gained.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nullarm.bench.decoding import GreedyDecoding
from nullarm.bench.subjects import Timing
from nullarm.models.load import load_causal_lm
from nullarm.protocols.low_rank.speculation.rejection import Greedy
from nullarm.protocols.low_rank.speculation.result import Speculation, pooled
from nullarm.protocols.low_rank.speculation.subject import SpeculativeDecoding

TEXTS = (
    "Question: What is 3 + 4? Answer:",
    " cat dog. box lamp. key map. cat dog. box lamp.",
    "Question: Copy the letters a b c d e. Answer:",
    "Question: Reverse the letters k l m. Answer:",
)

Way = Callable[[], list[list[int]]]
"""Continues every prompt; the ids."""


def factored(model: Any, rank: int) -> Any:
    """A copy with every projection of the blocks cut to a rank, where that makes it smaller."""
    copied = copy.deepcopy(model)
    for module in list(copied.base_model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and rank * (child.in_features + child.out_features) < child.weight.numel():
                setattr(module, name, two_products(child, rank))
    return copied


def two_products(linear: nn.Linear, rank: int) -> nn.Sequential:
    """V, then U S, of the truncated singular value decomposition."""
    u, s, v = torch.linalg.svd(linear.weight.float(), full_matrices=False)
    place = {"device": linear.weight.device, "dtype": linear.weight.dtype}
    into = nn.Linear(linear.in_features, rank, bias=False, **place)
    out = nn.Linear(rank, linear.out_features, bias=linear.bias is not None, **place)
    into.weight.copy_(v[:rank])
    out.weight.copy_(u[:, :rank] * s[:rank])
    if linear.bias is not None:
        out.bias.copy_(linear.bias)
    return nn.Sequential(into, out)


def generation(model: Any, prompts: Sequence[Tensor], tokens: int, **how: Any) -> Way:
    """The library's `generate`; with an `assistant_model`, its assisted generation."""

    def run() -> list[list[int]]:
        outs = [
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=tokens,
                pad_token_id=0,
                **how,
            )
            for prompt in prompts
        ]
        return [out[0, prompt.shape[1] :].tolist() for out, prompt in zip(outs, prompts, strict=True)]

    return run


def assisted(model: Any, drafter: Any, prompts: Sequence[Tensor], tokens: int, gamma: int) -> Way:
    """Drafts of constant length, whatever the drafter thinks of them."""
    work = generation(model, prompts, tokens, assistant_model=drafter)

    def run() -> list[list[int]]:
        drafter.generation_config.num_assistant_tokens = gamma
        drafter.generation_config.num_assistant_tokens_schedule = "constant"
        drafter.generation_config.assistant_confidence_threshold = 0.0
        return work()

    return run


class Timed:
    """Subjects of the bench, one a prompt, and every timing of theirs."""

    def __init__(self, subjects: Sequence[GreedyDecoding] | Sequence[SpeculativeDecoding], tokens: int) -> None:
        self.subjects, self.tokens = subjects, tokens
        self.timings: list[Timing] = []

    def run(self) -> list[list[int]]:
        """Continue every prompt; the ids."""
        self.timings += [subject.run(self.tokens) for subject in self.subjects]
        return [written(subject) for subject in self.subjects]

    def tokens_per_s(self) -> float:
        """Of decoding, the first round left out."""
        counted = self.timings[len(self.subjects) :]
        return sum(t.tokens for t in counted) / sum(t.decode_s for t in counted)


def written(subject: GreedyDecoding | SpeculativeDecoding) -> list[int]:
    """The ids of a subject's last run."""
    if isinstance(subject, SpeculativeDecoding):
        return list(subject.runs[-1].tokens)
    ids: list[int] = subject.written[0].tolist()
    return ids


class Bench:
    """Ways to continue the same prompts with the same model."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        model, tokenizer = load_causal_lm(options.model, dtype=options.dtype, device=options.device)
        model.generation_config.eos_token_id = None
        texts = (TEXTS * -(-options.prompts // len(TEXTS)))[: options.prompts]
        prompts = [tokenizer(text, return_tensors="pt").input_ids.to(model.device) for text in texts]
        tokens = options.tokens
        self.alone = Timed([GreedyDecoding("alone", model, prompt, most=tokens) for prompt in prompts], tokens)
        self.ours: dict[str, Timed] = {}
        self.ways: dict[str, Way] = {"generate": generation(model, prompts, tokens), "alone": self.alone.run}
        for rank in options.ranks:
            drafter = factored(model, rank)
            self.ways[f"drafter {rank}"] = generation(drafter, prompts, tokens)
            for gamma in options.draft_lengths:
                name = f"ours {rank} γ={gamma}"
                subjects = [
                    SpeculativeDecoding(name, model, drafter, prompt, draft_length=gamma, rule=Greedy())
                    for prompt in prompts
                ]
                self.ours[name] = Timed(subjects, tokens)
                self.ways[f"assisted {rank} γ={gamma}"] = assisted(model, drafter, prompts, tokens, gamma)
                self.ways[name] = self.ours[name].run

    def measure(self) -> tuple[dict[str, float], dict[str, int]]:
        """Median tokens per second, and prompts continued as `alone` does, by way; the first round is not counted."""
        seconds: dict[str, list[float]] = defaultdict(list)
        texts = {}
        for round_ in range(self.options.rounds + 1):
            for name, way in self.ways.items():
                took, texts[name] = self._timed(way)
                if round_:
                    seconds[name].append(took)
        tokens = self.options.prompts * self.options.tokens
        same = {name: sum(a == b for a, b in zip(found, texts["alone"], strict=True)) for name, found in texts.items()}
        return {name: tokens / statistics.median(s) for name, s in seconds.items()}, same

    def speculation(self, name: str) -> Speculation:
        """The counted rounds of one of our ways, over all prompts."""
        subjects = self.ours[name].subjects
        return pooled([run for s in subjects if isinstance(s, SpeculativeDecoding) for run in s.runs[1:]])

    def _timed(self, way: Way) -> tuple[float, list[list[int]]]:
        self._idle()
        started = time.perf_counter()
        found = way()
        self._idle()
        return time.perf_counter() - started, found

    def _idle(self) -> None:
        if self.options.device != "cpu":
            torch.cuda.synchronize()


def figures(bench: Bench, rates: Mapping[str, float], same: Mapping[str, int]) -> dict[str, dict[str, float | None]]:
    """A row of the table for every way."""
    rows: dict[str, dict[str, float | None]] = {}
    for name, rate in rates.items():
        rows[name] = {"tokens_per_s": rate, "ratio": rate / rates["generate"], "same": same[name]}
        if name in bench.ours:
            found = bench.speculation(name)
            rows[name] |= {
                "alpha": found.alpha,
                "acceptance": found.acceptance,
                "tokens_per_round": found.tokens_per_round,
                "cost_ratio": found.cost_ratio,
                "predicted": found.predicted_speed_up,
                "measured": bench.ours[name].tokens_per_s() / bench.alone.tokens_per_s(),
            }
    return rows


def print_table(options: argparse.Namespace, rows: Mapping[str, Mapping[str, float | None]]) -> None:
    print(f"{options.model}, {options.dtype}, {options.device}, torch {torch.__version__}")
    print(f"{options.prompts} prompts × {options.tokens} tokens, medians of {options.rounds}")
    heads = ("tokens/s", "×", "same", "α", "per round", "c", "predicted", "measured")
    print(f"{'way':<22}" + "".join(f"{head:>10}" for head in heads))
    for name, row in rows.items():
        keys = ("ratio", "same", "alpha", "tokens_per_round", "cost_ratio", "predicted", "measured")
        line = f"{name:<22}{row['tokens_per_s']:>10.1f}"
        for key in keys:
            value = row.get(key)
            line += f"{'':>10}" if key not in row else f"{'—':>10}" if value is None else f"{value:>10.3g}"
        print(line)


def main(given: Sequence[str] | None = None) -> None:
    """Run the benchmark and print a table."""
    options = arguments(given)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    bench = Bench(options)
    rows = figures(bench, *bench.measure())
    print_table(options, rows)
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        options.json.write_text(json.dumps({**settings, "ways": rows, "torch": torch.__version__}, indent=1) + "\n")


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:world", help="model reference of the verifier")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--ranks", type=int, nargs="+", default=[16], metavar="K")
    parser.add_argument("--draft-lengths", type=int, nargs="+", default=[2, 4], metavar="GAMMA")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
