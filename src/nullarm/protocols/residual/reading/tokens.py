"""From prompts to rows of token ids, and from rows to batches.

The order is the source's: prompts are trimmed to a common length first, variants are made of the trimmed prompts.
Trimming is by token ids, and nothing is ever decoded: the variant `identity` has the kept ids as they are, and every
other variant, and the chat template, gets the text that the kept tokens cover, a prefix of the prompt by the
tokeniser's offsets. Encoded again, such a text may have another number of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nullarm.errors import DatasetError, ModelError
from nullarm.protocols.residual.reading.variants import Variation, apply

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """A text that a model reads.

    Attributes:
        prompt: Index of the prompt.
        variant: Name of the variant.
        text: What was encoded: after the variant, and after the chat template.
        ids: Token ids.
        offsets: First character of each token and the one after its last, in `text`; (0, 0) of an added BOS. None when
            the tokeniser is a slow one, which does not tell.
        tokens: Vocabulary strings.
    """

    prompt: int
    variant: str
    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...] | None
    tokens: tuple[str, ...]


def read(
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    seed: int,
    variants: Sequence[str] = ("identity",),
    options: Mapping[str, Mapping[str, Any]] = {},
    chat_template: bool = False,
    add_bos: bool = False,
    normalize_length: bool = False,
    template_of: Any = None,
) -> tuple[tuple[Encoded, ...], tuple[str, ...]]:
    """Everything a study reads, prompt by prompt and variant by variant, and notes for people.

    Args:
        tokenizer: Encodes; the base model's.
        prompts: The prompts, inline or from the file.
        seed: Of the study, for variants that draw.
        variants: Names of variants, in their order.
        options: Options by variant.
        chat_template: Put every text into the chat template.
        add_bos: Begin with BOS even if the tokeniser by itself would not.
        normalize_length: Trim all prompts to the shortest one's number of tokens.
        template_of: Tokeniser whose chat template renders; by default `tokenizer`. A base model often has none.

    Raises:
        DatasetError: A text has no tokens.
        ModelError: The tokeniser lacks what was asked for: BOS, chat template, offsets.
        StudyError: A variant or an option of it is wrong.
    """
    notes: tuple[str, ...] = ()
    trimmed: tuple[Encoded, ...] = ()
    if normalize_length:
        whole = [Variation(index, "identity", prompt) for index, prompt in enumerate(prompts)]
        trimmed, line = normalize(encode(tokenizer, whole, add_bos=add_bos))
        prompts, notes = [row.text for row in trimmed], (line,)
    variations = apply(variants, options, prompts, seed)
    if chat_template:
        variations = rendered(template_of or tokenizer, variations)
    rows = encode(tokenizer, variations, add_bos=add_bos, templated=chat_template)
    if trimmed and not chat_template:
        rows = tuple(trimmed[row.prompt] if row.variant == "identity" else row for row in rows)
    return rows, notes


def reread(
    rows: Sequence[Encoded], tokenizer: Any, other: Any, *, add_bos: bool = False, templated: bool = False
) -> tuple[Encoded, ...]:
    """The same texts as another tokeniser encodes them; a row itself where both do alike, a trimmed one too.

    Args:
        rows: What `tokenizer` encoded.
        tokenizer: The base model's.
        other: The fine-tuned model's.
        add_bos: As for `encode`.
        templated: As for `encode`.

    Raises:
        DatasetError: As for `encode`.
        ModelError: As for `encode`.
    """
    texts = [Variation(row.prompt, row.variant, row.text) for row in rows]
    ours = encode(tokenizer, texts, add_bos=add_bos, templated=templated)
    theirs = encode(other, texts, add_bos=add_bos, templated=templated)
    return tuple(row if a == b else b for row, a, b in zip(rows, ours, theirs, strict=True))


def rendered(tokenizer: Any, variations: Sequence[Variation]) -> list[Variation]:
    """Every text as a user's message in the tokeniser's chat template, with the marker of the answer.

    Raises:
        ModelError: There is no chat template, or it does not render.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise ModelError(
            "the tokenizer has no chat template", value=tokenizer.name_or_path or type(tokenizer).__name__,
            valid="`chat_template: false`, or a tokenizer with one",
        )  # fmt: skip
    try:
        return [replace(v, text=_rendered(tokenizer, v.text)) for v in variations]
    except TemplateError as error:
        raise ModelError(f"the chat template does not render: {error}", valid="`chat_template: false`") from error


def encode(
    tokenizer: Any, variations: Sequence[Variation], *, add_bos: bool = False, templated: bool = False
) -> tuple[Encoded, ...]:
    """Texts as token ids.

    A row begins with BOS once: when `add_bos` says so, or when the tokeniser begins plain text with it by itself. In a
    templated text the template has said how it begins. No other special token is added.

    Args:
        tokenizer: A tokeniser of transformers.
        variations: The texts.
        add_bos: Begin with BOS even if the tokeniser by itself would not.
        templated: The texts are out of a chat template.

    Raises:
        DatasetError: A text has no tokens.
        ModelError: BOS is asked for, and the tokeniser has none.
    """
    if add_bos and tokenizer.bos_token_id is None:
        raise ModelError(
            "the tokenizer has no BOS token", value=tokenizer.name_or_path or type(tokenizer).__name__,
            valid="`add_bos: false`",
        )  # fmt: skip
    if not variations:
        return ()
    encoded = tokenizer(
        [v.text for v in variations], add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False
    )
    bos = tokenizer.bos_token_id if add_bos or (not templated and _adds_bos(tokenizer)) else None
    offsets = encoded["offset_mapping"] if tokenizer.is_fast else [None] * len(variations)
    return tuple(_row(tokenizer, *parts, bos) for parts in zip(variations, encoded["input_ids"], offsets, strict=True))


def normalize(rows: Sequence[Encoded]) -> tuple[tuple[Encoded, ...], str]:
    """Rows cut to the tokens of the shortest one, and the line of the log that says so.

    A character whose tokens are cut in two keeps its first ids, and is no longer in the text.

    Raises:
        DatasetError: There are no rows.
        ModelError: A row has to be cut, and its tokeniser does not tell offsets.
    """
    if not rows:
        raise DatasetError("there are no prompts to bring to one length", valid="one prompt or more")
    lengths = [len(row.ids) for row in rows]
    shortest, longest = min(lengths), max(lengths)
    line = f"Normalized production prompts to {shortest} tokens (previous max length {longest} tokens)."
    return tuple(_cut(row, shortest) for row in rows), line


def batches(rows: Sequence[Encoded], batch_tokens: int) -> list[list[Encoded]]:
    """Rows by length, then prompt, then as given, in consecutive batches of up to `batch_tokens`, padding included.

    The order of the rows does not depend on `batch_tokens`. A row longer than that is a batch of its own.
    """
    found: list[list[Encoded]] = []
    for row in sorted(rows, key=lambda row: (len(row.ids), row.prompt)):
        if found and (len(found[-1]) + 1) * len(row.ids) <= batch_tokens:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def padded(batch: Sequence[Encoded], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids [row, position], int64, padded on the right; and lengths [row]."""
    import torch

    lengths = torch.tensor([len(row.ids) for row in batch])
    width = int(lengths.max())
    return torch.tensor([[*row.ids, *[pad_id] * (width - len(row.ids))] for row in batch]), lengths


def _rendered(tokenizer: Any, text: str) -> str:
    message = {"role": "user", "content": text}
    return str(tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))


def _adds_bos(tokenizer: Any) -> bool:
    """Whether the tokeniser begins text with BOS by itself; asked with a text, as some also end it with EOS."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def _row(
    tokenizer: Any, variation: Variation, ids: list[int], offsets: list[tuple[int, int]] | None, bos: int | None
) -> Encoded:
    if not ids:
        raise DatasetError(
            f"prompt {variation.prompt}, variant {variation.variant!r}, has no tokens",
            value=variation.text, valid="text that the tokenizer encodes",
        )  # fmt: skip
    if bos is not None and ids[0] != bos:
        ids, offsets = [bos, *ids], None if offsets is None else [(0, 0), *offsets]
    return Encoded(
        variation.prompt, variation.variant, variation.text, tuple(ids),
        None if offsets is None else tuple((start, end) for start, end in offsets),
        tuple(tokenizer.convert_ids_to_tokens(ids)),
    )  # fmt: skip


def _cut(row: Encoded, length: int) -> Encoded:
    """The first `length` tokens of a row, with the whole characters that they cover."""
    if len(row.ids) == length:
        return row
    if row.offsets is None:
        raise ModelError(
            f"prompt {row.prompt} cannot be trimmed: a slow tokenizer does not tell where its tokens end",
            valid="`normalize_length: false`, or a fast tokenizer",
        )
    end = min(row.offsets[length - 1][1], row.offsets[length][0])
    return replace(
        row, text=row.text[:end], ids=row.ids[:length], offsets=row.offsets[:length], tokens=row.tokens[:length]
    )
