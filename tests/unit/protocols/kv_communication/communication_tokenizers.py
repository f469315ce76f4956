"""Fast tokenisers of several kinds, their vocabularies written out: training would break ties by chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
MERGES = [
    "h e", "a t", "t he", "c at", "Ġ cat", "s at", "Ġ sat", "Ġ the", "Ġ a", "Ã ©", "ð Ł", "ĺ Ģ", "ðŁ ĺĢ", "Ġ ðŁĺĢ",
    "Ġ Ġ", "Ċ Ċ", "m i", "Ã© mi", "Ġcat a", "æ Ĺ",
]  # fmt: skip
"""Byte-level, best first; `Ġ` is a space, `Ċ` a new line, `Ã©` é, `ðŁĺĢ` 😀."""
WORDS = ["the", "cat", "sat", "a", "émile", "😀"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}<assistant>"
TRIMMING_TEMPLATE = (
    "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}Be brief.\n"
    "{% for m in messages %}[{{ m.role }}]\n{{ m.content | trim }}\n{% endfor %}[assistant]:"
)


def byte_bpe(merges: Sequence[str] = MERGES, *, trim: bool = False, adds: str = "", template: str | None = None) -> Any:
    """Byte-level BPE; `adds` says which of `bos` and `eos` it puts around a text."""
    pairs = [(left, right) for left, right in map(str.split, merges)]
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, pairs)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    around = f"{'<bos> ' if 'bos' in adds else ''}$A{' <eos>' if 'eos' in adds else ''}"
    special = processors.TemplateProcessing(single=around, special_tokens=[("<bos>", 1), ("<eos>", 2)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=trim), special])
    return _fast(tokenizer, template)


def words() -> Any:
    """Whole words and marks; white space has no tokens."""
    level = models.WordLevel({token: i for i, token in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>")
    tokenizer = Tokenizer(level)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _fast(tokenizer, unk_token="<unk>")


def word_pieces() -> Any:
    """Words in lower case and without accents, cut into pieces; white space has no tokens."""
    pieces = [*SPECIAL, "th", "##e", "cat", "em", "##il"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _fast(tokenizer, unk_token="<unk>")


def unigram(*, split: bool = True) -> Any:
    """As SentencePiece does: a space is the mark at the beginning of what follows it; of two words too if not split."""
    pieces = ["▁", "▁the", "cat", "▁cat", "é", "mil", "e", "t", "h", "c", "a"]
    scored = [(piece, 0.0) for piece in SPECIAL] + [(piece, -1.0) for piece in pieces] + [("▁the▁", -0.5)]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=split)
    tokenizer.decoder = decoders.Metaspace()
    return _fast(tokenizer, unk_token="<unk>")


def slow() -> Any:
    """A tokeniser in Python, which does not tell offsets."""
    from transformers import PreTrainedTokenizer

    class Letters(PreTrainedTokenizer):  # type: ignore[misc]  # the library is not typed
        vocab_size = 130

        def get_vocab(self) -> dict[str, int]:
            return {chr(i): i for i in range(128)}

        def _tokenize(self, text: str, **options: Any) -> list[str]:
            return list(text)

        def _convert_token_to_id(self, token: str) -> int:
            return min(ord(token), 127)

        def _convert_id_to_token(self, index: int) -> str:
            return chr(index)

    return Letters()


def token_bytes(tokenizer: Any, ids: list[int]) -> list[bytes]:
    """The bytes of each token of a byte-level BPE."""
    return [bytes(_BYTES[character] for character in token) for token in tokenizer.convert_ids_to_tokens(ids)]


def _fast(tokenizer: Tokenizer, template: str | None = None, **special: str) -> Any:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", **special
    )
    fast.chat_template = template
    return fast


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTES = _byte_alphabet()
