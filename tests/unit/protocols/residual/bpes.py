"""Byte-level BPE tokenisers, trained on the spot."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

DOCUMENTS = ["the cat sat on the mat, the other cat ran", "a cathedral and a catalogue", "émile était là, 😀"] * 3
CHAT_TEMPLATE = "{{ bos_token }}{% for m in messages %}<user>{{ m['content'] }}</user>{% endfor %}<answer>"


def bpe(size: int = 300, *, bos: bool = True, adds_bos: bool = False, adds_eos: bool = False) -> Any:
    """A tokeniser of `size` tokens, `<eos>` (0) and `<bos>` (1) among them; `bos` says whether it is the BOS token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<eos>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(DOCUMENTS, trainer)
    added = [*(["<bos>"] if adds_bos else []), "$A", *(["<eos>"] if adds_eos else [])]
    tokenizer.post_processor = processors.TemplateProcessing(single=added, special_tokens=[("<bos>", 1), ("<eos>", 0)])
    special = {"bos_token": "<bos>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>", **special)
