"""Factors, perplexity, decoding and timing sessions on a GPU are those of the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nullarm.bench.decoding import GreedyDecoding, Slowed
from nullarm.bench.instruments import instruments
from nullarm.bench.judging import judge_session
from nullarm.bench.session import Session
from nullarm.bench.settings import BenchSettings
from nullarm.models.load import load_causal_lm
from nullarm.protocols.low_rank.calibration.collect import collect
from nullarm.protocols.low_rank.factored.factors import Compressed, Factors
from nullarm.protocols.low_rank.factored.install import install
from nullarm.protocols.low_rank.methods.decompose import decompose
from nullarm.protocols.low_rank.methods.settings import Grc, LowRank, SvdLlm
from nullarm.protocols.low_rank.slots import INPUTS, linear
from nullarm.protocols.low_rank.speculation.decoder import speculate
from nullarm.protocols.low_rank.speculation.rejection import Greedy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

IDS = torch.arange(40)[None] % 17 + 3
GROUPS: dict[tuple[str, ...], LowRank] = {("q", "k", "v"): Grc(), ("down",): SvdLlm()}


def compressed(model: Any) -> Compressed:
    """Layer 0 of the model, attention over a shared basis and `down` whitened, both at rank 16."""
    inputs = collect(model, [IDS], layers=[0], inputs={INPUTS[slots[0]] for slots in GROUPS})
    found: Compressed = {}
    for slots, method in GROUPS.items():
        weights = [linear(model, 0, slot).weight for slot in slots]
        found[0, slots] = Factors(slots, *decompose(method, weights, inputs[0, INPUTS[slots[0]]]).truncate(16))
    return found


def logits(device: str) -> torch.Tensor:
    model, _ = load_causal_lm("builtin:world", device=device)
    install(model, compressed(model))
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS.to(device)).logits.cpu()
    return found


def test_a_compressed_model_computes_the_same() -> None:
    torch.testing.assert_close(logits("cuda"), logits("cpu"), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("compiled", [False, True])
def test_timed_decoding_writes_what_generate_writes(compiled: bool) -> None:
    model, _ = load_causal_lm("builtin:world", device="cuda")
    subject = GreedyDecoding("subject", model, IDS, most=24, compile=compiled)
    timing = subject.run(24)
    ids = IDS.cuda()
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    made = written[0, IDS.shape[1] :]
    assert subject.written[0, : len(made)].tolist() == made.tolist()
    assert len(timing.latencies_s) == 24
    assert min(timing.latencies_s) > 0


def test_speculation_writes_what_the_verifier_writes() -> None:
    verifier, _ = load_causal_lm("builtin:world", device="cuda")
    drafter, _ = load_causal_lm("builtin:world", device="cuda")
    install(drafter, compressed(drafter))
    alone = GreedyDecoding("alone", verifier, IDS, most=24)
    alone.run(24)
    found = speculate(verifier, drafter, IDS, 24, draft_length=4, rule=Greedy())
    assert list(found.tokens) == alone.written[0].tolist()
    assert found.draft_s > 0


def test_a_session_reads_the_gpu_and_finds_the_injected_slowdown() -> None:
    model, _ = load_causal_lm("builtin:world", device="cuda")
    control = GreedyDecoding("control", model, IDS, most=32)
    subjects = {"treatment": control, "control": control, "slowed": Slowed(control, 0.2)}
    settings = BenchSettings(blocks=5, tokens=32, slowdown=0.2)
    with instruments(torch.device("cuda")) as looking:
        session = Session(settings, lambda arm: subjects[arm].run(32), looking, rng=np.random.default_rng(0))
        runs = [run for block in session.blocks() for run in block]
    assert all(run.sm_clock_mhz is not None for run in runs)
    slowed = judge_session(runs, margin=0.05, settings=settings).slowed
    assert slowed is not None
    assert slowed.judgement.verdict == "DIFFERENT"
