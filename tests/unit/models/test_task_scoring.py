from collections.abc import Sequence
from typing import Any

import pytest
import torch

from nullarm.models.tasks.base import IGNORED, Item, ItemResult, accuracy_and_loss
from nullarm.models.tasks.encoding import Limits, encode_example, encode_pair, encode_prompt
from nullarm.models.tasks.evaluate import evaluate, evaluation_mode
from nullarm.models.tasks.scoring import generate, log_likelihoods, score_choices, score_generation
from nullarm.models.tasks.world_relations import WorldRelations

PROMPTS = ["Question: What is 2 + 3? Answer:", "Question: Copy the letters a b c d e. Answer:", "cat"]


def items(n: int = 12) -> list[Item]:
    return WorldRelations(dev_items=n).items("dev")


def test_prompt_and_completion_meet_at_the_end_of_the_prompt(world_model: tuple[Any, Any]) -> None:
    tokenizer = world_model[1]
    given, wanted, cut = encode_pair(tokenizer, PROMPTS[0], " 5.")
    assert tokenizer.decode(given) == PROMPTS[0]
    assert tokenizer.decode(wanted) == " 5."
    assert not cut


def test_loss_is_on_the_response_and_the_end_of_text_only(world_model: tuple[Any, Any]) -> None:
    tokenizer = world_model[1]
    example = encode_example(tokenizer, PROMPTS[0], " 5.")
    trained = [label for label in example.labels if label != IGNORED]
    assert len(example.ids) == len(example.labels)
    assert example.ids[-1] == trained[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(trained[:-1]) == " 5."
    assert example.ids[-len(trained) :] == trained


def test_a_merge_across_the_boundary_is_trained_on_whole() -> None:
    tokenizer = FakeTokenizer({"ab": [1, 2], "abc": [1, 9]})
    assert encode_pair(tokenizer, "ab", "c") == ([1], [9], False)


def test_a_beginning_token_stays_and_an_added_end_goes() -> None:
    tokenizer = FakeTokenizer({"long": [7, 1, 2, 3, 4, 0]}, bos=7)
    assert encode_prompt(tokenizer, "long") == [7, 1, 2, 3, 4]
    assert encode_prompt(tokenizer, "long", Limits(prompt=3)) == [7, 3, 4]
    assert encode_prompt(FakeTokenizer({"long": [7, 1, 2, 3, 4]}), "long", Limits(prompt=3)) == [2, 3, 4]


def test_a_completion_that_was_cut_does_not_end_the_text() -> None:
    tokenizer = FakeTokenizer({"p": [1], "pxyz": [1, 2, 3, 4]})
    assert encode_example(tokenizer, "p", "xyz", Limits(completion=2)).ids == [1, 2, 3]
    assert encode_example(tokenizer, "p", "xyz", Limits(completion=3)).ids == [1, 2, 3, 4, 0]


def test_a_completion_without_tokens_is_refused(world_model: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="has no tokens of its own"):
        encode_pair(world_model[1], "cat", "")


def test_likelihood_is_the_model_s_own_loss(world_model: tuple[Any, Any]) -> None:
    model, tokenizer = world_model
    example = encode_example(tokenizer, PROMPTS[1], " a b")
    given, wanted, _ = encode_pair(tokenizer, PROMPTS[1], " a b")
    with torch.no_grad():
        ids, labels = torch.tensor([example.ids[:-1]]), torch.tensor([example.labels[:-1]])
        loss = model(input_ids=ids, labels=labels).loss.item()
        value = log_likelihoods(model, [(given, wanted)], 1)[0]
    assert -value / len(wanted) == pytest.approx(loss, abs=1e-5)


def test_likelihoods_do_not_depend_on_the_batch(world_model: tuple[Any, Any]) -> None:
    model, tokenizer = world_model
    pairs = [encode_pair(tokenizer, p, c)[:2] for p in PROMPTS for c in (" 5.", " a b c d e.")]
    with torch.no_grad():
        alone, together = (log_likelihoods(model, pairs, size) for size in (1, 6))
    assert together == pytest.approx(alone, abs=1e-4)


def test_generation_does_not_depend_on_the_batch(world_model: tuple[Any, Any]) -> None:
    model, tokenizer = world_model
    prompts = [encode_prompt(tokenizer, p) for p in PROMPTS]
    alone, together = (generate(model, tokenizer, prompts, max_new_tokens=8, batch_size=size) for size in (1, 3))
    assert alone == together
    assert alone[0].startswith(" 5.")
    assert alone[1].startswith(" a b c d")


def test_generation_is_the_model_s_greedy_continuation(world_model: tuple[Any, Any]) -> None:
    model, tokenizer = world_model
    ids = encode_prompt(tokenizer, PROMPTS[2])
    grown = list(ids)
    with torch.no_grad():
        for _ in range(6):
            grown.append(int(model(input_ids=torch.tensor([grown])).logits[0, -1].argmax()))
    expected = tokenizer.decode(grown[len(ids) :]).split("<|endoftext|>")[0]
    assert generate(model, tokenizer, [ids], max_new_tokens=6, batch_size=1) == [expected]


def test_the_likeliest_choice_is_the_prediction(world_model: tuple[Any, Any]) -> None:
    model, tokenizer = world_model
    asked = [
        Item("a", "Question: What is 2 + 3? Answer:", "5", ("4", "5", "6", "7"), "sum"),
        Item("b", "Question: What is 2 + 3? Answer:", "6", ("4", "5", "6", "7")),
    ]
    with torch.no_grad():
        right, wrong = score_choices(model, tokenizer, asked, completion=lambda c: f" {c}.", batch_size=3)
    assert (right.item_id, right.cluster, right.correct, right.score) == ("a", "sum", True, 1.0)
    assert (wrong.correct, wrong.score, wrong.prediction, wrong.target) == (False, 0.0, "5", "6")
    assert right.loss < wrong.loss


def test_results_come_in_the_order_of_the_items(world_model: tuple[Any, Any]) -> None:
    task, asked = WorldRelations(), items()
    forwards = evaluate(task, *world_model, asked, batch_size=7)
    backwards = evaluate(task, *world_model, asked[::-1], batch_size=5)
    assert [r.item_id for r in forwards] == [i.id for i in asked]
    assert [r.item_id for r in backwards] == [i.id for i in asked[::-1]]
    for a, b in zip(forwards, backwards[::-1], strict=True):
        assert (a.correct, a.prediction) == (b.correct, b.prediction)
        assert a.loss == pytest.approx(b.loss, abs=1e-4)


def test_exact_match_compares_what_is_extracted(world_model: tuple[Any, Any]) -> None:
    model, tokenizer = world_model
    asked = [Item("a", PROMPTS[0], "5."), Item("b", PROMPTS[0], "6."), Item("c", PROMPTS[1], "?")]
    with torch.no_grad():
        results = score_generation(
            model, tokenizer, asked, completion=lambda a: f" {a}", extract=digits, max_new_tokens=4, batch_size=2
        )
    assert [r.correct for r in results] == [True, False, False]
    assert [r.prediction for r in results[:2]] == ["5", "5"]
    assert results[2].prediction.startswith("a b")  # nothing to extract: the text itself is shown
    assert results[2].target == ""
    assert results[0].loss < results[1].loss


def test_evaluation_leaves_modes_and_gradients_as_they_were(tiny_llama: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_llama
    model.train()
    model.lm_head.eval()
    before = [m.training for m in model.modules()]
    try:
        evaluate(WorldRelations(), model, tokenizer, items(3), batch_size=4)
        assert [m.training for m in model.modules()] == before
        assert torch.is_grad_enabled()
        assert all(p.grad is None for p in model.parameters())
    finally:
        model.eval()


def test_modes_are_put_back_after_an_error(tiny_llama: tuple[Any, Any]) -> None:
    model = tiny_llama[0].train()
    with pytest.raises(KeyError), evaluation_mode(model):
        raise KeyError
    assert model.training
    with evaluation_mode(model):
        assert not model.training
    model.eval()


def test_nothing_has_no_accuracy() -> None:
    with pytest.raises(ValueError, match="no results"):
        accuracy_and_loss([])


def test_accuracy_and_loss_are_means() -> None:
    results = [ItemResult("a", None, True, 1.0, 1.0, "", ""), ItemResult("b", None, False, 3.0, 0.0, "", "")]
    assert accuracy_and_loss(results) == {"accuracy": 0.5, "loss": 2.0}


def digits(text: str) -> str | None:
    return "".join(c for c in text if c.isdigit()) or None


class FakeTokenizer:
    """Answers from a table."""

    eos_token_id = 0

    def __init__(self, table: dict[str, Sequence[int]], bos: int | None = None) -> None:
        self.table, self.bos_token_id = table, bos

    def __call__(self, text: str) -> dict[str, Sequence[int]]:
        return {"input_ids": self.table[text]}
