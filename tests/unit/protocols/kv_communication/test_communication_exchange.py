"""From an item's prompt to what every model reads."""

from __future__ import annotations

from typing import Any

import pytest
from communication_models import read_as
from communication_single import completion_ids, exchange, rendered
from communication_tokenizers import MERGES, TEMPLATE, TRIMMING_TEMPLATE, byte_bpe, slow, unigram, words

from nullarm.errors import DatasetError, ModelError
from nullarm.protocols.kv_communication.communication.exchange import Exchange, Heard, exchanges, overheard
from nullarm.protocols.kv_communication.communication.rendering import all_completion_ids, all_rendered

PROMPT = "the cat sat"


def taken(heard: Heard, receiver_ids: list[int], receiver: Any, sharer: Any) -> list[tuple[str, str]]:
    """Fused tokens of the receiver with those they take."""
    read, own = sharer.convert_ids_to_tokens(heard.ids), receiver.convert_ids_to_tokens(receiver_ids)
    return [(token, read[i]) for token, i in zip(own, heard.source, strict=True) if i >= 0]


def test_with_one_tokeniser_positions_are_the_alignment_but_for_the_last() -> None:
    found = exchange(PROMPT, byte_bpe(), [byte_bpe(), byte_bpe()])
    n = len(found.receiver_ids)
    assert n > 2
    assert found.sharers == (Heard(found.receiver_ids, [*range(n - 1), -1]),) * 2
    assert found.sharers[0].wanted == list(range(n - 1))


def test_an_end_of_text_is_left_out() -> None:
    found = exchange(PROMPT, byte_bpe(adds="bos eos"), [byte_bpe(adds="bos eos")])
    assert found.receiver_ids == [1, *byte_bpe()(PROMPT)["input_ids"]]
    assert found.sharers[0].source[0] == 0


def test_equal_chat_templates_share_everything_others_only_the_message() -> None:
    receiver, sharer = byte_bpe(template=TEMPLATE), byte_bpe(MERGES[:2], template=TEMPLATE)
    same = exchange(PROMPT, receiver, [sharer], chat_template=True)
    assert -1 not in same.sharers[0].source[:-1]
    assert receiver.decode(same.receiver_ids) == f"<bos><user>{PROMPT}</><assistant>"

    other = byte_bpe(MERGES[:2], template=TRIMMING_TEMPLATE)
    differing = exchange(PROMPT, receiver, [other], chat_template=True)
    heard = differing.sharers[0]
    assert other.decode(heard.ids) == f"Be brief.\n[user]\n{PROMPT}\n[assistant]:"
    fused = "".join(token for token, _ in taken(heard, differing.receiver_ids, receiver, other))
    assert fused.replace("Ġ", " ") == PROMPT


@pytest.mark.parametrize("prompt", ["  the cat \n", "e", "user", "the cat [user]\ne", "{{ x }}"])
def test_the_message_is_found_where_a_template_puts_it_trimmed_or_not(prompt: str) -> None:
    for template in (TEMPLATE, TRIMMING_TEMPLATE):
        read = rendered(byte_bpe(template=template), prompt, chat_template=True)
        start, stop = read.message
        assert read.text[start:stop] == prompt.strip()
        assert read.text[:start].endswith(("<user>", "<user>  ", "[user]\n"))


def test_a_token_across_the_end_of_the_message_is_not_fused() -> None:
    receiver, sharer = byte_bpe(template=TEMPLATE), byte_bpe(template=TRIMMING_TEMPLATE)
    found = exchange("the cat\n\n", receiver, [sharer], chat_template=True)
    pairs = taken(found.sharers[0], found.receiver_ids, receiver, sharer)
    assert [token for token, _ in pairs] == ["the", "Ġcat"]


def test_thinking_is_switched_off_where_the_template_knows_of_it() -> None:
    read = rendered(byte_bpe(template=TRIMMING_TEMPLATE), PROMPT, chat_template=True)
    assert "<think>" not in read.text


def test_one_id_alignment_runs_the_sharer_on_an_id_for_each_token() -> None:
    receiver, sharer = words(), byte_bpe(MERGES[:2])
    found = exchange(PROMPT, receiver, [sharer, receiver], alignment="one_id")
    assert found.sharers[0].source == found.sharers[1].source == [0, 1, -1]
    assert sharer.convert_ids_to_tokens(found.sharers[0].ids) == ["he", "at", "at"]
    assert found.sharers[1].ids == found.receiver_ids


def test_a_model_without_a_chat_template_is_named() -> None:
    tokenizer = byte_bpe()
    tokenizer.name_or_path = "some/base-model"
    with pytest.raises(ModelError, match=r"no chat template; got 'some/base-model'; valid: `chat_template: false`"):
        exchange(PROMPT, byte_bpe(template=TEMPLATE), [tokenizer], chat_template=True)


def test_a_template_that_does_not_render_or_changes_the_message_is_refused() -> None:
    with pytest.raises(ModelError, match=r"does not render: no users"):
        rendered(byte_bpe(template="{{ raise_exception('no users') }}"), PROMPT, chat_template=True)
    tokenizer = byte_bpe(template="hello")
    tokenizer.name_or_path = "some/model"
    with pytest.raises(ModelError, match="leaves the user's message out; got 'some/model'"):
        rendered(tokenizer, PROMPT, chat_template=True)


@pytest.mark.parametrize("template", ["{{ messages[0].content | upper }}", "{{ messages[0].content.split('sat')[0] }}"])
def test_a_template_that_changes_one_message_refuses_that_one(template: str) -> None:
    tokenizer = byte_bpe(template=template)
    assert rendered(tokenizer, "A CA ", chat_template=True).ids
    with pytest.raises(DatasetError, match="does not keep the user's message as it is; got 'the cat sat'"):
        rendered(tokenizer, PROMPT, chat_template=True)


LLAMA_DATE = (
    "{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    "        {%- set date_string = strftime_now('%d %b %Y') %}\n    {%- else %}\n"
    "        {%- set date_string = 'never' %}\n    {%- endif %}\n{%- endif %}\n"
    "{{- 'Today: ' + date_string + '\n' }}"
)


@pytest.mark.parametrize(
    ("beginning", "told"),
    [
        (LLAMA_DATE, "Today: 26 Jul 2024\n"),
        ("{%- set today = strftime_now('%Y-%m-%d') %}{{ today }} ", "2024-07-26 "),
        ("{{ strftime_now('%A, %d %B %Y, %H:%M') | upper }}!", "FRIDAY, 26 JULY 2024, 00:00!"),
        ("{%- macro now() %}{{ strftime_now('%d') }}{% endmacro %}{{ now() }}{% for m in messages %}"
         "{{ strftime_now('%m') }}{% endfor %} ", "2607 "),
    ],
)  # fmt: skip
def test_it_is_the_same_day_in_every_chat_template(beginning: str, told: str) -> None:
    read = rendered(byte_bpe(template=beginning + TEMPLATE), PROMPT, chat_template=True)
    assert read.text == f"{told}<bos><user>{PROMPT}</><assistant>"


@pytest.mark.parametrize(
    "beginning", ["", "\n", "\n\n ", "  {% if true %}\n  x{% endif %}\n", "{%- if true %} y{% endif %}"]
)
def test_stopping_the_clock_changes_nothing_else(beginning: str) -> None:
    tokenizer = byte_bpe(template=beginning + TEMPLATE)
    own = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], tokenize=False, add_generation_prompt=True
    )
    assert rendered(tokenizer, PROMPT, chat_template=True).text == own


def test_of_several_chat_templates_the_default_is_taken() -> None:
    tokenizer = byte_bpe()
    tokenizer.chat_template = {"default": TEMPLATE, "rag": "rag"}
    assert rendered(tokenizer, PROMPT, chat_template=True).text.startswith("<bos><user>")


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(DatasetError, match="a prompt has no tokens; got ' '"):
        exchange(" ", words(), [words()])


def test_a_slow_tokeniser_beside_another_is_refused() -> None:
    with pytest.raises(ModelError, match="which only fast ones tell"):
        exchange(PROMPT, byte_bpe(), [slow()])


def test_a_sharer_token_that_several_receiver_tokens_take_is_wanted_once() -> None:
    assert Heard([5] * 6, [-1, 0, 2, 2, 5, 1, -1]).wanted == [0, 1, 2, 5]
    assert Heard([5], [-1]).wanted == []


def test_overhearing_keeps_the_receiver_and_clamps_to_the_other_items_length() -> None:
    own = Exchange(read_as([1, 2, 3, 4]), (Heard([5, 6, 7, 8], [0, -1, 2, -1]),))
    other = Exchange(read_as([9, 9]), (Heard([10, 11], [0, -1]),))
    assert overheard(own, other) == Exchange(read_as([1, 2, 3, 4]), (Heard([10, 11], [0, -1, 1, -1]),))
    assert overheard(other, own).sharers == (Heard([5, 6, 7, 8], [0, -1]),)


PROMPTS = [PROMPT, "a", "the 😀 é", "sat  the\n\ncat"]


@pytest.mark.parametrize("chat_template", [False, True])
@pytest.mark.parametrize("alignment", ["offsets", "one_id"])
def test_many_prompts_are_read_as_each_by_itself(chat_template: bool, alignment: Any) -> None:
    receiver = byte_bpe(adds="bos eos", template=TEMPLATE)
    sharers = [byte_bpe(MERGES[:3], trim=True, template=TRIMMING_TEMPLATE), receiver]
    options: Any = {"chat_template": chat_template, "answer_prefix": "It is", "alignment": alignment}
    each = [exchange(prompt, receiver, sharers, **options) for prompt in PROMPTS]
    assert exchanges(PROMPTS, receiver, sharers, **options) == each
    assert len({len(e.receiver_ids) for e in each}) > 1


@pytest.mark.parametrize("chat_template", [False, True])
def test_each_prompt_has_its_own_earlier_turns(chat_template: bool) -> None:
    tokenizer = byte_bpe(template=TEMPLATE)
    turns = [[("user", f"of {p}"), ("assistant", "a")] for p in PROMPTS] if chat_template else [[] for _ in PROMPTS]
    each = [rendered(tokenizer, p, chat_template=chat_template, earlier=t) for p, t in zip(PROMPTS, turns, strict=True)]
    assert all_rendered(tokenizer, PROMPTS, chat_template=chat_template, earlier=turns) == each


@pytest.mark.parametrize(
    ("tokenizer", "chat_template"),
    [
        (byte_bpe(adds="bos eos", template=TEMPLATE), False), (byte_bpe(template=TEMPLATE), True),
        (byte_bpe([]), False), (unigram(), False), (slow(), False),
    ],
)  # fmt: skip
def test_many_completions_are_those_of_each_by_itself(tokenizer: Any, chat_template: bool) -> None:
    read = [rendered(tokenizer, prompt, chat_template=chat_template) for prompt in ["the c", "the"]]
    pairs = [(prompt, completion) for prompt in read for completion in (" cat", "at", " the cat")]
    assert all_completion_ids(tokenizer, pairs) == [completion_ids(tokenizer, *pair) for pair in pairs]


def test_a_completion_follows_the_prompt_in_one_tokenisation() -> None:
    tokenizer = byte_bpe(adds="bos eos")
    prompt = rendered(tokenizer, "the", chat_template=False)
    ids = completion_ids(tokenizer, prompt, " cat")
    assert tokenizer.convert_ids_to_tokens(ids) == ["Ġcat"]
    assert prompt.ids + ids == tokenizer("the cat")["input_ids"][:-1]


def test_a_completion_that_would_change_the_prompts_tokens_is_tokenised_alone() -> None:
    tokenizer = byte_bpe()
    prompt = rendered(tokenizer, "the c", chat_template=False)
    assert tokenizer.convert_ids_to_tokens(completion_ids(tokenizer, prompt, "at")) == ["at"]


def test_behind_a_template_a_completion_has_no_leading_space() -> None:
    tokenizer = byte_bpe(template=TEMPLATE)
    ids = completion_ids(tokenizer, rendered(tokenizer, "the", chat_template=True), " cat")
    assert tokenizer.decode(ids) == "cat"


def test_a_completion_without_tokens_is_refused() -> None:
    tokenizer = words()
    with pytest.raises(DatasetError, match="a completion has no tokens of its own; got ' '"):
        completion_ids(tokenizer, rendered(tokenizer, "the", chat_template=False), " ")
