"""Study file to `Study`: `extends`, profiles, `DEV_MODE`, dotted overrides, validation."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nullarm.errors import FormatError, StudyError
from nullarm.study.spec import FORMAT, Study
from nullarm.study.strict_yaml import parse, parse_file
from nullarm.study.validate import validated

QUICK = "quick"
"""The profile that `DEV_MODE` selects."""


def load_study(
    path: Path,
    *,
    data: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    profile: str | None = None,
    environment: Mapping[str, str] | None = None,
    check: Callable[[Study, str, Mapping[str, str]], object] = lambda study, source, places: None,
) -> Study:
    """Read a study file.

    Args:
        path: The YAML file.
        data: The study that the file stands for, where the file is not a study itself.
        overrides: `dotted.key=value` settings, applied last; the value is YAML.
        profile: Name of a profile of the file to apply.
        environment: Where `DEV_MODE` is looked up; the process environment when left out.
        check: Looks at the study further (at its protocol's parameters), told the name of the file and where each key
            was said.

    Raises:
        StudyError: The file, a profile or an override is wrong.
        FormatError: The file is of a newer format.
    """
    places: dict[str, str] = {}
    if data is None:
        data, places = _with_parents(path, ())
    if dev_mode(os.environ if environment is None else environment):
        profile = profile or (QUICK if QUICK in _section(data, "profiles") else None)
        overrides = ("smoke=true", *overrides)
    if profile is not None:
        data = merged(data, _profile(data, profile, path))
        start = f"profiles.{profile}."
        places |= {key.removeprefix(start): place for key, place in places.items() if key.startswith(start)}
    for override in overrides:
        key, value = _override(override)
        data = set_dotted(data, key, value)
        places[key] = f"--set {key}"
    if isinstance(found := data.get("format", FORMAT), int) and found > FORMAT:
        raise FormatError(
            f"{path}: study format {found} is newer than this nullarm reads",
            valid=f"up to {FORMAT}",
            next_command="pip install --upgrade nullarm",
        )
    study = validated(Study, data, str(path), places)
    check(study, str(path), places)
    return study


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it: mappings merge key by key, everything else is replaced."""
    result = dict(base)
    for key, value in change.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def set_dotted(data: Mapping[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """`data` with the key at `dotted` set to `value`; mappings on the way are made."""
    change: Any = value
    for key in reversed(dotted.split(".")):
        change = {key: change}
    return merged(data, change)


def _with_parents(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """A file laid over what it extends, and where (`file:line`) each dotted key was said last."""
    resolved = path.resolve()
    if resolved in seen:
        chain = " → ".join(p.name for p in (*seen, resolved))
        raise StudyError(f"{path}: `extends` goes in a circle: {chain}")
    document = parse_file(path)
    if not isinstance(document.data, dict):
        raise StudyError(
            f"{path}: a study file is a mapping of keys", next_command="`nullarm init` writes one to start from"
        )
    data = dict(document.data)
    places = {dotted: f"{path}:{line}" for dotted, line in document.lines.items()}
    parent = data.pop("extends", None)
    if parent is None:
        return data, places
    if not isinstance(parent, str):
        raise StudyError(f"{path}: `extends` must be the path of a study file", value=parent)
    inherited, their_places = _with_parents(path.parent / parent, (*seen, resolved))
    return merged(inherited, data), {**their_places, **places}


def _profile(data: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    profiles = _section(data, "profiles")
    chosen = profiles.get(name)
    if not isinstance(chosen, dict):
        raise StudyError(f"{path}: no profile {name!r}", valid=sorted(profiles) or "the file has no `profiles`")
    return chosen


def _override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise StudyError("an override must read dotted.key=value", value=override, valid="for example seeds=[1,2,3]")
    return key, parse(text, f"--set {key}").data


def _section(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def dev_mode(environment: Mapping[str, str]) -> bool:
    """Whether `DEV_MODE` is on.

    Raises:
        StudyError: It is neither on nor off.
    """
    value = environment.get("DEV_MODE", "").strip().lower()
    if value in ("", "0", "false", "no", "off"):
        return False
    if value in ("1", "true", "yes", "on"):
        return True
    raise StudyError("environment variable DEV_MODE", value=value, valid="1, true, yes, on, 0, false, no, off")
