"""Texts that a perplexity is measured on, or a compression is calibrated with."""

from __future__ import annotations

from nullarm.models.texts.base import Document, Split, Text
from nullarm.models.texts.factory import make_text

__all__ = ["Document", "Split", "Text", "make_text"]
