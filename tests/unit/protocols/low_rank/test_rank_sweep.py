"""One layer at a time, on a real model."""

import copy
from dataclasses import astuple, replace
from typing import Any

import pytest
import torch

from nullarm.errors import InvalidResult
from nullarm.models.instantiate import instantiate
from nullarm.models.load import load_tokenizer
from nullarm.models.texts.world import WorldText
from nullarm.protocols.low_rank import sweep as swept
from nullarm.protocols.low_rank.allocation.settings import Budget
from nullarm.protocols.low_rank.calibration.collect import collect
from nullarm.protocols.low_rank.calibration.statistics import InputStatistics
from nullarm.protocols.low_rank.methods.decompose import decompose
from nullarm.protocols.low_rank.methods.settings import Grc, LowRank, Svd, SvdLlm, WhitenedGrc
from nullarm.protocols.low_rank.perplexity.likelihoods import window_likelihoods
from nullarm.protocols.low_rank.perplexity.streams import tokenise
from nullarm.protocols.low_rank.perplexity.windows import Window, windows
from nullarm.protocols.low_rank.slots import INPUTS, SLOTS, Group, groups, linear
from nullarm.protocols.low_rank.sweep import LayerSweep, Swept, rank_at, swept_table

KEEP = (0.9, 0.5, 0.2)
Statistics = dict[tuple[int, str], InputStatistics]


@pytest.fixture
def model() -> Any:
    return instantiate("tiny-llama", device="cpu")


@pytest.fixture(scope="module")
def read() -> list[Window]:
    text = WorldText(train_documents=1, test_documents=6, document_length=3)
    return windows(tokenise(text.documents("test"), load_tokenizer("random:tiny-llama")), length=32, stride=32)


@pytest.fixture(scope="module")
def statistics() -> Statistics:
    net = instantiate("tiny-llama", device="cpu")
    batches = [torch.randint(net.config.vocab_size, (8, 64), generator=torch.Generator().manual_seed(0))]
    return collect(net, batches, layers=range(2), inputs=set(INPUTS.values()))


def group_of(slots: str, layer: int = 1) -> Group:
    found = groups("random:tiny-llama", SLOTS, shared="+" in slots)
    return next(group for group in found if "+".join(group.slots) == slots and group.layer == layer)


def inputs_of(group: Group, statistics: Statistics) -> InputStatistics:
    return statistics[group.layer, INPUTS[group.slots[0]]]


@pytest.mark.parametrize(
    ("slots", "method"),
    [("o", Svd()), ("down", SvdLlm()), ("q+k+v", Grc()), ("gate+up", WhitenedGrc()), ("q", SvdLlm())],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_the_rise_is_that_of_the_model_with_these_matrices(
    model: Any, read: list[Window], statistics: Statistics, slots: str, method: LowRank
) -> None:
    group = group_of(slots)
    rows = LayerSweep(model, read, 4).ranks(group, method, KEEP, inputs_of(group, statistics))
    assert len(rows) == len(KEEP)
    whole = window_likelihoods(model, read, batch_size=4)
    weights = [linear(model, group.layer, slot).weight for slot in group.slots]
    for row in rows:
        changed = copy.deepcopy(model)
        basis, factors = decompose(method, weights, inputs_of(group, statistics)).truncate(row.rank)
        with torch.no_grad():
            for slot, factor in zip(group.slots, factors, strict=True):
                linear(changed, group.layer, slot).weight.copy_(factor @ basis)
        after = window_likelihoods(changed, read, batch_size=4)
        rises = [(b.nll - a.nll, a.tokens) for a, b in zip(whole, after, strict=True)]
        assert row.delta_nll == pytest.approx(sum(r for r, _ in rises) / sum(n for _, n in rises), abs=1e-6)
        assert row.delta_nll != 0
        assert (row.layer, row.slots, row.method) == (1, slots, method.kind)


def test_less_rank_loses_more(model: Any, read: list[Window], statistics: Statistics) -> None:
    group = group_of("up")
    by_method = {
        method.kind: LayerSweep(model, read, 4).ranks(group, method, KEEP, inputs_of(group, statistics))
        for method in (Svd(), SvdLlm())
    }
    for rows in by_method.values():
        for error in ("weight_error", "output_error"):
            values = [getattr(row, error) for row in rows]
            assert values == sorted(values)
            assert 0 < values[0] < values[-1] < 1
    for plain, whitened in zip(by_method["svd"], by_method["svd_llm"], strict=True):
        assert plain.weight_error <= whitened.weight_error
        assert whitened.output_error <= plain.output_error


def test_the_full_rank_loses_nothing(model: Any, read: list[Window], statistics: Statistics) -> None:
    group = group_of("v")
    [row] = LayerSweep(model, read, 4).ranks(group, Svd(), [9.0], inputs_of(group, statistics))
    assert row.rank == group.max_rank
    assert row.above_break_even
    assert row.keep == group.factored_numbers(row.rank) / group.dense_numbers > 1
    assert abs(row.delta_nll) < 1e-5
    assert row.weight_error < 1e-5
    assert row.output_error < 1e-5


@pytest.mark.parametrize("slots", ["q", "down", "gate+up"])
@pytest.mark.parametrize("keep", [1e-6, 0.1, 0.5, 0.99, 1.0, 50.0])
def test_a_rank_fits_its_share(slots: str, keep: float) -> None:
    group = group_of(slots)
    rank = rank_at(group, keep)
    assert 1 <= rank <= group.max_rank
    assert rank == 1 or group.factored_numbers(rank) <= keep * group.dense_numbers
    assert rank == group.max_rank or group.factored_numbers(rank + 1) > keep * group.dense_numbers
    assert (rank > group.break_even) == (keep == 50.0)


def test_a_share_is_taken_as_it_was_written_as_a_budget_takes_it() -> None:
    group = Group(0, ("q",), 10, (10,))  # 20 numbers a rank
    for number in range(1, 100):
        share = number / 100
        assert Budget(keep=share).numbers([group]) == number
        assert rank_at(group, share) == max(1, number // 20)
    assert int(0.29 * 100) == 28  # what binary fractions make of it


def test_one_decomposition_gives_all_ranks_and_equal_ranks_are_said_once(
    model: Any, read: list[Window], statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[LowRank] = []

    def counted(method: LowRank, *rest: Any) -> Any:
        made.append(method)
        return decompose(method, *rest)

    monkeypatch.setattr(swept, "decompose", counted)
    group = group_of("k")
    rows = LayerSweep(model, read, 4).ranks(group, Svd(), [0.9, 0.9001, 0.3], inputs_of(group, statistics))
    assert made == [Svd()]
    assert [row.rank for row in rows] == [rank_at(group, 0.9), rank_at(group, 0.3)]


def test_the_model_as_loaded_is_read_once(
    model: Any, read: list[Window], statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings: list[int] = []

    def counted(*given: Any, **more: Any) -> Any:
        readings.append(1)
        return window_likelihoods(*given, **more)

    monkeypatch.setattr(swept, "window_likelihoods", counted)
    looks = LayerSweep(model, read, 4)
    for slots in ("q", "o"):
        looks.ranks(group_of(slots), Svd(), KEEP, inputs_of(group_of(slots), statistics))
    assert len(readings) == 1 + 2 * len(KEEP)


@pytest.mark.parametrize("broken", [False, True])
def test_the_model_is_as_it_was(
    model: Any, read: list[Window], statistics: Statistics, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = dict(model.named_modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    group = group_of("q+k+v")
    if broken:
        calls = iter([window_likelihoods(model, read, batch_size=4)])
        monkeypatch.setattr(swept, "window_likelihoods", lambda *_, **__: next(calls))
        with pytest.raises(StopIteration):
            LayerSweep(model, read, 4).ranks(group, Grc(), KEEP, inputs_of(group, statistics))
    else:
        LayerSweep(model, read, 4).ranks(group, Grc(), KEEP, inputs_of(group, statistics))
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_likelihood_that_is_no_number_ends_it(model: Any, read: list[Window], statistics: Statistics) -> None:
    with torch.no_grad():
        model.lm_head.weight[0] = float("inf")
    with pytest.raises(InvalidResult, match="is no finite number"):
        LayerSweep(model, read, 4).ranks(group_of("q"), Svd(), KEEP, inputs_of(group_of("q"), statistics))


def test_rows_become_columns() -> None:
    row = Swept(3, "q+k+v", "grc", 8, 0.5, False, 0.1, 0.05, 0.02)
    table = swept_table([row, replace(row, layer=4)])
    assert [tuple(found.values()) for found in table.to_pylist()] == [astuple(row), astuple(replace(row, layer=4))]
    types = ["int64", "string", "string", "int64", "double", "bool", "double", "double", "double"]
    assert [str(field.type) for field in table.schema] == types
    assert swept_table([]).schema == table.schema
