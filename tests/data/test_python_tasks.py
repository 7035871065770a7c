from __future__ import annotations

import re
from collections import Counter
from typing import get_args

import pytest

from llmkit.data.examples import Conversation
from llmkit.data.examples_config import ChatTaskName
from llmkit.data.python_objects import PythonObject
from llmkit.data.tasks.chat import CHAT_TASKS, ask, chat_candidates, mix, parameter_names
from llmkit.data.tasks.prose import first_sentence, plain


def thing(name: str, kind: str = "function", signature: str = "", docstring: str = "") -> PythonObject:
    module = name.rpartition(".")[0] if kind != "module" else name
    if kind == "method":
        module = module.rpartition(".")[0]
    return PythonObject(name, kind, module, name.partition(".")[0], signature, docstring, 1)


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Remove common leading whitespace.", "Remove common leading whitespace."),
        ("Return the value\nof a key.  More text.", "Return the value of a key."),
        ("return the key\n\nMore.", "Return the key."),
        ("Wrap ``text`` like :class:`~a.B` and `c`_ do.", "Wrap text like a.B and c do."),
        ("Add *item* to the list (e.g. at its end). Then stop.", "Add item to the list (e.g. at its end)."),
        ("Debug a script. src is the script.", "Debug a script."),
        ("Is it a file?  Or not?", "Is it a file?"),
        ("Open the file:\n - a path\n - a mode", None),
        ("Short.", None),
        (">>> f(1)\n2", None),
        ("one two three four five six seven eight nine ten 11 12 13 14 15 16 17", None),
        ("name -- what it is for here", None),
        ("Return (unbalanced brackets here.", None),
        ("Café is not plain ASCII.", None),
        (":param x: the value of x", None),
        ("", None),
    ],
)
def test_first_sentences(docstring: str, sentence: str | None) -> None:
    assert first_sentence(docstring) == sentence


def test_markup_becomes_plain_words() -> None:
    text = "See `the docs <https://x.y>`_ of :meth:`run`, **never** ``a_b``,\n  nor `this'."
    assert plain(text) == "See the docs of run, never a_b, nor 'this'."


@pytest.mark.parametrize(
    ("signature", "names"),
    [
        ("(a, b=1, *rest, c, **more)", ["a", "b", "rest", "c", "more"]),
        ("(x, /, y)", ["x", "y"]),
        ("(f=lambda a, b: 0)", ["f"]),
        ("()", []),
        ("(broken", []),
        ("", []),
    ],
)
def test_parameter_names(signature: str, names: list[str]) -> None:
    assert parameter_names(signature) == names


ANSWERS = {
    "describe": [(thing("a.f", docstring="Do the thing well."), "Do the thing well.")],
    "brief": [(thing("a.f", docstring="Do the thing well."), "Do the thing well.")],
    "kind": [(thing("a.C", "class"), "class"), (thing("a.b", "module"), "module")],
    "module": [(thing("a.b.f"), "a.b"), (thing("a.C.f", "method"), "a")],
    "words": [(thing("a.move_to_end"), "move-to-end")],
    "parameters": [(thing("a.f", signature="(x, y=1)"), "x, y")],
    "arity": [(thing("a.f", signature="(x, y=1)"), "2")],
}


@pytest.mark.parametrize("task", CHAT_TASKS)
def test_answers(task: str) -> None:
    for item, answer in ANSWERS[task]:
        (one,) = ask([item], task, 4)
        assert one.question is not None
        assert one.question.answer == answer
        assert one.question.subject in one.prompt and "{" not in one.prompt
        assert answer not in one.question.mistakes
    assert "in 4 words" in ask([thing("a.f", docstring="Do the thing well.")], "brief", 1)[0].prompt


def test_objects_that_cannot_be_asked_about_say_why() -> None:
    reasons = {
        "describe": (thing("a.f"), "no docstring"),
        "brief": (thing("a.f", docstring="One two three four five six seven eight nine ten 11 12 13."), "more than 12"),
        "kind": (thing("a.C.x", "property"), "a property"),
        "module": (thing("a", "module"), "a module itself"),
        "words": (thing("a.moveToEnd"), "without underscores"),
        "parameters": (thing("a.f", signature="()"), "no parameters"),
        "arity": (thing("a.f", signature=f"(x='{'y' * 60}')"), "more than 60 characters"),
    }
    for task, (item, reason) in reasons.items():
        (one,) = ask([item], task, 1)
        assert one.question is None
        assert reason in one.reason


def test_the_settings_know_every_task() -> None:
    assert set(get_args(ChatTaskName)) == set(CHAT_TASKS)


def test_objects_that_share_an_answer_give_one_question_and_the_same_one_in_every_task() -> None:
    twins = [thing(f"a.f{index}", docstring=f"Do thing number {index // 2}.") for index in range(40)]
    kept = {task: {one.item.name for one in ask(twins, task, 2) if one.question} for task in ("describe", "brief")}
    assert len(kept["describe"]) == 20
    assert kept["describe"] == kept["brief"]


def test_questions_do_not_depend_on_the_order_of_objects_or_on_each_other(objects: list[PythonObject]) -> None:
    some = objects[::50]
    for task in CHAT_TASKS:
        assert ask(some, task, 3) == ask(some[::-1], task, 3)
    alone = {one.id: one.prompt for one in ask(objects, "describe", 3) if one.question}
    together = {one.id: one.prompt for one in mix(objects, {"describe": 1, "kind": 2}, 3) if one.question}
    assert all(alone[name] == prompt for name, prompt in together.items() if name in alone)


@pytest.mark.parametrize(("task", "least"), [(task, 2000) for task in CHAT_TASKS])
def test_the_installed_python_gives_enough_clean_questions(objects: list[PythonObject], task: str, least: int) -> None:
    asked = [one for one in ask(objects, task, 4) if one.question is not None]
    assert len(asked) > least
    prompts = Counter(one.prompt for one in asked)
    assert max(prompts.values()) == 1
    for one in asked:
        assert one.question is not None
        assert one.question.answer == one.question.answer.strip() != ""
        assert not re.search(r"[\n\t]|>>>|``|:class:", one.prompt + one.question.answer)
    answers = Counter(one.question.answer for one in asked if one.question)
    assert answers.most_common(1)[0][1] < 0.42 * len(asked)


def test_a_mixture_has_its_weights_and_repeats_nothing(objects: list[PythonObject]) -> None:
    mixed = mix(objects, {"describe": 1.0, "module": 0.5}, 2)
    counts = Counter(one.task for one in mixed if one.question)
    assert counts["module"] == round(counts["describe"] / 2)
    assert counts["describe"] == len([one for one in ask(objects, "describe", 2) if one.question])
    assert len(mixed) == 2 * len(objects)
    first = Counter(one.task for one in [one for one in mixed if one.question][:600])
    assert 350 < first["describe"] < 450


def test_candidates_carry_the_group_and_the_task() -> None:
    items = [thing("a.b.f", docstring="Do the thing well."), thing("a.b.g")]
    kept, dropped = sorted(chat_candidates(ask(items, "describe", 1), lambda item: item.module), key=lambda c: c.reason)
    assert (kept.group, kept.task, dropped.example, dropped.reason) == ("a.b", "describe", None, "no docstring")
    assert kept.example == Conversation(
        "describe:a.b.f",
        [{"role": "user", "content": "What does `a.b.f` do?"}, {"role": "assistant", "content": "Do the thing well."}],
        "describe",
        {"object": "a.b.f"},
    )
