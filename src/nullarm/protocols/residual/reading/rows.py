"""What a cell reads: rows that both models see, aligned, and the tokens they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nullarm.errors import ModelError
from nullarm.protocols.residual.capture.pair_models import Loaded, PairModels
from nullarm.protocols.residual.parameters import Tracked
from nullarm.protocols.residual.reading.alignment import SharedVocabulary, positions, shared_vocabulary
from nullarm.protocols.residual.reading.tokens import Encoded, batches, read, reread
from nullarm.protocols.residual.reading.tracked import resolve
from nullarm.protocols.residual.runs import Side
from nullarm.study.plan import Cell


@dataclass(frozen=True)
class Row:
    """One text as both models read it.

    Attributes:
        left: As the base's tokeniser encodes it.
        right: As the fine-tuned one's does.
        positions: Positions of the left row that are compared.
        right_positions: The right row's positions that belong to them.
    """

    left: Encoded
    right: Encoded
    positions: tuple[int, ...]
    right_positions: tuple[int, ...]

    @property
    def key(self) -> tuple[int, str]:
        """Prompt and variant."""
        return self.left.prompt, self.left.variant

    def of(self, side: Side) -> Encoded:
        """The row of a side."""
        return self.left if side == "base" else self.right

    def compared(self, side: Side) -> tuple[int, ...]:
        """The compared positions in the row of a side."""
        return self.positions if side == "base" else self.right_positions


@dataclass(frozen=True)
class Reading:
    """All rows of a cell, in the order of the tables, and what the models share.

    Attributes:
        batches: Rows, batch by batch.
        shared: The tokens that both vocabularies have.
        tracked: Base token id to label.
        same_tokens: Both models read every text as the same ids, so that embeddings can be exchanged.
        notes: For people.
    """

    batches: tuple[tuple[Row, ...], ...]
    shared: SharedVocabulary
    tracked: dict[int, str]
    same_tokens: bool
    notes: tuple[str, ...]

    @property
    def rows(self) -> list[Row]:
        """All rows."""
        return [row for batch in self.batches for row in batch]


def read_pair(cell: Cell, models: PairModels) -> Reading:
    """Encode, align and batch what a cell reads.

    Raises:
        DatasetError: A text has no tokens.
        ModelError: A tokeniser lacks what was asked for, a tracked token is unknown or not shared, a text is too long.
        StudyError: A variant or an option of it is wrong.
    """
    parameters, base, sft = cell.parameters, models.base, models.sft
    templated, add_bos = parameters["chat_template"], parameters["add_bos"]
    lefts, notes = read(
        base.tokenizer,
        cell.settings["prompts"],
        variants=parameters["prompt_variants"],
        options=parameters["prompt_variant_options"],
        seed=cell.seed,
        chat_template=templated,
        add_bos=add_bos,
        normalize_length=parameters["normalize_length"],
        template_of=None if base.tokenizer.chat_template else sft.tokenizer,
    )
    rights = reread(lefts, base.tokenizer, sft.tokenizer, add_bos=add_bos, templated=templated)
    right_of = {(row.prompt, row.variant): row for row in rights}
    for loaded, rows in ((base, lefts), (sft, rights)):
        refuse_too_long(loaded, rows)
    ordered = batches(lefts, cell.settings["batch_tokens"])
    paired = tuple(tuple(_row(left, right_of[left.prompt, left.variant]) for left in batch) for batch in ordered)
    shared = shared_vocabulary(
        base.tokenizer, sft.tokenizer, base.anatomy.head.out_features, sft.anatomy.head.out_features
    )
    tracked, more = resolve(Tracked.model_validate(parameters["tracked"]), base.tokenizer)
    _refuse_unshared(tracked, shared)
    same = all(row.left.ids == row.right.ids for batch in paired for row in batch)
    return Reading(paired, shared, tracked, same, (*notes, *more))


def _row(left: Encoded, right: Encoded) -> Row:
    pairs = positions(left, right)
    if not pairs:
        raise ModelError(
            f"prompt {left.prompt}, variant {left.variant!r}: the two tokenisers have no token boundary in common",
            value=left.text,
            valid="a longer prompt, or `tokenizer` of the pair",
        )
    return Row(left, right, tuple(i for i, _ in pairs), tuple(j for _, j in pairs))


def refuse_too_long(loaded: Loaded, rows: Sequence[Encoded]) -> None:
    """Refuse rows that a model has no positions for: GPT-2 and its kind have an embedding for each, and no more.

    Raises:
        ModelError: A row is too long.
    """
    config = loaded.anatomy.model.config
    limit = getattr(config, "n_positions", None)
    longest = max(rows, key=lambda row: len(row.ids))
    if limit is not None and len(longest.ids) > limit:
        raise ModelError(
            f"prompt {longest.prompt}, variant {longest.variant!r}, is longer than the model has positions",
            value=f"{len(longest.ids)} tokens",
            valid=f"up to {limit}",
            next_command="shorten it, or set normalize_length: true",
        )


def _refuse_unshared(tracked: dict[int, str], shared: SharedVocabulary) -> None:
    known = set(shared.left_ids.tolist())
    for token_id, label in tracked.items():
        if token_id not in known:
            raise ModelError(
                f"tracked token {label!r} is not in the fine-tuned model's vocabulary", value=token_id,
                valid="a token of both vocabularies",
            )  # fmt: skip
