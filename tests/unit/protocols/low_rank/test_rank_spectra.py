"""Singular values of real matrices, and the tables made of them."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nullarm.models.instantiate import instantiate
from nullarm.protocols.low_rank.calibration.collect import collect
from nullarm.protocols.low_rank.calibration.statistics import InputStatistics
from nullarm.protocols.low_rank.slots import INPUTS, SLOTS, Group, groups, linear
from nullarm.protocols.low_rank.spectra import ENERGIES, Spectrum, ranks_table, singular_values_table, spectra

REF = "random:tiny-llama"
Loaded = tuple[Any, dict[tuple[int, str], InputStatistics]]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    model = instantiate("tiny-llama", device="cpu")
    batches = [
        torch.randint(model.config.vocab_size, (8, 64), generator=torch.Generator().manual_seed(n)) for n in (0, 1)
    ]
    return model, collect(model, batches, layers=range(2), inputs=set(INPUTS.values()))


def weights(model: Any, group: Group) -> Tensor:
    return torch.cat([linear(model, group.layer, slot).weight.detach() for slot in group.slots]).double()


@pytest.mark.parametrize("shared", [False, True])
def test_singular_values_are_those_of_the_matrices(loaded: Loaded, shared: bool) -> None:
    model, statistics = loaded
    asked = groups(REF, SLOTS, shared)
    found = list(spectra(model, asked, statistics))
    assert [(s.group, s.metric) for s in found] == [(g, m) for g in asked for m in ("weight", "whitened")]
    for spectrum in found:
        matrix = weights(model, spectrum.group)
        if spectrum.metric == "whitened":
            gram = statistics[spectrum.group.layer, INPUTS[spectrum.group.slots[0]]].gram
            assert gram is not None
            matrix = matrix @ torch.linalg.cholesky(gram + 1e-4 * gram.diagonal().mean() * torch.eye(len(gram)))
        wanted = torch.linalg.svdvals(matrix)
        assert spectrum.values.shape == (spectrum.group.max_rank,)
        # The ridge is left out where there are fewer outputs than inputs, and then shows in the last values.
        assert spectrum.values == pytest.approx(wanted.numpy(), rel=1e-2 if spectrum.metric == "whitened" else 1e-7)
        assert spectrum.values[0] == pytest.approx(float(wanted[0]), rel=1e-3)


def test_without_statistics_there_are_only_weights(loaded: Loaded) -> None:
    asked = groups(REF, ["q", "down"], shared=False)
    some = {key: value for key, value in loaded[1].items() if key == (0, "attention")}
    found = [(s.group.layer, s.slot, s.metric) for s in spectra(loaded[0], asked, some)]
    assert found == [
        (0, "q", "weight"),
        (0, "q", "whitened"),
        (0, "down", "weight"),
        (1, "q", "weight"),
        (1, "down", "weight"),
    ]


def test_the_model_is_as_it_was(loaded: Loaded) -> None:
    before = {name: value.clone() for name, value in loaded[0].state_dict().items()}
    list(spectra(loaded[0], groups(REF, SLOTS, shared=True), loaded[1]))
    assert all(torch.equal(value, before[name]) for name, value in loaded[0].state_dict().items())
    assert not any(module._forward_pre_hooks for module in loaded[0].modules())


SHORT = Spectrum(Group(3, ("q",), 4, (6,)), "weight", np.array([3.0, 2.0, 1.0, 0.0]))
STACK = Spectrum(Group(4, ("gate", "up"), 4, (6, 6)), "whitened", np.array([2.0, 2.0, 2.0, 2.0]))


def test_a_row_for_each_singular_value() -> None:
    table = singular_values_table([SHORT, STACK])
    assert table.column_names == ["layer", "slot", "metric", "index", "singular_value"]
    assert [str(field.type) for field in table.schema] == ["int64", "string", "string", "int64", "double"]
    assert table.to_pylist()[2] == {"layer": 3, "slot": "q", "metric": "weight", "index": 2, "singular_value": 1.0}
    assert table["slot"].to_pylist() == ["q"] * 4 + ["gate+up"] * 4
    assert table["index"].to_pylist() == [0, 1, 2, 3] * 2


def test_ranks_by_hand() -> None:
    short, stack = ranks_table([SHORT, STACK], [1, 100]).to_pylist()
    assert (short["layer"], short["slot"], short["metric"]) == (3, "q", "weight")
    assert (short["rows"], short["columns"], short["break_even"]) == (6, 4, 2)
    assert [short[f"r{percent}"] for percent in ENERGIES] == [1, 2, 2, 3, 3]
    assert short["energy_at_break_even"] == pytest.approx(13 / 14)
    assert (short["energy_1"], short["energy_100"]) == (pytest.approx(9 / 14), pytest.approx(1))
    assert (stack["slot"], stack["rows"], stack["columns"], stack["break_even"]) == ("gate+up", 12, 4, 3)
    assert [stack[f"r{percent}"] for percent in ENERGIES] == [2, 3, 4, 4, 4]
    assert stack["effective_rank"] == pytest.approx(4)


def test_a_matrix_of_zeros_has_no_energy() -> None:
    [row] = ranks_table([Spectrum(SHORT.group, "weight", np.zeros(4))], [1]).to_pylist()
    assert [row[f"r{percent}"] for percent in ENERGIES] == [0] * 5
    assert (row["effective_rank"], row["energy_at_break_even"], row["energy_1"]) == (None, None, None)
    assert (
        str(ranks_table([Spectrum(SHORT.group, "weight", np.zeros(4))]).schema.field("effective_rank").type) == "double"
    )
