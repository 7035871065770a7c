"""Preferences: the true answer to a question against an answer spoiled in a known way.

How an answer is spoiled depends on the question's name alone. Another object's answer is taken from the same split, so
that no held-out answer is ever seen in training, not even as a bad one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from random import Random

from llmkit.data.examples import Preference
from llmkit.data.examples_build import Candidate
from llmkit.data.python_objects import PythonObject
from llmkit.data.tasks.chat import Asked, order_key
from llmkit.store.splits import Split

CORRUPTIONS = ("other", "mistake", "shuffled", "truncated", "repeated")


def preference_candidates(
    asked: Sequence[Asked],
    corruptions: Sequence[str],
    pairs: int,
    group_of: Callable[[PythonObject], str],
    split_of_group: Callable[[str], Split],
) -> list[Candidate]:
    """Pairs of a true and a spoiled answer to each question.

    Args:
        asked: the questions.
        corruptions: ways to spoil an answer, of `CORRUPTIONS`.
        pairs: how many differently spoiled answers each question is given, as far as they can be made.
        group_of: key of the split of an object.
        split_of_group: split of such a key.
    """
    pools: dict[tuple[str, Split, str], list[str]] = defaultdict(list)
    for one in asked:
        if one.question is not None:
            pools[_pool_of(one, group_of, split_of_group)].append(one.question.answer)
    candidates = []
    for one in asked:
        group = group_of(one.item)
        if one.question is None:
            candidates.append(Candidate(group, None, one.reason, one.task))
            continue
        pool = pools[_pool_of(one, group_of, split_of_group)]
        spoiled = _spoil(one, one.question.answer, pool, corruptions)[:pairs]
        if not spoiled:
            candidates.append(Candidate(group, None, "answer cannot be spoiled in these ways", one.task))
        for corruption, text in spoiled:
            candidates.append(Candidate(group, _pair(one, one.question.answer, corruption, text), task=one.task))
    return candidates


def _pool_of(
    one: Asked, group_of: Callable[[PythonObject], str], split_of_group: Callable[[str], Split]
) -> tuple[str, Split, str]:
    """Answers that are most alike: of one task, one split, and one kind of object."""
    return one.task, split_of_group(group_of(one.item)), one.item.kind


def _pair(one: Asked, answer: str, corruption: str, text: str) -> Preference:
    metadata = {"object": one.item.name, "corruption": corruption}
    prompt = [{"role": "user", "content": one.prompt}]
    return Preference(f"{one.id}:{corruption}", prompt, answer, text, one.task, metadata)


def _spoil(one: Asked, answer: str, pool: Sequence[str], corruptions: Sequence[str]) -> list[tuple[str, str]]:
    """Differently spoiled answers with how they were spoiled, in an order drawn from the question's name."""
    random = Random(int(order_key(f"spoiled {one.id}"), 16))
    spoiled: dict[str, str] = {}
    for corruption in random.sample(list(corruptions), len(corruptions)):
        text = _SPOILERS[corruption](one, answer, pool, random)
        if text is not None and text.strip() and text != answer:
            spoiled.setdefault(text, corruption)
    return [(corruption, text) for text, corruption in spoiled.items()]


def _other(one: Asked, answer: str, pool: Sequence[str], random: Random) -> str | None:
    return pool[random.randrange(len(pool))]


def _mistake(one: Asked, answer: str, pool: Sequence[str], random: Random) -> str | None:
    mistakes: Iterable[str] = one.question.mistakes if one.question is not None else ()
    known = list(mistakes)
    return known[random.randrange(len(known))] if known else None


def _shuffled(one: Asked, answer: str, pool: Sequence[str], random: Random) -> str | None:
    words = answer.split()
    return " ".join(random.sample(words, len(words))) if len(words) > 2 else None


def _truncated(one: Asked, answer: str, pool: Sequence[str], random: Random) -> str | None:
    words = answer.split()
    return " ".join(words[: random.randint(1, len(words) // 2)]) if len(words) > 3 else None


def _repeated(one: Asked, answer: str, pool: Sequence[str], random: Random) -> str | None:
    words = answer.split()
    if len(words) < 2:
        return None
    length = random.randint(1, min(3, len(words)))
    start = random.randint(0, len(words) - length)
    span = words[start : start + length] * random.randint(2, 4)
    return " ".join([*words[:start], *span, *words[start + length :]])


_SPOILERS: dict[str, Callable[[Asked, str, Sequence[str], Random], str | None]] = {
    "other": _other,
    "mistake": _mistake,
    "shuffled": _shuffled,
    "truncated": _truncated,
    "repeated": _repeated,
}
