import random
import re

import pytest

from nullarm.models.tiny.world import SKILLS, World, WorldKnobs, with_distractors


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def documents(world: World, n: int) -> list[str]:
    rng = random.Random(0)
    return [world.document(rng) for _ in range(n)]


def test_a_world_follows_from_its_seed(world: World) -> None:
    assert World().facts == world.facts
    assert World(WorldKnobs(seed=1)).facts != world.facts


def test_names_are_distinct(world: World) -> None:
    names = [*world.people, *world.cities]
    assert len(names) == len(set(names)) == 60


def test_held_out_people_and_sums_are_apart_from_the_others(world: World) -> None:
    assert len(world.people_heldout) == 12
    assert set(world.people_heldout) | set(world.people_asked) == set(world.people)
    assert not set(world.people_heldout) & set(world.people_asked)
    assert len(world.sums_heldout) == 60
    assert not set(world.sums_heldout) & set(world.sums_seen)


def test_documents_state_held_out_people_but_never_ask_about_them(world: World) -> None:
    text = documents(world, 4000)
    for person in world.people_heldout:
        about = [d for d in text if person in d]
        assert about
        assert not any("Question" in d for d in about)


def test_no_document_has_a_held_out_sum(world: World) -> None:
    pairs = {(int(a), int(b)) for d in documents(world, 4000) for a, b in re.findall(r"(\d+) \+ (\d+)", d)}
    assert len(pairs) > 300
    assert not pairs & set(world.sums_heldout)


def test_statements_agree_with_the_facts(world: World) -> None:
    stated = [
        re.fullmatch(r"(\w+) lives in (\w+)\.", s) for d in documents(world, 500) for s in re.split(r"(?<=\.) ", d)
    ]
    found = [m for m in stated if m]
    assert found
    assert all(world.facts[m[1]]["city"] == m[2] for m in found)


@pytest.mark.parametrize("skill", SKILLS)
def test_a_question_has_four_choices_with_the_answer_among_them(world: World, skill: str) -> None:
    rng = random.Random(1)
    for _ in range(50):
        question = world.question(skill, rng, heldout=True)
        assert len(set(question.choices)) == 4
        assert question.answer in question.choices
        assert question.prompt.endswith(f"Question: {question.text} Answer:")


def test_answers_are_right(world: World) -> None:
    rng = random.Random(2)
    for _ in range(30):
        a, b = re.findall(r"\d+", (added := world.question("add", rng)).text)
        assert int(added.answer) == int(a) + int(b)
        reversed_ = world.question("reverse", rng)
        assert f"letters {' '.join(reversed(reversed_.answer.split()))}." in reversed_.text
        found = world.question("lookup", rng)
        assert f" {found.answer}." in found.context


def test_every_position_of_the_answer_occurs(world: World) -> None:
    rng = random.Random(3)
    places = {q.choices.index(q.answer) for q in (world.question("fact", rng) for _ in range(100))}
    assert places == {0, 1, 2, 3}


def test_a_warm_start_document_restates_every_pair(world: World) -> None:
    rng = random.Random(4)
    for _ in range(20):
        pairs = re.findall(r"(\w+ \w+)\.", world.warm_start_document(rng))
        counts = {pair: pairs.count(pair) for pair in pairs}
        assert len(counts) in (3, 4)
        assert set(counts.values()) == {5 if len(counts) == 3 else 4}


def test_distractors_come_from_the_pool() -> None:
    choices = with_distractors("a", ["a", "b", "c", "d", "e"], random.Random(0))
    assert len(set(choices)) == 4
    assert "a" in choices
