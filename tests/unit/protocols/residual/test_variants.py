from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullarm.errors import StudyError
from nullarm.protocols.residual.reading.variants import VARIANTS, Variation, apply, bind, sentences, variant

TEXT = "It costs 3.5 dollars, e.g.today. Really?! Yes\nGood"


def one(name: str, prompt: str, seed: int = 0, **options: Any) -> str:
    return apply([name], {name: options}, [prompt], seed)[0].text


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "own_variants.py").write_text(
        "def louder(prompt: str, *, marks: int = 1) -> str:\n    return prompt.upper() + '!' * marks\n"
        "def wrong(prompt): return 3\n"
        "LIST = []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_variants"
    sys.modules.pop("own_variants", None)


@pytest.fixture
def registry() -> Iterator[dict[str, Any]]:
    before = dict(VARIANTS)
    yield VARIANTS
    VARIANTS.clear()
    VARIANTS.update(before)


def test_the_built_in_ones_are_the_sources() -> None:
    assert list(VARIANTS) == [
        "identity", "mirror_halves", "reverse_sentences", "shuffle_sentences", "symmetric_concat", "base_prefixed",
        "sft_prefixed", "dual_channel",
    ]  # fmt: skip


def test_what_each_makes_of_a_prompt() -> None:
    assert one("identity", TEXT) == TEXT
    assert one("mirror_halves", "abcde") == "cdeab"
    assert one("reverse_sentences", TEXT) == "Good Yes Really?! It costs 3.5 dollars, e.g.today."
    assert one("symmetric_concat", "abc") == "abc\n---\ncba"
    assert one("symmetric_concat", "abc", separator="|") == "abc|cba"
    assert one("base_prefixed", "p") == "[BASE] p"
    assert one("base_prefixed", "p", base_prefix="B:") == "B:p"
    assert one("sft_prefixed", "p") == "[SFT] p"
    assert one("sft_prefixed", "p", sft_prefix="S:") == "S:p"
    assert one("dual_channel", "p") == "BASE INPUT:\np\n\nSFT INPUT:\np"
    assert one("dual_channel", "p", order="sft_first", base_prefix="B", sft_prefix="S", separator="-") == "Sp-Bp"


def test_a_sentence_ends_at_a_mark_before_white_space_and_at_a_newline() -> None:
    assert sentences(TEXT) == ["It costs 3.5 dollars, e.g.today.", "Really?!", "Yes", "Good"]
    assert sentences(" \n. ") == ["."]
    assert sentences("") == []


def test_a_shuffle_follows_its_seed_and_without_one_the_study() -> None:
    text = " ".join(f"S{n}." for n in range(12))
    drawn = {seed: one("shuffle_sentences", text, seed) for seed in range(3)}
    assert len({text, *drawn.values()}) == 4
    assert one("shuffle_sentences", text, 0) == drawn[0]
    assert apply(["shuffle_sentences"], {"shuffle_sentences": {"seed": 0}}, [text], 2)[0].text == drawn[0]
    assert sorted(drawn[1].split()) == sorted(text.split())


@given(st.text())
def test_no_variant_loses_or_invents_characters(prompt: str) -> None:
    characters = Counter(prompt)
    assert Counter(one("mirror_halves", prompt)) == characters
    for name in ("reverse_sentences", "shuffle_sentences"):
        assert Counter("".join(one(name, prompt).split())) == Counter("".join(prompt.split()))
    palindrome = one("symmetric_concat", prompt, separator="")
    assert palindrome == palindrome[::-1]
    assert len(palindrome) == 2 * len(prompt)
    for name in ("base_prefixed", "sft_prefixed"):
        assert one(name, prompt).endswith(prompt)
    assert len(one("dual_channel", prompt)) - len(one("dual_channel", "")) == 2 * len(prompt)


@given(st.text())
def test_mirrored_halves_are_a_rotation(prompt: str) -> None:
    mirrored = one("mirror_halves", prompt)
    assert prompt in mirrored + mirrored
    assert one("mirror_halves", mirrored + mirrored) == mirrored + mirrored


def test_variations_go_prompt_by_prompt_in_the_order_of_the_names() -> None:
    assert apply(["mirror_halves", "identity"], {}, ["ab", "cd"], 0) == [
        Variation(0, "mirror_halves", "ba"),
        Variation(0, "identity", "ab"),
        Variation(1, "mirror_halves", "dc"),
        Variation(1, "identity", "cd"),
    ]


def test_a_function_can_be_registered_and_defined_again(registry: dict[str, Any]) -> None:
    def define(suffix: str) -> None:
        @variant("suffixed")
        def suffixed(prompt: str) -> str:
            return prompt + suffix

    define("1")
    define("2")
    assert one("suffixed", "p") == "p2"
    with pytest.raises(StudyError, match=r"variant 'identity' is registered already; got '.*variants:identity'"):
        variant("identity")(registry["suffixed"])


def test_a_function_of_another_module_is_a_variant(own_module: str) -> None:
    name = f"{own_module}:louder"
    assert apply([name], {name: {"marks": 2}}, ["a"], 0) == [Variation(0, name, "A!!")]
    with pytest.raises(StudyError, match=r"own_variants:louder\.marks: Input should be a valid integer; got True"):
        bind([name], {name: {"marks": True}}, 0)


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (["mirror_halfs"], {}, r"no prompt variant 'mirror_halfs' \(did you mean 'mirror_halves'\?\); valid: id"),
        (["identity", "identity"], {}, "prompt_variants names 'identity' twice"),
        (["no_such_module:f"], {}, "cannot import prompt variant 'no_such_module:f': No module named"),
        (["own_variants:absent"], {}, "cannot import prompt variant 'own_variants:absent': module .* no attribute"),
        (["own_variants:LIST"], {}, r"prompt variant 'own_variants:LIST' is no function; got \[\]"),
        (
            ["symmetric_concat"],
            {"symmetric_concat": {"seperator": "x"}},
            r"symmetric_concat\.seperator is no option of variant 'symmetric_concat' "
            r"\(did you mean 'separator'\?\); got 'x'; valid: separator",
        ),
        (["identity"], {"identity": {"seed": 1}}, "variant 'identity'; got 1; valid: no options"),
        (["identity"], {"mirror": {}}, "no prompt variant 'mirror'"),
        (
            ["identity"],
            {"dual_channel": {"order": "both"}},
            r"dual_channel\.order: Input should be 'base_first' or 'sft_first'; got 'both'",
        ),
        (["shuffle_sentences"], {"shuffle_sentences": {"seed": "0"}}, r"\.seed: .* a valid integer; got '0'"),
    ],
)  # fmt: skip
def test_a_wrong_variant_or_option_is_refused(
    own_module: str, names: list[str], options: dict[str, dict[str, Any]], words: str
) -> None:
    with pytest.raises(StudyError, match=words):
        bind(names, options, 0)


def test_a_variant_has_to_return_text(own_module: str) -> None:
    with pytest.raises(StudyError, match="variant 'own_variants:wrong' does not return text; got 3"):
        apply([f"{own_module}:wrong"], {}, ["a"], 0)
