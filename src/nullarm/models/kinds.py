"""From settings with a `kind` to the frozen dataclass of that kind, whose fields are the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

from nullarm.errors import DatasetError, nearest

T = TypeVar("T")


def of_kind(key: str, kinds: Mapping[str, type[T]], settings: Mapping[str, Any]) -> T:
    """What `settings` describe: `{"kind": "gsm8k", "dev_items": 500}`.

    Args:
        key: Where the settings stand in a study, for errors: `task`, `text`.
        kinds: The dataclasses by name.
        settings: Kind and fields.

    Raises:
        DatasetError: The kind or a setting is unknown, or a setting is of the wrong type or out of range.
    """
    rest = dict(settings)
    kind = rest.pop("kind", None)
    if not isinstance(kind, str) or kind not in kinds:
        hint = nearest(str(kind), kinds)
        raise DatasetError(f"{key}.kind names no kind of {key}{hint}", value=kind, valid=sorted(kinds))
    made = kinds[kind]
    known = {field.name for field in fields(made)}  # type: ignore[arg-type]
    for name, value in rest.items():
        if name not in known:
            raise DatasetError(
                f"{key}.{name} is no setting of {kind}{nearest(name, known)}", value=value, valid=sorted(known)
            )
        _check_type(f"{key}.{name} of {kind}", value, get_type_hints(made)[name])
    return made(**rest)


def _check_type(what: str, value: object, wanted: Any) -> None:
    """Settings are whole numbers, numbers, texts or truth values; an optional one may be None."""
    allowed = getattr(wanted, "__args__", (wanted,))
    if type(value) in allowed or (type(value) is int and float in allowed):
        return
    words = " or ".join("nothing" if a is type(None) else a.__name__ for a in allowed)
    raise DatasetError(f"{what} is of the wrong type", value=value, valid=words)
