from __future__ import annotations

from typing import Any

import pytest
from low_rank_studies import COMPRESS, QKV, SPECULATE, low_rank_study

from nullarm.errors import StudyError
from nullarm.protocols.low_rank.parameters import LowRankParameters
from nullarm.protocols.low_rank.protocol import LowRank
from nullarm.protocols.low_rank.sizes import Sizes

SVD: dict[str, Any] = {"method": {"kind": "svd"}, "slots": QKV}
ROUND: dict[str, Any] = {"method": {"kind": "round_to_nearest"}, "slots": QKV}


def parameters(arms: dict[str, Any] | None = None, **more: Any) -> LowRankParameters:
    return LowRank().parameters(low_rank_study(arms, **more))


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ({"budget": {"keep": 0.5}, "slots": QKV}, "without a `method` nothing is compressed: budget, slots"),
        ({**SPECULATE, "method": {"kind": "grc"}}, "`method` belongs to its drafter"),
        ({**COMPRESS, "slots": []}, "`slots` names the matrices to compress, each once"),
        ({**COMPRESS, "slots": ["q", "q"]}, "`slots` names the matrices to compress, each once"),
        ({**ROUND, "budget": {"keep": 0.5}}, "rounding has no ranks: budget says nothing"),
        ({**ROUND, "gauge": {}, "online": {}}, "rounding has no ranks: gauge, online says nothing"),
        (SVD, r"a `budget` is missing, such as \{keep: 0\.5\} or \{rank: 1024\}"),
        ({**SVD, "budget": {"rank": 4}, "online": {}}, "`online` adapts an orthonormal shared basis"),
        ({**COMPRESS, "gauge": {}, "online": {}}, "which only method grc without a gauge has"),
        (
            {"method": {"kind": "svd_llm"}, "slots": QKV, "budget": {"rank": 4}, "gauge": {}},
            "method svd_llm weighs channels by itself: `gauge` goes with grc and svd",
        ),
        ({**COMPRESS, "budget": {"rank": 4, "keep": 0.5}}, "a budget is exactly one of rank, keep and same_bytes_as"),
        (
            {**COMPRESS, "budget": {"same_bytes_as": "compres"}},
            r"budget\.same_bytes_as is 'compres', .*none of them .did you mean 'compress'.*valid: \['compress'\]",
        ),
        ({**COMPRESS, "budget": {"same_bytes_as": "other"}}, "which is none of them"),
        (
            {"speculation": {"drafter": "baseline"}},
            r"compression\.other\.speculation\.drafter is 'baseline', which is none of them.*valid: \['compress'\]",
        ),
        ({**COMPRESS, "online": {"blocks": 99}}, r"other\.online reads 99 blocks, 101376 tokens in whole windows"),
        ({**COMPRESS, "slots": ["x"]}, "slots"),
    ],
)  # fmt: skip
def test_an_arm_that_makes_no_sense_is_refused(arm: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        parameters({"other": arm})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"stride": 33}, "stride 33 leaves tokens between windows of 32 unread"),
        ({"calibration_tokens": 31}, "calibration_tokens 31 are less than one window of 32"),
        (
            {"sweep": {"methods": [{"kind": "round_to_nearest"}], "slots": QKV}},
            "round_to_nearest has no ranks to sweep",
        ),
        ({"sweep": {"methods": [], "slots": QKV}}, "methods"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        parameters(**more)


def test_same_bytes_are_those_that_the_other_arm_really_has() -> None:
    """Equal ranks spend no more of a budget than whole steps in all layers cost; what is left is nobody's."""
    sizes = Sizes(parameters({"like": {**SVD, "budget": {"same_bytes_as": "compress"}},
                              "eight": ROUND, "as_eight": {**SVD, "budget": {"same_bytes_as": "eight"}}}))  # fmt: skip
    compress = sizes.parameters.compression["compress"]
    step = sum(group.factored_numbers(1) for group in sizes.groups(compress))
    budget = sizes.numbers("compress")

    assert budget is not None
    assert sizes.bytes("compress") == budget // step * step * 4 < budget * 4
    assert sizes.numbers("like") == budget // step * step
    # builtin:world: 3 layers, d = 64 with one scale of two bytes for a row
    rows = sum(sum(group.out_features) for group in sizes.groups(compress))
    assert sizes.bytes("eight") == (64 + 2) * rows
    assert sizes.numbers("as_eight") == sizes.bytes("eight") // 4


def test_rounding_has_no_budget_of_numbers() -> None:
    assert Sizes(parameters({"eight": ROUND})).numbers("eight") is None
