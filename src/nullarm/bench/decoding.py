"""Greedy decoding with a time for every token, by device events on a GPU; and the same, slowed down on purpose."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache

from nullarm.bench.stopwatch import stopwatch
from nullarm.bench.subjects import Subject, Timing
from nullarm.errors import ModelError, UsageError

WARM_UP_STEPS = 4
"""Allocate the static cache; when compiled: compile, run once, record the graph, replay it."""

CUDA_GRAPH: dict[str, Any] = {"triton.cudagraphs": True, "triton.cudagraph_or_error": True}
"""`mode="reduce-overhead"` of `torch.compile`, and an error where that would quietly go without a graph."""


class GreedyDecoding(Subject):
    """One model writes the most likely tokens after one prompt, exactly as many as asked, past any end of text.

    Every step reads one token a row and writes one, so all steps are alike: the prompt's last token is read by the
    first. The cache is static where transformers says that the model's class can have that, else dynamic and new in
    every run. Static cache and buffers are made here, once, and a few steps are run, so that no run compiles; only a
    sliding window that fills up has its step compiled when it does, in the first run that gets there.

    Args:
        name: What a report calls it.
        model: Causal LM in evaluation mode.
        prompt: [batch, position] token ids without padding.
        most: Tokens a row that a run can be asked for.
        compile: Run a step as one CUDA graph.

    Attributes:
        written: [batch, tokens] token ids of the last run.

    Raises:
        UsageError: The prompt is empty or runs past the model's context, or there is nothing to compile for.
        ModelError: The model's step cannot be compiled.
    """

    def __init__(self, name: str, model: Any, prompt: Tensor, *, most: int, compile: bool = False) -> None:
        refuse_length(model, prompt, most)
        self.name, self.most = name, most
        self._model, self._prompt = model, prompt.to(model.device)
        rows, length = prompt.shape
        device = self._prompt.device
        self._positions = torch.arange(length - 1, device=device)[None]
        self._token = torch.empty(rows, 1, dtype=torch.long, device=device)
        self._position = torch.empty(1, 1, dtype=torch.long, device=device)
        self._ids = torch.empty(rows, most, dtype=torch.long, device=device)
        self.written = self._ids[:, :0]
        static = model._can_compile_fullgraph
        self._cache: Cache | None = StaticCache(model.config, max_cache_len=length + most - 1) if static else None
        self._forward = _compiled(model) if compile else model
        self._warm_up()

    @torch.no_grad()
    def run(self, tokens: int) -> Timing:
        """Write so many tokens a row.

        Raises:
            UsageError: There are none, or more than `most`.
        """
        if not 1 <= tokens <= self.most:
            raise UsageError(f"{self.name} cannot write so many tokens", value=tokens, valid=f"1 to {self.most}")
        cache = self._empty_cache()
        watch = stopwatch(self._prompt.device)
        watch.mark()
        self._prefill(cache)
        watch.mark()
        for index in range(tokens):
            self._step(cache, index)
            watch.mark()
        prefill_s, *latencies_s = watch.intervals_s()
        self.written = self._ids[:, :tokens].clone()
        return Timing(prefill_s, tuple(latencies_s), self.written.numel())

    def _empty_cache(self) -> Cache:
        if self._cache is None:
            return DynamicCache(config=self._model.config)
        self._cache.reset()
        return self._cache

    def _prefill(self, cache: Cache) -> None:
        """All but the prompt's last token, through the trunk: nobody asks for these logits."""
        if self._positions.numel():
            self._model.base_model(
                input_ids=self._prompt[:, :-1],
                position_ids=self._positions,
                past_key_values=cache,
                use_cache=True,
            )
        self._token.copy_(self._prompt[:, -1:])
        self._position.fill_(self._positions.numel())

    def _step(self, cache: Cache, index: int) -> None:
        """Read a token, write the next; a graph finds the same buffers every time, and nothing waits for the device."""
        out = self._forward(input_ids=self._token, position_ids=self._position, past_key_values=cache, use_cache=True)
        torch.argmax(out.logits[:, -1:], dim=-1, out=self._token)
        self._ids[:, index : index + 1] = self._token
        self._position += 1

    def _warm_up(self) -> None:
        try:
            self.run(min(WARM_UP_STEPS, self.most))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if self._forward is self._model:
                raise
            raise ModelError(
                f"a decoding step cannot be compiled: {' '.join(str(error).split())[:300]}",
                value=type(self._model).__name__,
                valid="compile: false",
            ) from error


class Slowed(Subject):
    """A subject of which every token takes longer by a share: does the bench see what is certainly there?

    The waiting is real and counted by the clock. It follows the run, one wait for each token: on a GPU, a pause between
    tokens would also keep the next one from being queued in time, and slow the subject by more than the share.

    Args:
        subject: What is slowed down.
        share: Of each token's time, 0 or more; 0.05 makes a token last 1.05 times as long.
        clock: Nanoseconds.

    Raises:
        UsageError: The share is below 0.
    """

    def __init__(self, subject: Subject, share: float, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        if not share >= 0:
            raise UsageError("a subject cannot be slowed by a negative share", value=share, valid="0 or more")
        self.name = f"{subject.name}, slowed by {share:g}"
        self._subject, self._share, self._clock = subject, share, clock

    def run(self, tokens: int) -> Timing:
        """Run the subject, then wait."""
        timing = self._subject.run(tokens)
        return replace(timing, latencies_s=tuple(s + self._wait(self._share * s) for s in timing.latencies_s))

    def _wait(self, seconds: float) -> float:
        """Keep the CPU busy for so long at least; how long it was."""
        started = self._clock()
        while (waited := (self._clock() - started) / 1e9) < seconds:
            pass
        return waited


def refuse_length(model: Any, prompt: Tensor, tokens: int) -> None:
    """Refuse a prompt with nothing in it, and more tokens than the model has positions for.

    Args:
        model: Causal LM.
        prompt: [batch, position] token ids.
        tokens: To be written after it.

    Raises:
        UsageError: So it is.
    """
    if prompt.ndim != 2 or not prompt.numel():
        raise UsageError("a prompt has no tokens", value=list(prompt.shape), valid="ids of [batch, 1 or more]")
    length, most = prompt.shape[1] + tokens, getattr(model.config, "max_position_embeddings", None)
    if most is not None and length > most:
        raise UsageError("prompt and tokens are longer than the model's context", value=length, valid=f"up to {most}")


def _compiled(model: Any) -> Callable[..., Any]:
    if model.device.type != "cuda":
        raise UsageError("steps are compiled for CUDA devices only", value=str(model.device), valid="compile: false")
    if not model._can_compile_fullgraph:
        raise ModelError(
            "the model's class has no static cache to compile with", value=type(model).__name__, valid="compile: false"
        )
    return torch.compile(model, fullgraph=True, options=CUDA_GRAPH)
