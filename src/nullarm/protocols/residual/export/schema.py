"""The source's two schemas of a residual record, as data, and the check that a record has exactly one of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nullarm.errors import FormatError

FORMAT_VERSION = 2
"""Of multi-pass records; single-pass records carry none."""

Record = dict[str, Any]
"""A record, or a part of one."""

Schema = Any
"""A dict is an object with exactly these keys; a list, an array of its one element; a set, one of these values; `ById`,
an object with whole numbers for keys; `NUMBER`, `NULLABLE`, `str` and `int` are what they say."""


@dataclass(frozen=True)
class ById:
    """An object whose keys are whole numbers: layers, positions, token ids."""

    value: Schema


NUMBER = float
NULLABLE = (float, None)

_TOP_K = {"indices": [int], "values": [NUMBER]}
_SIDE = {"base", "sft"}
_SOURCES = {"embedding_source": _SIDE, "unembedding_source": _SIDE}
_SWAP_OPTIONS = {"base": _SOURCES, "sft": _SOURCES}
_METADATA = {"prompt_idx": int, "variant_name": str, "embedding_variant": str}

PAIR_POSITION: Schema = {
    "token": str,
    "top_k_increased": _TOP_K,
    "top_k_decreased": _TOP_K,
    "entropy_base": NUMBER,
    "entropy_sft": NUMBER,
    "kl_div": NUMBER,
    "tracked_token_logits": ById({"base": NUMBER, "sft": NUMBER}),
    "cosine_sim": NUMBER,
    "norm_base": NUMBER,
    "norm_sft": NUMBER,
    "norm_diff": NUMBER,
    "base_cosine_prev": NULLABLE,
    "base_norm_delta": NULLABLE,
    "sft_cosine_prev": NULLABLE,
    "sft_norm_delta": NULLABLE,
}
"""Of a comparison, at one layer and position."""

RUN_POSITION: Schema = {
    "token": str,
    "entropy": NUMBER,
    "norm": NUMBER,
    "norm_delta": NULLABLE,
    "cosine_prev": NULLABLE,
    "top_k_logits": _TOP_K,
    "tracked_token_logits": ById(NUMBER),
}
"""Of a run, at one layer and position."""

SINGLE_PASS: Schema = {
    "prompt": str,
    "tokens": [str],
    "metadata": _METADATA,
    "swap_options": _SWAP_OPTIONS,
    "layers": ById(ById(PAIR_POSITION)),
}

_RUN = {
    "name": str,
    "model": _SIDE,
    **_SOURCES,
    "metadata": {**_METADATA, "run_name": str},
    "layers": ById(ById(RUN_POSITION)),
}
_PAIR = {
    **SINGLE_PASS,
    "name": str,
    "base_run": str,
    "sft_run": str,
    "metadata": {**_METADATA, "base_run": str, "sft_run": str, "pair_name": str},
}
MULTI_PASS: Schema = {
    "format_version": {FORMAT_VERSION},
    "prompt": str,
    "tokens": [str],
    "metadata": {**_METADATA, "multi_pass": {True}},
    "runs": [_RUN],
    "pairwise": [_PAIR],
}


def check_record(record: Any) -> None:
    """Check that a record is exactly of one schema: multi-pass when it has `runs`, else single-pass.

    Raises:
        FormatError: A key is missing or too many, or a value of another type; numbers that are not finite among them.
    """
    schema = MULTI_PASS if isinstance(record, dict) and "runs" in record else SINGLE_PASS
    if fault := next(_faults(record, schema, "record"), None):
        raise FormatError(fault)


def _faults(value: Any, schema: Schema, where: str) -> Iterator[str]:
    if isinstance(schema, dict | ById):
        yield from _object_faults(value, schema, where)
    elif isinstance(schema, list):
        if not isinstance(value, list):
            yield f"{where} is no array"
        elif not _plainly(value, schema[0]):
            for index, element in enumerate(value):
                yield from _faults(element, schema[0], f"{where}[{index}]")
    elif not _is(value, schema):
        yield f"{where} is {value!r}, where {_words(schema)} belongs"


def _object_faults(value: Any, schema: Schema, where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where} is no object"
    elif isinstance(schema, ById):
        for key, inner in value.items():
            if not key.isdecimal():
                yield f"{where} has the key {key!r}, where a whole number belongs"
            yield from _faults(inner, schema.value, f"{where}.{key}")
    elif value.keys() != schema.keys():
        odd = sorted(value.keys() ^ schema.keys())[0]
        yield f"{where} has {'no' if odd in schema else 'an unknown'} key {odd!r}"
    else:
        for key, inner in value.items():
            yield from _faults(inner, schema[key], f"{where}.{key}")


def _plainly(values: list[Any], schema: Schema) -> bool:
    """Whether an array is what the schema says, as far as that is seen at a glance: most of a record is top-k lists."""
    same = all(kind is schema for kind in set(map(type, values)))
    return same and (schema is not NUMBER or math.isfinite(sum(values)))


def _is(value: Any, schema: Schema) -> bool:
    """Whether a single value is what the schema says; never so for objects and arrays, which are looked into."""
    if isinstance(schema, set):
        return any(value is choice or (type(value) is type(choice) and value == choice) for choice in schema)
    if schema is NULLABLE:
        return value is None or _is(value, NUMBER)
    if schema is NUMBER:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return schema in (str, int) and type(value) is schema


def _words(schema: Schema) -> str:
    if isinstance(schema, set):
        return " or ".join(sorted(map(repr, schema)))
    return {NUMBER: "a finite number", NULLABLE: "a finite number or null", str: "text", int: "a whole number"}[schema]
