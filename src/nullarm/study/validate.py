"""Plain data to typed data, with one-line errors that name the key, its line, its value and the valid choices."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ValidationError

from nullarm.errors import StudyError, nearest

ModelT = TypeVar("ModelT", bound=BaseModel)

_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
_WORDS = (
    ("Value error, ", ""),
    ("Input should be", "must be"),
    ("(String|Tuple|Dictionary) should", "must"),
    ("a valid tuple", "a list"),
    ("a valid dictionary", "a mapping"),
    (r"a dictionary or an instance of \w+", "a mapping"),
)
"""Pydantic's words, and a study file's."""


def validated(
    model: type[ModelT], data: Any, source: str, places: Mapping[str, str] | None = None, prefix: tuple[str, ...] = ()
) -> ModelT:
    """Validate `data` against `model`.

    Args:
        model: The pydantic model.
        data: Plain data, as parsed.
        source: File name, for messages.
        places: Where each dotted path was said (`file:line`), when known.
        prefix: Where in the file `data` stands.

    Raises:
        StudyError: Some key is unknown, missing or has a wrong value; one is named, an unknown one first.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _one_line(model, error, source, places or {}, prefix) from error


def _one_line(
    model: type[BaseModel], error: ValidationError, source: str, places: Mapping[str, str], prefix: tuple[str, ...]
) -> StudyError:
    problems = error.errors()
    # A misspelt key is often also a missing one: the misspelling is the one to name.
    first = min(problems, key=lambda problem: problem["type"] not in _UNKNOWN_KEY)
    path = (*prefix, *(str(part) for part in first["loc"] if part != "[key]"))
    dotted = ".".join(path)
    holders = (".".join(path[:n]) for n in range(len(path), 0, -1))
    where = next((places[holder] for holder in holders if holder in places), source)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    following = f"correct it, then `nullarm plan {source}`"
    if first["type"] in _UNKNOWN_KEY:
        names = _fields_at(model, first["loc"][:-1])
        wrong = str(first["loc"][-1])
        return StudyError(
            f"{where}: unknown key {dotted!r}{nearest(wrong, names)}{more}", valid=names, next_command=following
        )
    if first["type"] == "missing":
        return StudyError(f"{where}: {dotted!r} is missing{more}", next_command=following)
    if first["type"] == "union_tag_invalid":
        context = {name: re.findall("'([^']+)'", str(words)) for name, words in first["ctx"].items()}
        (key,), known, tag = context["discriminator"], context["expected_tags"], str(first["ctx"]["tag"])
        return StudyError(
            f"{where}: {dotted}.{key} is unknown{nearest(tag, known)}{more}", value=tag, valid=known,
            next_command=following,
        )  # fmt: skip
    message = str(first["msg"])
    for theirs, ours in _WORDS:
        message = re.sub(theirs, ours, message)
    value = None if first["type"] == "value_error" and isinstance(first["input"], Mapping) else first["input"]
    culprit = f"{dotted}: " if dotted else ""
    return StudyError(f"{where}: {culprit}{message}{more}", value=value, next_command=following)


def _fields_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Names of the fields of the model that stands at `location` in `model`."""
    current: Any = model
    for part in location:
        current = _step(current, part)
    return _field_names(current) if _is_model(current) else []


def _step(annotation: Any, part: int | str) -> Any:
    if _is_model(annotation):
        return _unwrapped(get_type_hints(annotation).get(str(part)))
    for argument in reversed(get_args(annotation)):
        inner = _unwrapped(argument)
        if _is_model(inner) or get_args(inner):
            return inner
    return None


def _unwrapped(annotation: Any) -> Any:
    """The model inside `Model | None` or `Annotated[Model, …]`; anything else as it is."""
    models = [a for a in get_args(annotation) if _is_model(a)]
    return models[0] if len(models) == 1 and not hasattr(annotation, "__origin__") else annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation))


def _field_names(model: Any) -> list[str]:
    return sorted(f.name for f in fields(model)) if is_dataclass(model) else sorted(model.model_fields)
