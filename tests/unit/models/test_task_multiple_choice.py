import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from nullarm.errors import DatasetError
from nullarm.models.tasks.c_eval import SUBJECTS as CHINESE
from nullarm.models.tasks.c_eval import CEval
from nullarm.models.tasks.evaluate import evaluate
from nullarm.models.tasks.mmlu_redux import SUBJECTS, MmluRedux
from nullarm.models.tasks.multiple_choice import MultipleChoice, lettered
from nullarm.models.tasks.science_questions import ArcChallenge, OpenBookQA

Row = Mapping[str, Any]


def write(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def labelled(stem: str, n: int, *, labels: str = "ABCD", key: str = "B") -> Row:
    texts = [f"{n} and {k}" for k in range(len(labels))]
    choices = {"text": texts, "label": list(labels)}
    return {"id": f"Q_{n}", stem: f"What is {n}?", "choices": choices, "answerKey": key}


ARC_ROWS = [
    labelled("question", 0),
    labelled("question", 1, labels="1234", key="1"),
    labelled("question", 2, labels="1234", key="4"),
    labelled("question", 3, labels="ABC", key="C"),
    labelled("question", 4, labels="ABCDE", key="E"),
    labelled("question", 5, labels="123", key="2"),
]


@pytest.fixture
def arc(tmp_path: Path) -> ArcChallenge:
    write(tmp_path / "train.jsonl", [labelled("question", n) for n in range(100, 108)])
    write(tmp_path / "validation.jsonl", [labelled("question", n) for n in range(200, 204)])
    write(tmp_path / "test.jsonl", ARC_ROWS)
    return ArcChallenge(path=str(tmp_path))


@pytest.fixture
def mmlu(tmp_path: Path) -> MmluRedux:
    """Three questions of each subject, the last one without an answer."""
    for subject in SUBJECTS:
        rows = [redux(question=f"{subject} {n}?", answer=n) for n in range(2)]
        write(tmp_path / subject / "test.jsonl", [*rows, redux(error_type="expert")])
    return MmluRedux(path=str(tmp_path), dev_items=14)


def redux(**values: Any) -> Row:
    row = {"question": "Which?", "choices": ["p", "q", "r", "s"], "answer": 0, "error_type": "ok"}
    return {**row, "correct_answer": None, **values}


@pytest.fixture
def c_eval(tmp_path: Path) -> CEval:
    options = {letter: f"选项{letter}" for letter in "ABCD"}
    for subject in CHINESE:
        rows = [{"id": n, "question": f"{subject}____", **options, "answer": "ABCD"[n % 4]} for n in range(5)]
        write(tmp_path / subject / "dev.jsonl", rows)
        write(tmp_path / subject / "val.jsonl", rows[:2])
    return CEval(path=str(tmp_path))


def test_the_prompt_asks_for_a_letter_only(arc: ArcChallenge) -> None:
    item = arc.items("test")[3]
    assert "accurately" in item.prompt
    assert "\n\nWhat is 3?\n\nChoices:\nA. 3 and 0\nB. 3 and 1\nC. 3 and 2\n\n" in item.prompt
    assert '"The correct answer is A/B/C"' in item.prompt
    assert item.prompt.endswith("\n\nThe correct answer is")


def test_arc_keeps_every_row_whatever_its_labels(arc: ArcChallenge) -> None:
    items = arc.items("test")
    assert [(i.id, i.answer, "".join(i.choices)) for i in items] == [
        ("arc_challenge/Q_0", "B", "ABCD"),
        ("arc_challenge/Q_1", "A", "ABCD"),
        ("arc_challenge/Q_2", "D", "ABCD"),
        ("arc_challenge/Q_3", "C", "ABC"),
        ("arc_challenge/Q_4", "E", "ABCDE"),
        ("arc_challenge/Q_5", "B", "ABC"),
    ]


def test_published_splits_stay_as_they_are(arc: ArcChallenge) -> None:
    assert [len(arc.items(split)) for split in ("train", "dev", "test")] == [8, 4, 6]
    assert [arc.count(split) for split in ("train", "dev", "test")] == [8, 4, 6]


def test_a_test_split_can_be_a_random_part(arc: ArcChallenge) -> None:
    part = ArcChallenge(path=arc.path, test_items=3)
    assert part.items("test") == part.items("test")
    assert len(part.items("test")) == part.count("test") == 3
    assert set(part.items("test")) < set(arc.items("test"))
    parts = {tuple(ArcChallenge(path=arc.path, test_items=3, seed=seed).items("test")) for seed in range(8)}
    assert len(parts) > 1
    assert len(ArcChallenge(path=arc.path, dev_items=2).items("dev")) == 2
    with pytest.raises(DatasetError, match="does not fit into the published rows; got 9; valid: 1 to 5"):
        ArcChallenge(path=arc.path, test_items=9).items("test")


def test_openbookqa_asks_its_question_stem(tmp_path: Path) -> None:
    write(tmp_path / "validation.jsonl", [labelled("question_stem", 7, key="D")])
    [item] = OpenBookQA(path=str(tmp_path)).items("dev")
    assert (item.id, item.answer) == ("openbookqa/Q_7", "D")
    assert "What is 7?" in item.prompt


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": 3}, "'id' is not text; got 3"),
        ({"question": None}, "'question' is not text"),
        ({"choices": ["p", "q"]}, "choices is no object; got ['p', 'q']"),
        ({"choices": {"text": ["p", "q"], "label": ["A"]}}, "choices needs as many labels as texts"),
        ({"choices": {"text": ["p", 1], "label": ["A", "B"]}}, "the choices are not a list of texts"),
        ({"choices": {"text": ["p"], "label": ["B"]}}, "the number of choices; got 1; valid: 2 to 5"),
        ({"choices": {"text": list("pqrstu"), "label": list("ABCDEF")}}, "the number of choices; got 6"),
        ({"answerKey": "5"}, "answerKey is not the label of one choice; got '5'; valid: A, B, C, D"),
        ({"answerKey": None}, "answerKey is not the label of one choice"),
        ({"id": "Q_0"}, "another row has this id; got 'arc_challenge/Q_0'"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(arc: ArcChallenge, change: Row, words: str) -> None:
    file = Path(arc.path or "") / "test.jsonl"
    bad = {**labelled("question", 1), **change}
    file.write_text(f"{json.dumps(ARC_ROWS[0])}\n\n{json.dumps(bad)}\n")
    with pytest.raises(DatasetError) as caught:
        arc.items("test")
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{file}, line 3")


def test_an_answer_outside_of_the_choices_is_refused() -> None:
    with pytest.raises(DatasetError, match="here: the answer is none of the choices; got 2; valid: 0, 1"):
        lettered("x", "q", ["p", "q"], 2, "here")


def test_mmlu_redux_takes_dev_out_of_test(mmlu: MmluRedux) -> None:
    dev, test = mmlu.items("dev"), mmlu.items("test")
    assert (len(dev), len(test)) == (mmlu.count("dev"), mmlu.count("test")) == (14, 2 * len(SUBJECTS) - 14)
    assert len({item.id for item in [*dev, *test]}) == 2 * len(SUBJECTS)
    assert "mmlu_redux/anatomy/test-1" in {item.id for item in [*dev, *test]}
    assert len(MmluRedux(path=mmlu.path, dev_items=14, test_items=5).items("test")) == 5
    with pytest.raises(DatasetError, match="dev leaves mmlu_redux no test split; got 114"):
        MmluRedux(path=mmlu.path, dev_items=2 * len(SUBJECTS)).items("test")


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ({"answer": 2}, "C"),
        ({"answer": 2, "error_type": "bad_question_clarity"}, "C"),
        ({"answer": 2, "error_type": "bad_options_clarity"}, "C"),
        ({"answer": 2, "error_type": "multiple_correct_answers", "correct_answer": "B or C"}, "C"),
        ({"answer": 2, "error_type": "wrong_groundtruth", "correct_answer": "1"}, "B"),
        ({"answer": 2, "error_type": "wrong_groundtruth", "correct_answer": " D "}, "D"),
        ({"answer": 2, "error_type": "wrong_groundtruth", "correct_answer": "none of these"}, None),
        ({"answer": 2, "error_type": "wrong_groundtruth", "correct_answer": ""}, None),
        ({"answer": 2, "error_type": "wrong_groundtruth"}, None),
        ({"answer": 2, "error_type": "no_correct_answer", "correct_answer": "5"}, None),
        ({"answer": 2, "error_type": "expert"}, None),
    ],
)
def test_what_mmlu_redux_makes_of_an_annotation(values: Row, answer: str | None) -> None:
    item = MmluRedux().read_row(redux(**values), "here", "anatomy/test-0")
    assert (item.answer if item else None) == answer


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"error_type": "fine"}, "here: unknown error_type; got 'fine'; valid: ok, bad_question_clarity"),
        ({"error_type": None}, "here: 'error_type' is not text"),
        ({"answer": "B"}, "here: the answer is no whole number; got 'B'; valid: 0 to 3"),
        ({"answer": 4}, "here: the answer is none of the choices; got 4"),
        ({"choices": "pqrs"}, "here: the choices are not a list of texts"),
    ],
)
def test_a_bad_row_of_mmlu_redux_is_refused(values: Row, words: str) -> None:
    with pytest.raises(DatasetError) as caught:
        MmluRedux().read_row(redux(**values), "here", "anatomy/test-0")
    assert words in str(caught.value)


def test_c_eval_tests_on_the_published_val_split(c_eval: CEval) -> None:
    dev, test = c_eval.items("dev"), c_eval.items("test")
    assert (len(dev), len(test)) == (c_eval.count("dev"), c_eval.count("test")) == (5 * 52, 2 * 52)
    assert len({item.id for item in [*dev, *test]}) == 7 * 52
    assert (test[1].id, test[1].answer) == ("c_eval/accountant/val-1", "B")
    assert "A. 选项A\nB. 选项B\n" in test[1].prompt


def test_a_secret_answer_of_c_eval_is_refused(c_eval: CEval) -> None:
    file = Path(c_eval.path or "") / "law" / "val.jsonl"
    write(file, [{"id": 0, "question": "q", **dict.fromkeys("ABCD", "p"), "answer": ""}])
    with pytest.raises(DatasetError, match=r"law/val\.jsonl, line 1: the answer is none of the choices"):
        c_eval.items("test")


@pytest.mark.parametrize("task", [MmluRedux(), CEval()])
def test_a_set_without_a_training_split_says_so(task: MultipleChoice) -> None:
    for ask in (task.items, task.count):
        with pytest.raises(DatasetError, match=rf"{task.name} has no train split; valid: dev, test"):
            ask("train")


def test_a_missing_subject_is_named(mmlu: MmluRedux) -> None:
    (Path(mmlu.path or "") / "virology" / "test.jsonl").unlink()
    with pytest.raises(DatasetError, match=r"the data file is missing; got '.*virology/test\.jsonl'"):
        mmlu.items("test")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (" B", "B"),
        ("B", "B"),
        ("(C).", "C"),
        ("**D**\n", "D"),
        ("The correct answer is B", "B"),
        ("The correct answer is B.", "B"),
        ("So the correct answer is: **A**\nBecause", "A"),
        ("The correct answer is (C) iron", "C"),
        ("The correct answer is:\n\nE. iron", "E"),
        ("The correct answer is B. Yes, the correct answer is B.", "B"),
        ("The correct answer is A. No: the correct answer is C.", None),
        ("The correct answer is A or B", None),
        ("The correct answer is A/B/C/D", None),
        ("The correct answer is A plant", None),
        ("The correct answer is Air", None),
        ("The correct answer is not B.", None),
        ("The correct answer is F", None),
        ("The correct answer is b", None),
        ("A or B", None),
        ("B iron", None),
        ("I think B", None),
        ("", None),
    ],
)
def test_only_a_stated_letter_is_an_answer(text: str, letter: str | None) -> None:
    assert OpenBookQA().extract(text) == letter


def test_the_answer_is_read_out_of_its_completion(arc: ArcChallenge) -> None:
    for item in arc.items("test"):
        assert arc.extract(arc.completion(item.answer)) == arc.extract(item.answer) == item.answer


def test_published_sizes_are_known_without_the_data() -> None:
    assert [ArcChallenge().count(split) for split in ("train", "dev", "test")] == [1119, 299, 1172]
    assert [OpenBookQA().count(split) for split in ("train", "dev", "test")] == [4957, 500, 500]
    assert [CEval().count(split) for split in ("dev", "test")] == [260, 1346]
    assert CEval(test_items=100).count("test") == 100
    assert MmluRedux(test_items=100).count("dev") == 200


C_EVAL_ROW = {"id": 0, "question": "q", **dict.fromkeys("ABCD", "p"), "answer": "B"}


@pytest.mark.parametrize(
    ("task", "row", "asked"),
    [
        (OpenBookQA(), labelled("question_stem", 0), [("allenai/openbookqa", "main", "test")]),
        (ArcChallenge(), labelled("question", 0), [("allenai/ai2_arc", "ARC-Challenge", "test")]),
        (MmluRedux(dev_items=7), redux(), [("edinburgh-dawg/mmlu-redux-2.0", name, "test") for name in SUBJECTS]),
        (CEval(), C_EVAL_ROW, [("ceval/ceval-exam", name, "val") for name in CHINESE]),
    ],
)
def test_the_hub_is_asked_for_every_subset(
    monkeypatch: pytest.MonkeyPatch, task: MultipleChoice, row: Row, asked: list[tuple[str, str, str]]
) -> None:
    calls: list[Any] = []

    class Hub:
        @staticmethod
        def load_dataset(name: str, subset: str, *, split: str, revision: str) -> list[Row]:
            calls.append((name, subset, split))
            assert revision == "main"
            return [row]

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    assert len(task.items("test")) == len(asked) - (task.dev_items or 0)
    assert calls == asked


def test_a_bad_row_of_the_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        @staticmethod
        def load_dataset(*_: object, **__: object) -> list[Row]:
            return [ARC_ROWS[0], {**ARC_ROWS[1], "answerKey": "E"}]

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    with pytest.raises(DatasetError, match="allenai/ai2_arc ARC-Challenge test-1: answerKey is not the label"):
        ArcChallenge().items("test")


def test_content_is_the_rows_and_the_settings(arc: ArcChallenge, mmlu: MmluRedux) -> None:
    assert arc.content_id() == ArcChallenge(path=arc.path).content_id()
    assert len({t.content_id() for t in (arc, ArcChallenge(), ArcChallenge(revision="x"))}) == 3
    assert ArcChallenge(path=arc.path, test_items=3).content_id() != arc.content_id()
    before = mmlu.content_id()
    write(Path(mmlu.path or "") / "virology" / "test.jsonl", [redux()])
    assert mmlu.content_id() != before


def test_choices_are_compared_by_likelihood(arc: ArcChallenge, tiny_llama: tuple[Any, Any]) -> None:
    results = evaluate(arc, *tiny_llama, arc.items("test"), batch_size=4)
    assert [r.target for r in results] == ["B", "A", "D", "C", "E", "B"]
    assert all(r.prediction in "ABCDE" and r.correct == (r.prediction == r.target) for r in results)
    assert arc.metrics(results)["loss"] > 0


def test_the_letter_is_trained_on(arc: ArcChallenge, tiny_llama: tuple[Any, Any]) -> None:
    tokenizer = tiny_llama[1]
    [example] = arc.encode_training(tokenizer, arc.items("train")[:1])
    trained = [label for label in example.labels if label != -100]
    assert tokenizer.decode(trained[:-1]).strip() == "B"
    assert trained[-1] == tokenizer.eos_token_id
