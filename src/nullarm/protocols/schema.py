"""The published JSON Schema of the study file, with the parameters of every built-in protocol."""

from __future__ import annotations

from typing import Any

from nullarm.protocols import BUILT_IN, find_protocol
from nullarm.study.spec import Study


def study_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a study file; `parameters` is described for each built-in protocol."""
    schema = Study.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "nullarm study"
    schema["properties"]["extends"] = {"type": "string", "description": "Path of a study file that this one changes."}
    schema["allOf"] = [
        {
            "if": {"properties": {"protocol": {"const": name}}},
            "then": {"properties": {"parameters": {"$ref": f"#/$defs/{name}"}}},
        }
        for name in BUILT_IN
    ]
    for name in BUILT_IN:
        described = find_protocol(name).parameters_model.model_json_schema(ref_template="#/$defs/{model}")
        schema["$defs"].update(described.pop("$defs", {}))
        schema["$defs"][name] = described
    return schema
