"""A tokeniser of words without meaning, for models with random weights and a vocabulary that must stay small."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def word_tokenizer(words: int) -> PreTrainedTokenizerFast:
    """A tokeniser of the words `w0` … one id each, separated by spaces; `w0` also ends and pads."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    level = Tokenizer(models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=level, eos_token="w0", pad_token="w0", unk_token="w0")
