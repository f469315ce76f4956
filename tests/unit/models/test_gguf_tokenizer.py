"""Tokenisers out of GGUF files that the test writes, against the tokenisers they were written from."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from nullarm.errors import ModelError
from nullarm.models.gguf.tokenizer import read_tokenizer
from nullarm.models.load import load_tokenizer
from nullarm.models.tiny.world import World
from support.gguf_file import finish, write_tokenizer

TEXTS = [
    "Naïve café, 12345 items at 3.50€!\n\n\tTabs and   spaces ",
    " leading, don't, it's, we'LL",
    "日本語 and emoji 🙂 mixed",
    "<|im_start|>user\nhello<|im_end|>\n<|endoftext|>",
    "",
]


@pytest.fixture(scope="module")
def documents() -> list[str]:
    rng = random.Random(0)
    world = World()
    return [world.document(rng) for _ in range(200)]


def byte_level(path: Path, tokenizer: Any, pre: str = "smollm", **further: Any) -> Path:
    writer = GGUFWriter(path, "llama")
    write_tokenizer(writer, tokenizer, pre, **further)
    return finish(writer, path)


def test_the_small_worlds_tokeniser_comes_back(tiny_llama: Any, documents: list[str], tmp_path: Path) -> None:
    original = tiny_llama[1]
    words = load_tokenizer(str(byte_level(tmp_path / "t.gguf", original)))
    assert words.get_vocab() == original.get_vocab()
    for text in (*documents, *TEXTS):
        ids = original(text)["input_ids"]
        assert words(text)["input_ids"] == ids
        assert words.decode(ids) == text
    assert (words.eos_token_id, words.pad_token_id, words.bos_token_id) == (0, 0, None)
    message = [{"role": "user", "content": "2 + 2"}]
    assert words.apply_chat_template(message, tokenize=False) == original.apply_chat_template(message, tokenize=False)
    assert words.decode(words(TEXTS[3])["input_ids"], skip_special_tokens=True) == "user\nhello\n"


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "it's 1234\n\nx", ["it", "'s", " 1234", "\n", "\n", "x"]),
        ("smollm", "it's 1234\n\nx", ["it", "'s", " ", "1", "2", "3", "4", "\n", "\n", "x"]),
        ("qwen2", "IT'S 1234\n\nx", ["IT", "'S", " ", "1", "2", "3", "4", "\n\n", "x"]),
        ("llama-bpe", "IT'S 1234\n\nx", ["IT", "'S", " ", "123", "4", "\n\n", "x"]),
    ],
)
def test_text_is_cut_as_the_file_says(pre: str, text: str, pieces: list[str], tiny_llama: Any, tmp_path: Path) -> None:
    words = read_tokenizer(byte_level(tmp_path / "t.gguf", tiny_llama[1], pre)).backend_tokenizer
    cut = words.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in cut] == pieces


def test_qwen_composes_characters_first(tiny_llama: Any, tmp_path: Path) -> None:
    apart, joint = "cafe\u0301", "caf\u00e9"
    for pre, same in (("qwen2", True), ("smollm", False)):
        words = read_tokenizer(byte_level(tmp_path / "t.gguf", tiny_llama[1], pre))
        assert (words(apart)["input_ids"] == words(joint)["input_ids"]) == same


def test_ends_are_added_where_the_file_says_so(tiny_llama: Any, tmp_path: Path) -> None:
    def ids(**further: Any) -> Any:
        path = byte_level(tmp_path / "t.gguf", tiny_llama[1], bos=1, **further)
        return read_tokenizer(path)("ab")["input_ids"]

    bare = ids()
    assert ids(add_bos=True) == [1, *bare]
    assert ids(add_eos=True) == [*bare, 0]
    assert ids(pre="llama-bpe", add_bos=None)[0] == 1  # Llama 3 has it unless the file says otherwise
    assert ids(pre="smollm", add_bos=None) == bare


def test_a_vocabulary_is_no_larger_for_its_padding(tiny_llama: Any, tmp_path: Path) -> None:
    words = read_tokenizer(byte_level(tmp_path / "t.gguf", tiny_llama[1], padded=10))
    assert len(words) == len(tiny_llama[1])


def test_an_unknown_way_to_cut_text_is_refused(tiny_llama: Any, tmp_path: Path) -> None:
    path = byte_level(tmp_path / "t.gguf", tiny_llama[1], "tekken")
    with pytest.raises(
        ModelError, match=r"tokenizer\.ggml\.pre.*got 'tekken'; valid: gpt-2, smollm, qwen2.*next: take"
    ):
        read_tokenizer(path)


def test_a_damaged_tokeniser_is_a_model_error(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "t.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b"])
    writer.add_token_merges(["a b"])  # but there is no token ab
    with pytest.raises(
        ModelError, match=r"the tokeniser in the GGUF file is damaged: ValueError: 1 merges .* as \('a', 'b'\)"
    ):
        load_tokenizer(str(finish(writer, tmp_path / "t.gguf")))


@pytest.fixture(scope="module")
def sentencepiece(documents: list[str]) -> Tokenizer:
    """A tokeniser as Llama 2 has it, trained on the small world."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, show_progress=False, limit_alphabet=60, max_token_length=8
    )
    tokenizer.train_from_iterator([d.replace("\n", " ") for d in documents], trainer)
    return tokenizer


def test_sentencepiece_is_rebuilt_from_scores(sentencepiece: Tokenizer, documents: list[str], tmp_path: Path) -> None:
    model = json.loads(sentencepiece.to_str())["model"]
    merged = {"".join(pair): rank for rank, pair in reversed(list(enumerate(model["merges"])))}
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer = GGUFWriter(tmp_path / "t.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(merged.get(token, 10_000)) for token in tokens])
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    writer.add_token_types([*kinds, *[TokenType.NORMAL] * (len(tokens) - len(kinds))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    words = load_tokenizer(str(finish(writer, tmp_path / "t.gguf")))
    for text in (*documents, *TEXTS[:3]):
        ids = sentencepiece.encode(text, add_special_tokens=False).ids
        assert words(text)["input_ids"] == [1, *ids]
        assert words.decode(ids) == text
    assert (words.bos_token_id, words.eos_token_id, words.unk_token_id, words.pad_token_id) == (1, 2, 0, 2)
