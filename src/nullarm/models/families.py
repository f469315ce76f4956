"""What a block of every known family is made of: the names and shapes of its matrices, and the sizes of its vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Projections = dict[str, tuple[int, int]]
"""`(in, out)` by the name inside of a block."""


@dataclass(frozen=True)
class ShapeFacts:
    """The sizes of a decoder-only transformer, in units (not bytes)."""

    model_type: str
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary_size: int
    tied_embeddings: bool
    learned_positions: int = 0
    """Rows of the position embedding; 0 where positions are rotations."""

    @property
    def query_size(self) -> int:
        """Width of all queries."""
        return self.heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of all keys, and of all values."""
        return self.key_value_heads * self.head_dim


def _gated(facts: ShapeFacts) -> Projections:
    hidden, wide = facts.hidden_size, facts.intermediate_size
    return {
        "self_attn.q_proj": (hidden, facts.query_size),
        "self_attn.k_proj": (hidden, facts.key_value_size),
        "self_attn.v_proj": (hidden, facts.key_value_size),
        "self_attn.o_proj": (facts.query_size, hidden),
        "mlp.gate_proj": (hidden, wide),
        "mlp.up_proj": (hidden, wide),
        "mlp.down_proj": (wide, hidden),
    }


def _gpt2(facts: ShapeFacts) -> Projections:
    hidden, wide = facts.hidden_size, facts.intermediate_size
    return {
        "attn.c_attn": (hidden, 3 * hidden),
        "attn.c_proj": (hidden, hidden),
        "mlp.c_fc": (hidden, wide),
        "mlp.c_proj": (wide, hidden),
    }


def _gpt_neox(facts: ShapeFacts) -> Projections:
    hidden, wide = facts.hidden_size, facts.intermediate_size
    return {
        "attention.query_key_value": (hidden, 3 * hidden),
        "attention.dense": (hidden, hidden),
        "mlp.dense_h_to_4h": (hidden, wide),
        "mlp.dense_4h_to_h": (wide, hidden),
    }


def _norms(count: int) -> Callable[[ShapeFacts], int]:
    return lambda facts: count * facts.hidden_size


def _norms_and_qkv_biases(facts: ShapeFacts) -> int:
    return 2 * facts.hidden_size + facts.query_size + 2 * facts.key_value_size


def _norms_and_head_norms(count: int) -> Callable[[ShapeFacts], int]:
    return lambda facts: count * facts.hidden_size + 2 * facts.head_dim


def _all_biases(facts: ShapeFacts) -> int:
    """Two layer norms with biases, and a bias on every projection: 3h, h, wide, h."""
    return 9 * facts.hidden_size + facts.intermediate_size


@dataclass(frozen=True)
class Family:
    """Models of one `model_type`.

    Attributes:
        vectors: Number of parameters in norms and biases of one block.
        projections: Its matrices.
        blocks: Name of the list of blocks.
        final_norm_vectors: Vectors of the final norm: a scale, and a bias if it has one.
        ties_embeddings: Whether embedding and unembedding are one where the configuration does not say.
    """

    vectors: Callable[[ShapeFacts], int]
    projections: Callable[[ShapeFacts], Projections] = _gated
    blocks: str = "model.layers"
    final_norm_vectors: int = 1
    ties_embeddings: bool = False

    def linear_shapes(self, facts: ShapeFacts) -> Projections:
        """`(in, out)` of every projection inside the blocks, by module name."""
        block = self.projections(facts)
        return {f"{self.blocks}.{i}.{name}": shape for i in range(facts.layers) for name, shape in block.items()}

    def parameter_count(self, facts: ShapeFacts) -> int:
        """Number of parameters, tied ones once."""
        rows = facts.vocabulary_size * (1 if facts.tied_embeddings else 2) + facts.learned_positions
        block = self.vectors(facts) + sum(a * b for a, b in self.projections(facts).values())
        return facts.layers * block + facts.hidden_size * (rows + self.final_norm_vectors)


FAMILIES: Mapping[str, Family] = {
    "llama": Family(_norms(2)),
    "mistral": Family(_norms(2)),
    "qwen2": Family(_norms_and_qkv_biases),
    "qwen3": Family(_norms_and_head_norms(2)),
    "gemma": Family(_norms(2), ties_embeddings=True),
    "gemma2": Family(_norms(4), ties_embeddings=True),
    "gemma3_text": Family(_norms_and_head_norms(4), ties_embeddings=True),
    "gpt2": Family(_all_biases, _gpt2, "transformer.h", final_norm_vectors=2, ties_embeddings=True),
    "gpt_neox": Family(_all_biases, _gpt_neox, "gpt_neox.layers", final_norm_vectors=2),
}
"""By `model_type`: models whose parameters are counted from the configuration when there are no weights to look at."""
