"""Any local data: one JSON object per line, one file per split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

from nullarm.errors import DatasetError
from nullarm.models.hashing import settings_hash
from nullarm.models.tasks.base import AnsweredTask, Encoded, Item, ItemResult, Split, accuracy_and_loss
from nullarm.models.tasks.encoding import Limits, encode_example
from nullarm.models.tasks.rows import Row, hash_of, read_jsonl, text_field

VERSION = 1


@dataclass(frozen=True)
class Jsonl(AnsweredTask):
    """Prompts with completions, scored by likelihood where there are choices, else by exact match.

    A line is `{"prompt": …, "completion": …}`, and may have `choices` (a list of texts with the completion in it;
    either every line has them or none), `id` (unique over all splits; the split and line number when not given) and
    `cluster`. Texts are used as they are: a completion that should start with a space has to. Exact match compares
    without the white space around.

    Attributes:
        train: Path of the file with the training split.
        dev: Path of the file that gates and selections look at.
        test: Path of the file that the verdict looks at.
        max_prompt_tokens: A longer prompt loses its beginning; None for no limit.
        max_completion_tokens: A longer completion loses its end; None for no limit.
        max_new_tokens: Most tokens generated for an item without choices.
    """

    name: ClassVar[str] = "jsonl"
    train: str = ""
    dev: str = ""
    test: str = ""
    max_prompt_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        for split in get_args(Split):
            if not getattr(self, split):
                raise DatasetError(f"task.{split} of jsonl is missing", valid=f"the path of the {split} split's file")

    @property
    def tokens_per_item(self) -> int:
        """A quarter of the mean number of characters of a training line's texts."""
        items = self.items("train")
        return 1 + sum(len(i.prompt) + len(i.answer) for i in items) // (4 * len(items))

    def content_id(self) -> str:
        """Bytes of the three files, and what is made of them."""
        settings = {k: v for k, v in asdict(self).items() if k.startswith("max_")}
        files = {split: hash_of(self._path(split)) for split in get_args(Split)}
        return f"{self.name}:{settings_hash([VERSION, settings, files])}"

    def count(self, split: Split) -> int:
        """Number of lines."""
        return len(self.items(split))

    def items(self, split: Split) -> list[Item]:
        """The lines of a split, in their order, after a look at all three files."""
        by_split: dict[Split, list[Item]] = {s: self._read(s) for s in get_args(Split)}
        seen: dict[str, Split] = {}
        for name, items in by_split.items():
            for item in items:
                if item.id in seen:
                    raise DatasetError(
                        f"two items have the same id, one in {seen[item.id]} and one in {name}",
                        value=item.id,
                        valid="ids that are unique over all splits",
                    )
                seen[item.id] = name
        _refuse_leaks(by_split)
        if len({bool(item.choices) for items in by_split.values() for item in items}) == 2:
            raise DatasetError("some lines have choices and some have none", valid="choices in every line or in none")
        return by_split[split]

    def encode_training(self, tokenizer: Any, items: Sequence[Item]) -> list[Encoded]:
        """Prompt masked; completion and end of text trained."""
        return [encode_example(tokenizer, item.prompt, self.completion(item.answer), self._limits) for item in items]

    def score(self, model: Any, tokenizer: Any, items: Sequence[Item], *, batch_size: int) -> list[ItemResult]:
        """Likelihood of the choices, or exact match of what is generated."""
        from nullarm.models.tasks.scoring import score_choices, score_generation

        if all(item.choices for item in items):
            return score_choices(model, tokenizer, items, completion=self.completion, batch_size=batch_size)
        return score_generation(
            model, tokenizer, items, completion=self.completion, extract=self.extract,
            max_new_tokens=self.max_new_tokens, batch_size=batch_size, limits=self._limits,
        )  # fmt: skip

    def completion(self, answer: str) -> str:
        """The answer as it is written in the file."""
        return answer

    def extract(self, text: str) -> str | None:
        """The whole text without the white space around; None when that is nothing."""
        return text.strip() or None

    def metrics(self, results: Sequence[ItemResult]) -> dict[str, float]:
        """Accuracy and loss."""
        return accuracy_and_loss(results)

    @property
    def _limits(self) -> Limits:
        return Limits(self.max_prompt_tokens, self.max_completion_tokens)

    def _path(self, split: Split) -> Path:
        return Path(str(getattr(self, split))).expanduser()

    def _read(self, split: Split) -> list[Item]:
        path = self._path(split)
        return [_item(row, split, number, f"{path}, line {number}") for number, row in read_jsonl(path)]


def _refuse_leaks(by_split: Mapping[Split, Sequence[Item]]) -> None:
    """Refuse the same question in two splits: what was trained on, or gated on, must not be tested on."""
    asked: dict[tuple[str, str], Split] = {}
    for name, items in by_split.items():
        for item in items:
            first = asked.setdefault((item.prompt, item.answer), name)
            if first != name:
                raise DatasetError(
                    f"the same prompt and completion stand in {first} and in {name}",
                    value=item.prompt,
                    valid="splits that share no item",
                    next_command="take it out of one of the two files",
                )


def _item(row: Row, split: Split, number: int, where: str) -> Item:
    completion = text_field(row, "completion", where)
    if not completion.strip():
        raise DatasetError(f"{where}: the completion is empty", value=completion, valid="some text")
    choices = row.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        raise DatasetError(f"{where}: choices is not a list of texts", value=choices)
    if choices and completion not in choices:
        raise DatasetError(f"{where}: the completion is not among the choices", value=completion, valid=choices)
    cluster = row.get("cluster")
    return Item(
        id=str(row.get("id", f"{split}:{number}")),
        prompt=text_field(row, "prompt", where),
        answer=completion,
        choices=tuple(choices),
        cluster=None if cluster is None else str(cluster),
    )
