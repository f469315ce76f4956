"""Models by reference: built in, from a directory, from the hub, or random with a real shape; and tasks for them.

Importing this imports no torch; loading a model does.
"""

from nullarm.models.facts import linear_shapes, parameter_count, shape_facts
from nullarm.models.families import ShapeFacts
from nullarm.models.load import load_causal_lm, load_sequence_classifier, load_tokenizer
from nullarm.models.reference import Reference, content_id, parse

__all__ = [
    "Reference",
    "ShapeFacts",
    "content_id",
    "linear_shapes",
    "load_causal_lm",
    "load_sequence_classifier",
    "load_tokenizer",
    "parameter_count",
    "parse",
    "shape_facts",
]
