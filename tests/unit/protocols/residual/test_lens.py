from collections.abc import Sequence
from dataclasses import replace
from math import log
from typing import Any

import pytest
import residual_reference as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nullarm.errors import ModelError
from nullarm.models.anatomy import anatomy
from nullarm.models.instantiate import instantiate
from nullarm.protocols.residual.capture import lens
from nullarm.protocols.residual.capture.lens import Budget, Projection, Unembedding, project, unembedding_of

N, D, K = 7, 24, 5
NEXT = torch.tensor([3, 0, -1, 40, 36, 2, -1])
TRACKED = torch.tensor([4, -1, 0])

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": 2.0},
    "softcap": {"softcap": 4.0},
    "scale": {"logit_scale": 0.3},
    "all": {"bias": 2.0, "softcap": 4.0, "logit_scale": 0.3},
}


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unembedding(vocabulary: int, seed: int = 0, **parts: Any) -> Unembedding:
    if "bias" in parts:
        parts["bias"] = draw(vocabulary, seed=seed + 100, scale=parts["bias"])
    return Unembedding(draw(vocabulary, D, seed=seed + 50, scale=0.4), **parts)


def run(
    states: Sequence[Tensor], heads: Sequence[Unembedding], pairs: Sequence[tuple[int, int]] = ((0, 1),), k: int = K
) -> Projection:
    return project(states, heads, pairs, top_k=k, tracked=TRACKED, next_ids=NEXT)


def logits_of(states: Sequence[Tensor], heads: Sequence[Unembedding]) -> list[Tensor]:
    return [
        reference.logits_of(h, u.weight, u.bias, u.softcap, u.logit_scale) for h, u in zip(states, heads, strict=True)
    ]


def close(found: Tensor, expected: Any) -> None:
    wanted = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5, equal_nan=True)


def missing(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def check(found: Projection, logits: Sequence[Tensor], pairs: Sequence[tuple[int, int]], k: int = K) -> None:
    """Against the reference; a top-k list by its values, and by the logits of the ids it names."""
    for i, z in enumerate(logits):
        close(found.entropy[i], reference.entropy(z))
        close(found.loss[i], missing(reference.loss(z, NEXT.tolist())))
        close(found.rank[i], missing(reference.rank(z, NEXT.tolist())))
        close(found.tracked[i], torch.stack([z[:, 4], torch.full_like(z[:, 0], torch.nan), z[:, 0]], dim=1))
        check_list(found.top_values[i], found.top_ids[i], z, k)
    for i, (left, right) in enumerate(pairs):
        close(found.kl_div[i], reference.kl(logits[right], logits[left]))
        close(found.kl_reverse[i], reference.kl(logits[left], logits[right]))
        close(found.js[i], reference.js(logits[left], logits[right]))
        close(found.overlap[i], reference.overlap(logits[left], logits[right], k))
        change = logits[right] - logits[left]
        check_list(found.up_values[i], found.up_ids[i], change, k)
        check_list(-found.down_values[i], found.down_ids[i], -change, k)


def check_list(values: Tensor, ids: Tensor, of: Tensor, k: int) -> None:
    close(values, of.gather(-1, torch.tensor(reference.top(of, k))))
    close(values, of.gather(-1, ids))
    assert all(len(set(row)) == k for row in ids.tolist())


@pytest.mark.parametrize("vocabulary", [41, 1024, 1025, 2077])
@pytest.mark.parametrize("parts", CASES.values(), ids=CASES)
def test_every_number_is_that_of_the_formula(vocabulary: int, parts: dict[str, Any]) -> None:
    states = [draw(N, D), draw(N, D, seed=1)]
    heads = [unembedding(vocabulary, **parts), unembedding(vocabulary, seed=1)]
    check(run(states, heads), logits_of(states, heads), [(0, 1)])


def test_segments_of_a_large_vocabulary_are_put_together() -> None:
    states, heads = [draw(N, D), draw(N, D, seed=1)], [unembedding(33_003), unembedding(33_003, seed=1)]
    check(run(states, heads), logits_of(states, heads), [(0, 1)])


def test_runs_may_differ_in_width_and_are_compared_in_any_pairs() -> None:
    states = [draw(N, D), draw(N, 2 * D, seed=1), draw(N, D, seed=2)]
    heads = [unembedding(90), Unembedding(draw(90, 2 * D, seed=5, scale=0.3)), unembedding(90, seed=7, bias=1.0)]
    pairs = [(0, 1), (2, 0), (1, 2)]
    check(run(states, heads, pairs), logits_of(states, heads), pairs)


@pytest.mark.parametrize("budget", [Budget(1, 1), Budget(3 * 8 * 2077, 1), Budget(1 << 28, 2 * 2 * 1024)])
def test_tiles_of_any_size_give_the_same(budget: Budget, monkeypatch: pytest.MonkeyPatch) -> None:
    states, heads = [draw(N, D), draw(N, D, seed=1)], [unembedding(2077), unembedding(2077, seed=1)]
    whole = run(states, heads)
    monkeypatch.setattr(lens, "ON_CPU", budget)
    check(run(states, heads), logits_of(states, heads), [(0, 1)])
    for name, found, expected in zip(Projection._fields, run(states, heads), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True, msg=name)


def watch_products(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Rows of each product, by call."""
    seen: list[list[int]] = []
    multiply = lens._multiply

    def watching(users: Sequence[tuple[Tensor, Tensor]], head: Unembedding) -> None:
        seen.append([len(logits) for _, logits in users])
        multiply(users, head)

    monkeypatch.setattr(lens, "_multiply", watching)
    return seen


def test_no_more_logits_are_held_than_the_budget_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lens, "ON_CPU", Budget(tile_bytes=3 * 2 * 4 * 2077, block_elements=1))
    rows = watch_products(monkeypatch)
    run([draw(N, D), draw(N, D, seed=1)], [head := unembedding(2077), head])
    assert rows == [[3, 3], [3, 3], [1, 1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [41, 9000])
def test_half_precision_weights_are_multiplied_in_fp32(dtype: torch.dtype, vocabulary: int) -> None:
    states = [draw(N, D), draw(N, D, seed=1)]
    heads = [replace(u, weight=u.weight.to(dtype)) for u in (unembedding(vocabulary), unembedding(vocabulary, seed=1))]
    check(run(states, heads), logits_of(states, heads), [(0, 1)])


def test_nearly_equal_runs_in_bf16_have_no_negative_divergence() -> None:
    state, head = draw(N, D, scale=5), unembedding(3000)
    heads = [replace(head, weight=(head.weight + 1e-4 * i * draw(3000, D, seed=i)).bfloat16()) for i in range(4)]
    pairs = [(i, j) for i in range(4) for j in range(4)]
    found = run([state.bfloat16()] * 4, heads, pairs)
    for name in ("entropy", "kl_div", "kl_reverse", "js", "overlap"):
        values = getattr(found, name)
        assert bool(values.isfinite().all()), name
        assert bool((values >= 0).all()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_does_not_differ_from_itself(dtype: torch.dtype) -> None:
    state, head = draw(N, D).to(dtype), unembedding(2077, bias=1.0, softcap=5.0)
    head = replace(head, weight=head.weight.to(dtype))
    found = run([state, state, state.clone()], [head, head, head], [(0, 1), (1, 0), (0, 2)])
    for name in ("kl_div", "kl_reverse", "js", "up_values", "down_values"):
        assert getattr(found, name).abs().max() == 0, name
    assert bool((found.overlap == 1).all())


def test_runs_that_share_states_and_unembedding_are_projected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = watch_products(monkeypatch)
    states, heads = [draw(N, D), draw(N, D, seed=1)], [unembedding(60), unembedding(60, seed=1)]
    shared = [states[0], states[1], states[0], states[0]], [heads[0], heads[0], heads[0], heads[1]]
    check(run(*shared, [(0, 1), (2, 3)]), logits_of(*shared), [(0, 1), (2, 3)])
    assert rows == [[N, N], [N]]


def test_equal_logits_do_not_push_a_token_back() -> None:
    head = Unembedding(torch.tensor([[1.0], [2.0], [2.0], [2.0], [0.5]]))
    found = project([torch.ones(5, 1)], [head], [], top_k=2, tracked=TRACKED[:0], next_ids=torch.arange(5))
    assert found.rank[0].tolist() == [4, 1, 1, 1, 5]
    assert found.top_values[0].tolist() == [[2, 2]] * 5
    assert all(set(ids) < {1, 2, 3} for ids in found.top_ids[0].tolist())
    assert found.js.shape == (0, 5)


@pytest.mark.parametrize("ids", [torch.arange(60), torch.tensor([0, 3, 4, 50, 41, 7, 99, 12])])
def test_a_restricted_vocabulary_is_a_vocabulary(ids: Tensor) -> None:
    head = unembedding(100, bias=1.0, softcap=5.0)
    part = head.rows(ids)
    next_ids, states = torch.tensor([0, 1, 2, 3, -1, 5, 7]), [draw(N, D)]
    found = project(states, [part], [], top_k=4, tracked=torch.tensor([2]), next_ids=next_ids)
    whole = reference.logits_of(states[0], head.weight, head.bias, head.softcap)[:, ids]
    close(found.entropy[0], reference.entropy(whole))
    close(found.loss[0], missing(reference.loss(whole, next_ids.tolist())))
    close(found.tracked[0], whole[:, [2]])
    check_list(found.top_values[0], found.top_ids[0], whole, 4)


def test_the_first_rows_are_no_copy() -> None:
    head = unembedding(100, bias=1.0)
    first, other = head.rows(torch.arange(60)), head.rows(torch.arange(1, 60))
    assert first.weight.data_ptr() == head.weight.data_ptr()
    assert first.bias is not None
    assert head.bias is not None
    assert first.bias.data_ptr() == head.bias.data_ptr()
    assert torch.equal(other.weight, head.weight[1:60])


def test_top_k_may_be_nothing_or_everything_but_no_more() -> None:
    states, heads = [draw(N, D), draw(N, D, seed=1)], [unembedding(41), unembedding(41, seed=1)]
    nothing = run(states, heads, k=0)
    assert nothing.top_ids.shape == (2, N, 0)
    assert nothing.up_values.shape == (1, N, 0)
    assert bool(nothing.overlap.isnan().all())
    close(nothing.js[0], reference.js(*logits_of(states, heads)))
    check(run(states, heads, k=41), logits_of(states, heads), [(0, 1)], k=41)
    with pytest.raises(ModelError, match=r"top_k is larger than the vocabulary; got 42; valid: 0 to 41"):
        run(states, heads, k=42)


def test_many_blocks_are_found_when_k_is_large() -> None:
    states, heads = [draw(N, D), draw(N, D, seed=1)], [unembedding(2500), unembedding(2500, seed=1)]
    check(run(states, heads, k=1500), logits_of(states, heads), [(0, 1)], k=1500)


def test_vocabularies_of_different_size_are_refused() -> None:
    with pytest.raises(ModelError, match=r"vocabularies differ in size; got \[60, 61\]; valid: one, by .*rows"):
        run([draw(N, D)] * 2, [unembedding(60), unembedding(61)])


def test_extreme_logits_stay_finite() -> None:
    weight = torch.zeros(50, 1)
    weight[0], weight[1] = 300.0, -300.0
    states = [torch.ones(N, 1), -torch.ones(N, 1)]
    found = run(states, [head := Unembedding(weight), head], k=2)
    assert all(bool(getattr(found, name).isfinite().all()) for name in ("entropy", "kl_div", "kl_reverse", "js"))
    close(found.kl_div[0], [600.0] * N)
    assert bool((found.js <= log(2)).all())
    assert float(found.js.max()) == pytest.approx(log(2), rel=1e-6)
    close(found.entropy, torch.zeros(2, N))


def test_runs_without_a_common_token_are_log_2_apart_and_no_more() -> None:
    """Of so many probabilities some rows' sums are rounded to above 1."""
    weight, rows = draw(33_000, 2), 128
    weight[:, 0] += torch.tensor([100.0, -100.0]).repeat_interleave(16_500)
    left = torch.stack([torch.ones(rows), draw(rows)], dim=1)
    right = left * torch.tensor([-1.0, 1.0])
    head, nothing = Unembedding(weight), torch.full((rows,), -1)
    found = project([left, right], [head, head], [(0, 1)], top_k=0, tracked=nothing[:0], next_ids=nothing)
    assert bool((found.js <= log(2)).all())
    close(found.js[0], [log(2)] * rows)


@pytest.mark.parametrize("name", ["tiny-gemma2", "tiny-qwen2", "tiny-gpt2"])
def test_the_logits_are_the_model_s_own(name: str) -> None:
    parts = anatomy(instantiate(name, seed=0, device="cpu"))
    ids = torch.randint(700, (1, N), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states, logits = parts.trunk(input_ids=ids).last_hidden_state[0], parts.model(input_ids=ids).logits[0]
    head = unembedding_of(parts)
    tokens = torch.arange(head.weight.shape[0])
    found = project([states], [head], [], top_k=0, tracked=tokens, next_ids=NEXT)
    torch.testing.assert_close(found.tracked[0], logits, rtol=1e-5, atol=1e-5)
    assert head.weight.data_ptr() == parts.head.weight.data_ptr()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20), vocabulary=st.integers(2, 300), scale=st.floats(0.0, 30.0), apart=st.floats(0.0, 10.0)
)
def test_divergences_keep_their_bounds(seed: int, vocabulary: int, scale: float, apart: float) -> None:
    head = Unembedding(draw(vocabulary, D, seed=seed))
    left = draw(N, D, seed=seed + 1, scale=scale)
    right = left + draw(N, D, seed=seed + 2, scale=apart)
    found = project(
        [left, right], [head, head], [(0, 1), (1, 0)], top_k=2, tracked=TRACKED[:0], next_ids=torch.zeros_like(NEXT)
    )
    assert bool((found.kl_div >= 0).all())
    assert bool((found.kl_reverse >= 0).all())
    assert bool((found.entropy >= 0).all())
    assert bool((found.loss >= 0).all())
    assert bool((found.js >= 0).all())
    assert bool((found.js <= log(2)).all())
    torch.testing.assert_close(found.js[0], found.js[1], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found.kl_div[0], found.kl_reverse[1], rtol=1e-5, atol=1e-9)
