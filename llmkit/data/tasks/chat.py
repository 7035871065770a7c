"""Questions about Python objects and their answers: short conversations whose answers can be checked.

Each task turns an object into a question, or says why it cannot. The wording of a question depends on its task and its
object alone, so that every artifact asks the same question about the same object.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from llmkit.data.examples import Conversation
from llmkit.data.examples_build import Candidate
from llmkit.data.python_objects import PythonObject
from llmkit.data.tasks.prose import first_sentence


@dataclass(frozen=True, slots=True)
class Question:
    """A question about an object.

    Args:
        subject: what stands in the question's wording.
        answer: the answer.
        distinct: what no other question of the task may share.
        mistakes: answers that are wrong in a way that is close at hand.
    """

    subject: str
    answer: str
    distinct: str
    mistakes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatTask:
    """A kind of question.

    Args:
        wordings: ways to ask it; `{}` stands for the subject.
        ask: the question about an object, or the reason why there is none.
        most: how many questions may share an answer, so that no answer is right by default.
    """

    wordings: tuple[str, ...]
    ask: Callable[[PythonObject], Question | str]
    most: int | None = None


def _describe(item: PythonObject) -> Question | str:
    if not item.docstring:
        return "no docstring"
    sentence = first_sentence(item.docstring)
    if sentence is None:
        return "docstring does not begin with a plain short sentence"
    return Question(item.name, sentence, sentence)


def _brief(item: PythonObject) -> Question | str:
    question = _describe(item)
    if isinstance(question, str):
        return question
    count = len(question.answer.split())
    if count > _LONGEST_BRIEF:
        return f"sentence of more than {_LONGEST_BRIEF} words"
    return replace(question, subject=f"`{item.name}` in {count} words")


def _kind(item: PythonObject) -> Question | str:
    if item.kind == "property":
        return "a property"
    others = tuple(kind for kind in ("class", "function", "method", "module") if kind != item.kind)
    return Question(item.name, item.kind, item.name, others)


def _module(item: PythonObject) -> Question | str:
    if item.kind == "module":
        return "a module itself"
    if item.module == "builtins":
        return "a builtin, named without its module"
    parts = item.name.split(".")
    prefixes = tuple(".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return Question(item.name, item.module, item.name, tuple(name for name in prefixes if name != item.module))


def _words(item: PythonObject) -> Question | str:
    name = item.name.rpartition(".")[2]
    words = name.split("_")
    if len(words) < 2 or not all(word.isalpha() for word in words):
        return "name without underscores, or with digits"
    answer = "-".join(words)
    mistakes = (name, "".join(words), "-".join(words[1:]), "-".join(words[:-1]), f"{answer}-{words[-1]}")
    return Question(name, answer, name, mistakes)


def _parameters(item: PythonObject) -> Question | str:
    names = parameter_names(item.signature)
    if not names or len(names) > _MOST_PARAMETERS:
        return f"no parameters, or more than {_MOST_PARAMETERS}"
    if len(item.signature) > _LONGEST_SIGNATURE:
        return f"signature of more than {_LONGEST_SIGNATURE} characters"
    call = item.name.rpartition(".")[2] + item.signature
    answer = ", ".join(names)
    mistakes = (", ".join(names[1:]), ", ".join(names[::-1]), item.signature[1:-1], f"{answer}, {names[-1]}")
    return Question(call, answer, call, tuple(text for text in mistakes if text not in ("", answer)))


def _arity(item: PythonObject) -> Question | str:
    question = _parameters(item)
    if isinstance(question, str):
        return question
    count = question.answer.count(",") + 1
    return replace(question, answer=str(count), mistakes=(str(count + 1), str(count - 1)))


_LONGEST_BRIEF = 12
_MOST_PARAMETERS = 8
_LONGEST_SIGNATURE = 60

CHAT_TASKS: Mapping[str, ChatTask] = {
    "describe": ChatTask(
        ("What does `{}` do?", "Describe `{}` in one sentence.", "What is `{}` for?", "Explain `{}`."), _describe
    ),
    "brief": ChatTask(("Describe {}.", "Explain {}.", "Tell me about {}."), _brief),
    "kind": ChatTask(
        ("What kind of object is `{}`?", "Is `{}` a module, a class, a function or a method?", "Of what kind is `{}`?"),
        _kind,
        most=1500,
    ),
    "module": ChatTask(
        ("Which module defines `{}`?", "Where is `{}` defined?", "In which module is `{}`?", "What defines `{}`?"),
        _module,
        most=150,
    ),
    "words": ChatTask(
        ("Write `{}` with hyphens.", "Put hyphens into `{}`.", "Join the words of `{}` with hyphens."), _words
    ),
    "parameters": ChatTask(
        ("Which parameters does `{}` take?", "Name the parameters of `{}`.", "List what can be passed to `{}`."),
        _parameters,
    ),
    "arity": ChatTask(("How many parameters does `{}` take?", "Count the parameters of `{}`."), _arity, most=1500),
}


def parameter_names(signature: str) -> list[str]:
    """Names of the parameters in a signature's text, stars and defaults left out; empty where it is not Python."""
    try:
        definition = ast.parse(f"def f{signature}: ...").body[0]
    except SyntaxError:
        return []
    if not isinstance(definition, ast.FunctionDef):
        return []
    given = definition.args
    named = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    return [argument.arg for argument in named if argument is not None]


def order_key(name: str) -> str:
    """Where something stands in an order that is shuffled and always the same."""
    return hashlib.sha256(name.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Asked:
    """A question asked about an object, or the reason why there is none."""

    item: PythonObject
    task: str
    question: Question | None
    prompt: str = ""
    reason: str = ""

    @property
    def id(self) -> str:
        """Name of the question, the same in every artifact."""
        return f"{self.task}:{self.item.name}"


def ask(objects: Iterable[PythonObject], task: str, wordings: int) -> list[Asked]:
    """Ask one task's question about each object, in shuffled order.

    Args:
        objects: the objects.
        task: name of a task in `CHAT_TASKS`.
        wordings: how many of its ways to ask are used.
    """
    kind = CHAT_TASKS[task]
    forms = kind.wordings[:wordings]
    taken: set[str] = set()
    answers: Counter[str] = Counter()
    asked = []
    # Of objects that share a sentence or a name, every task keeps the same one: it holds out, or trains on, for all.
    for item in sorted(objects, key=lambda item: order_key(item.name)):
        question = kind.ask(item)
        if isinstance(question, str):
            asked.append(Asked(item, task, None, reason=question))
        elif question.distinct in taken:
            asked.append(Asked(item, task, None, reason="the same as another object's"))
        elif kind.most is not None and answers[question.answer] >= kind.most:
            asked.append(Asked(item, task, None, reason=f"answer given {kind.most} times already"))
        else:
            taken.add(question.distinct)
            answers[question.answer] += 1
            form = forms[int(order_key(item.name), 16) % len(forms)]
            asked.append(Asked(item, task, question, form.replace("{}", question.subject)))
    return sorted(asked, key=lambda one: order_key(one.id))


def mix(objects: Iterable[PythonObject], weights: Mapping[str, float], wordings: int) -> list[Asked]:
    """Ask the questions of several tasks, as many of each as their weights say, shuffled together.

    The largest mixture is made in which no question comes twice.
    """
    known = list(objects)
    asked = {task: ask(known, task, wordings) for task in weights}
    answered = {task: sum(one.question is not None for one in found) for task, found in asked.items()}
    unit = min(answered[task] / weight for task, weight in weights.items())
    mixed: list[Asked] = []
    for task, weight in weights.items():
        left = round(unit * weight)
        for one in asked[task]:
            if one.question is None or left > 0:
                mixed.append(one)
            else:
                mixed.append(replace(one, question=None, reason="more than the mixture's weights ask for"))
            left -= one.question is not None
    # Another order than that in which each task's questions were chosen, or the rarer tasks would all come first.
    return sorted(mixed, key=lambda one: order_key(f"mixed {one.id}"))


def chat_candidates(asked: Iterable[Asked], group_of: Callable[[PythonObject], str]) -> list[Candidate]:
    """Questions and answers as conversations."""
    candidates = []
    for one in asked:
        example = None
        if one.question is not None:
            messages = [{"role": "user", "content": one.prompt}, {"role": "assistant", "content": one.question.answer}]
            example = Conversation(one.id, messages, one.task, {"object": one.item.name})
        candidates.append(Candidate(group_of(one.item), example, one.reason, one.task))
    return candidates
