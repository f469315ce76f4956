"""The published JSON Schema describes every key, and agrees with what is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from nullarm.protocols import BUILT_IN
from nullarm.protocols.schema import study_schema
from nullarm.study.spec import Study

SCHEMA = study_schema()


def described(schema: dict[str, Any], name: str = "Study") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property of the schema and its definitions, by dotted name."""
    for key, value in schema.get("properties", {}).items():
        yield f"{name}.{key}", value
    for inner, definition in schema.get("$defs", {}).items():
        yield from described(definition, inner)


def test_it_is_json_and_names_its_dialect() -> None:
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_it_has_exactly_the_keys_of_a_study() -> None:
    assert set(SCHEMA["properties"]) == {*Study.model_fields, "extends"}
    assert SCHEMA["additionalProperties"] is False


def test_every_key_of_a_study_is_documented() -> None:
    own = Study.model_json_schema()
    undocumented = [name for name, value in described(own) if not value.get("description")]
    assert undocumented == []


def test_the_parameters_of_every_protocol_are_described() -> None:
    for name in BUILT_IN:
        assert SCHEMA["$defs"][name]["properties"]
        condition = {"properties": {"protocol": {"const": name}}}
        assert any(rule["if"] == condition for rule in SCHEMA["allOf"])


def test_every_reference_resolves() -> None:
    text = json.dumps(SCHEMA)
    wanted = {part.split('"')[0] for part in text.split('"#/$defs/')[1:]}
    assert wanted <= set(SCHEMA["$defs"])
    assert wanted
