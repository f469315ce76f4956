"""The tokeniser in a GGUF file's metadata: byte-level BPE (`gpt2`) or SentencePiece's BPE (`llama`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from nullarm.errors import ModelError
from nullarm.models.gguf.header import read_header

Metadata = Mapping[str, Any]
"""Keys without `tokenizer.ggml.`."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Types of tokens; those that are unused pad the vocabulary to the rows of the embedding."""


def read_tokenizer(path: Path, **arguments: Any) -> Any:
    """A file's tokeniser.

    Args:
        path: The GGUF file.
        arguments: Further ones of `PreTrainedTokenizerFast`.

    Raises:
        ModelError: The file is damaged, or has no tokeniser of a known kind.
    """
    from transformers import PreTrainedTokenizerFast

    known = read_header(path).metadata.items()
    metadata = {key.removeprefix("tokenizer.").removeprefix("ggml."): v for key, v in known if key.startswith("tok")}
    try:
        tokenizer = _tokenizer(metadata, path)
        special = {f"{name}_token": metadata["tokens"][i] for name, i in _special(metadata).items()}
    except ModelError:
        raise
    except Exception as error:  # what the tokenizers library raises has no narrower type
        raise ModelError(
            f"the tokeniser in the GGUF file is damaged: {type(error).__name__}: {error}", value=str(path)
        ) from error
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**special, **arguments})
    words.chat_template = words.chat_template or metadata.get("chat_template")
    return words


def _tokenizer(metadata: Metadata, path: Path) -> Tokenizer:
    tokenizer: Tokenizer = _choice(_KINDS, "model", metadata, path)(metadata, path)
    tokenizer.add_special_tokens(_added(metadata, CONTROL))
    tokenizer.add_tokens(_added(metadata, USER_DEFINED))
    tokenizer.post_processor = _ends(metadata)
    return tokenizer


def _special(metadata: Metadata) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return {ours: metadata[f"{name}_token_id"] for ours, name in names.items() if f"{name}_token_id" in metadata}


def _choice(choices: Mapping[str, Any], key: str, metadata: Metadata, path: Path) -> Any:
    if metadata.get(key) not in choices:
        raise ModelError(
            f"tokenizer.ggml.{key} of the GGUF file {path} names no tokeniser that is known here",
            value=metadata.get(key),
            valid=choices,
            next_command="take the tokeniser of the model that the file was made from",
        )
    return choices[metadata[key]]


def _vocabulary(metadata: Metadata) -> dict[str, int]:
    return {token: i for i, (token, kind) in enumerate(_typed(metadata)) if kind != UNUSED}


def _typed(metadata: Metadata) -> Iterable[tuple[str, int]]:
    tokens = metadata["tokens"]
    return zip(tokens, metadata.get("token_type", [NORMAL] * len(tokens)), strict=True)


def _added(metadata: Metadata, wanted: int) -> list[AddedToken]:
    return [AddedToken(t, normalized=False, special=wanted == CONTROL) for t, k in _typed(metadata) if k == wanted]


def _ends(metadata: Metadata) -> processors.TemplateProcessing:
    """What stands before and after every text. Old files do not say; llama.cpp's defaults are taken."""
    with_bos = metadata["model"] == "llama" or metadata.get("pre") in _LLAMA3_NAMES
    wanted = {
        name for name, default in (("bos", with_bos), ("eos", False)) if metadata.get(f"add_{name}_token", default)
    }
    ids = {name: i for name, i in _special(metadata).items() if name in wanted}
    first, last = ([metadata["tokens"][ids[name]]] if name in ids else [] for name in ("bos", "eos"))
    return processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *first, "$B", *last],
        special_tokens=[(metadata["tokens"][i], i) for i in ids.values()],
    )


@dataclass(frozen=True)
class _Split:
    """How text is cut before merges are looked up.

    Attributes:
        pattern: Its matches are pieces, and what is between them.
        then_gpt2: Whether pieces are cut further, as GPT-2 did.
        normalised: Whether text is brought to Unicode's form NFC first.
        whole_words: Whether a piece that is a token needs no merges.
    """

    pattern: str | None = None
    then_gpt2: bool = False
    normalised: bool = False
    whole_words: bool = False


_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
_SPLITS = {
    "gpt-2": _Split(then_gpt2=True),
    "smollm": _Split(r"\p{N}", then_gpt2=True),
    "qwen2": _Split(_WORDS % 1, normalised=True),
    "deepseek-r1-qwen": _Split(_WORDS % 1),
    **{name: _Split(_WORDS % 3, whole_words=True) for name in _LLAMA3_NAMES},
}
"""By `tokenizer.ggml.pre`. A wrong one would go unnoticed and cost perplexity, so that others are refused."""


def _byte_level(metadata: Metadata, path: Path) -> Tokenizer:
    split: _Split = _choice(_SPLITS, "pre", metadata, path)
    vocabulary = _vocabulary(metadata)
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["merges"]]
    if lost := [pair for pair in merges if not vocabulary.keys() >= {*pair, "".join(pair)}]:
        raise ValueError(f"{len(lost)} merges are of pieces that are no tokens, such as {lost[0]}")  # else a Rust panic
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split.whole_words))
    if split.normalised:
        tokenizer.normalizer = normalizers.NFC()
    first = [pre_tokenizers.Split(Regex(split.pattern), "isolated")] if split.pattern else []
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.then_gpt2)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Metadata, path: Path) -> Tokenizer:
    tokens, unknown = metadata["tokens"], metadata.get("unknown_token_id", 0)
    tokenizer = Tokenizer(
        models.BPE(
            _vocabulary(metadata), _merges(metadata), unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True
        )
    )
    prefix = [normalizers.Prepend("▁")] if metadata.get("add_space_prefix", True) else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(metadata: Metadata) -> list[tuple[str, str]]:
    """SentencePiece merges the pair whose joint token has the highest score; the file has the scores only."""
    scored = [
        (-score, i, token)
        for i, ((token, kind), score) in enumerate(zip(_typed(metadata), metadata["scores"], strict=True))
        if kind == NORMAL
    ]
    normal = {token for *_, token in scored}
    return [
        (token[:cut], token[cut:])
        for _, _, token in sorted(scored)
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    ]


_KINDS: Mapping[str, Callable[[Metadata, Path], Tokenizer]] = {"gpt2": _byte_level, "llama": _sentencepiece}
"""By `tokenizer.ggml.model`."""
