from __future__ import annotations

from collections import Counter

import pytest

from llmkit.data.examples import LabelledText, Preference
from llmkit.data.python_objects import PythonObject
from llmkit.data.tasks.chat import mix
from llmkit.data.tasks.classify import LABELS, classify_candidates, mask_name, text_of
from llmkit.data.tasks.preferences import CORRUPTIONS, preference_candidates
from llmkit.store.splits import Splits, split_of

FRACTIONS = Splits(validation=0.1, test=0.1)


def name_of(item: PythonObject) -> str:
    return item.name


def pairs_of(
    objects: list[PythonObject], corruptions: tuple[str, ...], pairs: int, **weights: float
) -> list[Preference]:
    candidates = preference_candidates(
        mix(objects, weights, 3), corruptions, pairs, name_of, lambda group: split_of(group, FRACTIONS)
    )
    return [found.example for found in candidates if isinstance(found.example, Preference)]


def test_every_pair_is_spoiled_as_it_says(objects: list[PythonObject]) -> None:
    found = pairs_of(objects[::5], CORRUPTIONS, 5, describe=1, words=1, module=1)
    assert set(CORRUPTIONS) == {pair.metadata["corruption"] for pair in found}
    for pair in found:
        chosen, rejected = pair.chosen.split(), pair.rejected.split()
        assert rejected and pair.rejected != pair.chosen
        if pair.metadata["corruption"] == "shuffled":
            assert Counter(chosen) == Counter(rejected)
        elif pair.metadata["corruption"] == "truncated":
            assert chosen[: len(rejected)] == rejected and len(rejected) <= len(chosen) / 2
        elif pair.metadata["corruption"] == "repeated":
            assert set(chosen) == set(rejected) and len(rejected) > len(chosen)


def test_another_answer_comes_from_the_same_split_and_kind(objects: list[PythonObject]) -> None:
    kinds = {item.name: item.kind for item in objects}
    found = pairs_of(objects, ("other",), 1, describe=1)
    owners = {one.question.answer: one.item.name for one in mix(objects, {"describe": 1}, 3) if one.question}
    assert len(found) > 4000
    for pair in found:
        other, mine = owners[pair.rejected], pair.metadata["object"]
        assert split_of(other, FRACTIONS) == split_of(mine, FRACTIONS)
        assert kinds[other] == kinds[mine]


def test_pairs_are_as_many_as_wanted_and_do_not_depend_on_the_other_settings(objects: list[PythonObject]) -> None:
    some = objects[::7]
    one = {pair.metadata["object"]: pair for pair in pairs_of(some, CORRUPTIONS, 1, describe=1)}
    three = pairs_of(some, CORRUPTIONS, 3, describe=1)
    counts = Counter(pair.metadata["object"] for pair in three)
    assert set(counts) == set(one)
    assert counts.most_common(1)[0][1] == 3
    assert [pair for pair in three if pair in one.values()] == [one[name] for name in dict.fromkeys(
        pair.metadata["object"] for pair in three)]  # fmt: skip


def test_answers_that_cannot_be_spoiled_are_counted(objects: list[PythonObject]) -> None:
    asked = mix(objects[::9], {"kind": 1}, 1)
    found = preference_candidates(asked, ("truncated",), 1, name_of, lambda _: "train")
    assert not [one for one in found if one.example is not None]
    assert "answer cannot be spoiled in these ways" in {one.reason for one in found}


def test_texts_are_prose_without_doctests_and_fields() -> None:
    docstring = "Return ``x``.\n\n>>> f(1)\n2\n\nMore:\n\n.. note:: careful\n:param x: y\n-----\nThe end of it."
    assert text_of(docstring, 50) == "Return x. More: The end of it."
    assert text_of(docstring, 3) == "Return x. More:"


def test_the_name_of_the_package_is_masked_wherever_it_is_a_word() -> None:
    text = "Email of email.message; emails, EMAIL_POLICY and e-mail"
    assert mask_name(text, "email") == "module of module.message; emails, module_POLICY and e-mail"


@pytest.mark.parametrize("preset", LABELS)
def test_classes_are_balanced_and_their_texts_are_distinct(objects: list[PythonObject], preset: str) -> None:
    labels = LABELS[preset]
    candidates = classify_candidates(objects, name_of, labels, per_label=200, max_words=40, mask_names=True)
    assert len(candidates) == len(objects)
    rows = [found.example for found in candidates if isinstance(found.example, LabelledText)]
    counts = Counter(row.label for row in rows)
    assert set(counts) == set(labels)
    assert max(counts.values()) <= 200 and min(counts.values()) > 80
    assert max(counts.values()) / len(rows) < 0.2
    assert len({row.text for row in rows}) == len(rows)
    packages = {item.name: item.package for item in objects}
    for row in rows:
        package = packages[str(row.metadata["object"])]
        assert package in labels[row.label]
        assert package not in row.text.lower().replace("_", " ").split()
        assert 5 <= len(row.text.split()) <= 40


@pytest.mark.parametrize("preset", LABELS)
def test_a_package_has_one_label(preset: str) -> None:
    packages = [package for members in LABELS[preset].values() for package in members]
    assert len(packages) == len(set(packages))
