"""Tokenisers of the word pair: byte-level BPE whose merges are written down, not trained.

A class, a letter and a sign are one token each with their leading space; a word is one token, or two pieces. Any text
can be tokenised. A beginning of text is added, as a place for attention to rest on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nullarm.models.tiny.words import LETTERS, lexicon

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
SPACE = "Ġ"
"""How byte-level BPE writes a space."""
BYTES = 256


def merges(*, pieces: bool) -> list[tuple[str, str]]:
    """Merges in their order; each makes one new token.

    Args:
        pieces: Leave words in two pieces, their syllables.
    """
    words = lexicon()
    starts = (*words.first_halves, *words.classes)
    syllables = (*starts, *words.second_halves)
    made = [
        *dict.fromkeys((s[0], s[1]) for s in syllables),
        *((s[:2], s[2]) for s in syllables),
        *((SPACE, s) for s in (*starts, *LETTERS, "=", ".", "i")),
        (f"{SPACE}i", "s"),
    ]
    if not pieces:
        made += [(SPACE + a, b) for a in words.first_halves for b in words.second_halves]
    return made


def vocabulary_size(*, pieces: bool) -> int:
    """End of text, bytes, and what is merged of them."""
    return 1 + BYTES + len(merges(pieces=pieces))


def word_tokenizer(*, pieces: bool) -> PreTrainedTokenizerFast:
    """Build the tokeniser. Its end of text, id 0, also begins texts and pads.

    The pre-tokeniser puts a space before the text, so that a word is the same token wherever it stands; transformers
    does so too when it loads the tokeniser of a Qwen2 as its own class.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = merges(pieces=pieces)
    tokens = [END_OF_TEXT, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in made)]
    bpe = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, made))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", pair=f"{END_OF_TEXT} $A $B", special_tokens=[(END_OF_TEXT, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        add_prefix_space=True,
    )
