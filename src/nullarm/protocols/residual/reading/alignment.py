"""What two models have in common when their tokenisers, vocabularies or depths differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nullarm.errors import ModelError
from nullarm.protocols.residual.reading.tokens import Encoded

EXAMPLES = 5
"""Left-out tokens that are shown, of each side."""

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SharedVocabulary:
    """The tokens of both vocabularies; `left_ids[n]` and `right_ids[n]` are the same token.

    Attributes:
        left_ids: Ids [shared] of the left (base) vocabulary, ascending.
        right_ids: Ids [shared] of the right (fine-tuned) one.
        left_out_base: Rows of the base model's unembedding without a counterpart.
        left_out_sft: Those of the fine-tuned one.
        examples: Some of the left-out tokens, base's first.
    """

    left_ids: Ids
    right_ids: Ids
    left_out_base: int
    left_out_sft: int
    examples: tuple[str, ...]

    @property
    def prefix(self) -> int | None:
        """Number of shared tokens when these are the first ids of both sides, so that a view of the rows does."""
        first = np.arange(len(self.left_ids))
        same = np.array_equal(self.left_ids, first) and np.array_equal(self.right_ids, first)
        return len(first) if same else None


def positions(left: Encoded, right: Encoded) -> list[tuple[int, int]]:
    """Positions at which both rows have read the same characters: those whose tokens end at the same one.

    All positions when the tokens are the same. Of several tokens of one character (bytes) only the last has read it.
    An added BOS, which ends at character 0, is aligned with an added BOS.

    Raises:
        ModelError: The texts differ, or a tokeniser does not tell offsets.
    """
    if left.tokens == right.tokens:
        return [(i, i) for i in range(len(left.ids))]
    if left.text != right.text:
        raise ModelError(
            f"the texts of prompt {left.prompt}, variant {left.variant!r}, differ between base and fine-tuned",
            value=right.text, valid="one text, rendered by one chat template",
        )  # fmt: skip
    ends = _ends(right)
    return [(i, ends[end]) for end, i in _ends(left).items() if end in ends]


def shared_vocabulary(left_tokenizer: Any, right_tokenizer: Any, left_rows: int, right_rows: int) -> SharedVocabulary:
    """The tokens that both sides have, by their vocabulary strings.

    Where the vocabularies are the same, all rows that both unembeddings have are shared, those too that only pad a
    matrix: the model puts probability on them. Otherwise padding has no string, and is left out.

    Args:
        left_tokenizer: Of the base model.
        right_tokenizer: Of the fine-tuned model.
        left_rows: Rows of the base model's unembedding.
        right_rows: Rows of the fine-tuned one's.

    Raises:
        ModelError: No token is shared.
    """
    left, right = left_tokenizer.get_vocab(), right_tokenizer.get_vocab()
    if left == right:
        pairs = np.tile(np.arange(min(left_rows, right_rows), dtype=np.int64)[:, None], 2)
    else:
        both = sorted((i, right[s]) for s, i in left.items() if s in right and i < left_rows and right[s] < right_rows)
        pairs = np.array(both, dtype=np.int64).reshape(-1, 2)
    if not len(pairs):
        raise ModelError(
            "the two tokenizers share no token", value=sorted(right)[:EXAMPLES], valid=sorted(left)[:EXAMPLES]
        )
    left_ids, right_ids = np.ascontiguousarray(pairs.T)
    examples = (*_left_out(left, left_ids, left_rows), *_left_out(right, right_ids, right_rows))
    return SharedVocabulary(left_ids, right_ids, left_rows - len(pairs), right_rows - len(pairs), examples)


def relative_layers(left_layers: int, right_layers: int) -> list[int]:
    """For every block of the left model, counted from 0, the right one after the same share of its model's blocks.

    Block i of L stands for the share (i + 1)/L, rounded to the nearest block; halves go to the later one. The last
    block is matched with the last, and the embeddings (layer −1, share 0) with the embeddings.
    """
    return [max(0, (2 * (i + 1) * right_layers + left_layers) // (2 * left_layers) - 1) for i in range(left_layers)]


def _ends(row: Encoded) -> dict[int, int]:
    """Character at which a token ends, to the position of the last such token; of those at 0, the first."""
    if row.offsets is None:
        raise ModelError(
            "tokenizers that differ are aligned by character offsets, which only fast ones tell",
            value=f"prompt {row.prompt}, variant {row.variant!r}", valid="a fast tokenizer, or `tokenizer` of the pair",
        )  # fmt: skip
    ends: dict[int, int] = {}
    for position, (_, end) in enumerate(row.offsets):
        if end > 0 or end not in ends:
            ends[end] = position
    return ends


def _left_out(vocabulary: dict[str, int], shared: Ids, rows: int) -> Sequence[str]:
    known = set(shared.tolist())
    return sorted((s for s, i in vocabulary.items() if i < rows and i not in known), key=vocabulary.__getitem__)[
        :EXAMPLES
    ]
