"""Prompt variants: what is done to the text of a prompt before it is encoded.

To add one, decorate a function of the prompt; its further parameters are its options, checked by their annotations::

    @variant("shouted")
    def shouted(prompt: str, *, marks: int = 1) -> str:
        return prompt.upper() + "!" * marks

A study names a variant of a module of yours as `package.module:function`, without decorator.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from inspect import Parameter, isfunction, signature
from typing import Any, Literal, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from nullarm.errors import StudyError, nearest

Variant = Callable[..., str]
"""(prompt, **options) -> text."""

Function = TypeVar("Function", bound=Variant)

VARIANTS: dict[str, Variant] = {}
"""Every registered variant, by the name a study uses."""


@dataclass(frozen=True)
class Variation:
    """A prompt after a variant.

    Attributes:
        prompt: Index of the prompt.
        variant: Name of the variant.
        text: What became of the prompt.
    """

    prompt: int
    variant: str
    text: str


def variant(name: str) -> Callable[[Function], Function]:
    """Registers a function as the variant `name`. A definition that is run again replaces itself.

    Raises:
        StudyError: Another function has the name.
    """

    def register(function: Function) -> Function:
        known = VARIANTS.get(name, function)
        if (known.__module__, known.__qualname__) != (function.__module__, function.__qualname__):
            raise StudyError(
                f"variant {name!r} is registered already", value=f"{known.__module__}:{known.__qualname__}"
            )
        VARIANTS[name] = function
        return function

    return register


def bind(names: Sequence[str], options: Mapping[str, Mapping[str, Any]], seed: int) -> dict[str, Callable[[str], str]]:
    """The named variants, in their order, with their options set.

    Args:
        names: Registered names, or `package.module:function`.
        options: Options by variant; those of a variant that is not used are checked as well.
        seed: Value of an option `seed` that is not set.

    Raises:
        StudyError: A variant is unknown or named twice, or an option is unknown or has a wrong value.
    """
    if twice := [name for name in names if names.count(name) > 1]:
        raise StudyError(f"prompt_variants names {twice[0]!r} twice", value=list(names))
    bound = {}
    for name in dict.fromkeys([*names, *options]):
        function = _find(name)
        given = options.get(name, {})
        types = _options(function)
        for option, value in given.items():
            _check(name, option, value, types)
        drawn = {"seed": seed} if "seed" in types else {}
        bound[name] = partial(function, **{**drawn, **given})
    return {name: bound[name] for name in names}


def apply(
    names: Sequence[str], options: Mapping[str, Mapping[str, Any]], prompts: Sequence[str], seed: int
) -> list[Variation]:
    """Every variant of every prompt: prompt by prompt, variants in the order of `names`.

    Raises:
        StudyError: As for `bind`, or a variant does not return text.
    """
    bound = bind(names, options, seed)
    return [
        Variation(index, name, _text(name, function(prompt)))
        for index, prompt in enumerate(prompts)
        for name, function in bound.items()
    ]


def sentences(text: str) -> list[str]:
    """The sentences of a text, without white space around them and without empty ones.

    A sentence ends after `.`, `?` or `!` with white space or the end behind it, and at a newline: 3.5 is not split.
    """
    return [part for piece in re.split(r"(?<=[.?!])\s+|\n", text) if (part := piece.strip())]


@variant("identity")
def identity(prompt: str) -> str:
    """The prompt as it is."""
    return prompt


@variant("mirror_halves")
def mirror_halves(prompt: str) -> str:
    """The second half of the characters before the first; the middle one of an odd number is in the second."""
    middle = len(prompt) // 2
    return prompt[middle:] + prompt[:middle]


@variant("reverse_sentences")
def reverse_sentences(prompt: str) -> str:
    """The sentences from last to first, joined by a space."""
    return " ".join(reversed(sentences(prompt)))


@variant("shuffle_sentences")
def shuffle_sentences(prompt: str, *, seed: int = 0) -> str:
    """The sentences in an order drawn from `seed`, by default the study's, joined by a space."""
    parts = sentences(prompt)
    random.Random(seed).shuffle(parts)
    return " ".join(parts)


@variant("symmetric_concat")
def symmetric_concat(prompt: str, *, separator: str = "\n---\n") -> str:
    """The prompt, then its characters from last to first."""
    return prompt + separator + prompt[::-1]


@variant("base_prefixed")
def base_prefixed(prompt: str, *, base_prefix: str = "[BASE] ") -> str:
    """The prompt after a marker of the base model."""
    return base_prefix + prompt


@variant("sft_prefixed")
def sft_prefixed(prompt: str, *, sft_prefix: str = "[SFT] ") -> str:
    """The prompt after a marker of the fine-tuned model."""
    return sft_prefix + prompt


@variant("dual_channel")
def dual_channel(
    prompt: str,
    *,
    base_prefix: str = "BASE INPUT:\n",
    sft_prefix: str = "SFT INPUT:\n",
    separator: str = "\n\n",
    order: Literal["base_first", "sft_first"] = "base_first",
) -> str:
    """The prompt twice, once after each model's marker."""
    channels = [base_prefix + prompt, sft_prefix + prompt]
    return separator.join(channels if order == "base_first" else channels[::-1])


def _find(name: str) -> Variant:
    if name in VARIANTS:
        return VARIANTS[name]
    valid = [*VARIANTS, "package.module:function"]
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise StudyError(f"no prompt variant {name!r}{nearest(name, VARIANTS)}", valid=valid)
    try:
        found = getattr(import_module(module_name), function_name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise StudyError(f"cannot import prompt variant {name!r}: {error}", valid=valid) from error
    if not isfunction(found):
        raise StudyError(f"prompt variant {name!r} is no function", value=found, valid=valid)
    function: Variant = found
    return function


def _options(function: Variant) -> dict[str, Any]:
    """Types of a variant's options by name: its parameters after the prompt."""
    hints = get_type_hints(function)
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    parameters = list(signature(function).parameters.values())[1:]
    return {p.name: hints.get(p.name, Any) for p in parameters if p.kind not in variadic}


def _check(name: str, option: str, value: Any, types: Mapping[str, Any]) -> None:
    where = f"prompt_variant_options.{name}.{option}"
    if option not in types:
        valid = ", ".join(types) or "no options"
        raise StudyError(f"{where} is no option of variant {name!r}{nearest(option, types)}", value=value, valid=valid)
    try:
        TypeAdapter(types[option]).validate_python(value, strict=True)
    except ValidationError as error:
        raise StudyError(f"{where}: {error.errors()[0]['msg']}", value=value, valid=", ".join(types)) from error


def _text(name: str, text: object) -> str:
    if not isinstance(text, str):
        raise StudyError(f"variant {name!r} does not return text", value=text, valid="a string")
    return text
