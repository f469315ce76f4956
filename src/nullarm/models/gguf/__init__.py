"""Models in one GGUF file, llama.cpp's format: header, configuration, tokeniser and weights.

Header and configuration need no torch, for planning.
"""

from nullarm.models.gguf.configuration import configuration
from nullarm.models.gguf.header import Header, TensorInfo, read_header

__all__ = ["Header", "TensorInfo", "configuration", "read_header"]
