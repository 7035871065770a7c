"""The task `ngrams`: a model of word n-grams, by which the filter `perplexity` measures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from llmkit.data.execution.engine import Engine
from llmkit.data.execution.tasks import Result, Task, Work
from llmkit.data.modelled.config import NGramConfig
from llmkit.data.modelled.ngrams import train
from llmkit.data.modelled.texts import sampled_words, training_texts
from llmkit.data.sources.files import is_url
from llmkit.errors import DataError
from llmkit.store.stage import ResolvedInput

VERSION = 1


def ngram_model(engine: Engine, config: NGramConfig, key: str, inputs: Mapping[str, ResolvedInput]) -> Result:
    """The model, made unless it is there.

    Args:
        engine: does the task.
        config: its settings.
        key: where these stand in the stage.
        inputs: of the stage, by dotted key.

    Raises:
        DataError: a text cannot be read, or there is no word in all of them.
    """
    found = [inputs[f"{key}.train_on.{index}"] for index in range(len(config.train_on))]
    task = Task(
        "ngrams",
        f"{__name__}:make",
        {
            "order": config.order,
            "min_count": config.min_count,
            "max_bytes": config.max_bytes,
            "inputs": [[item.facts.kind, Path(item.value).name, item.digest] for item in found],
        },
        places={"inputs": [[item.facts.kind, item.value if is_url(item.value) else str(item.path)] for item in found]},
        version=VERSION,
        label=", ".join(config.train_on),
    )
    (result,) = engine.run([task], "counting n-grams")
    return result


def make(work: Work) -> Mapping[str, Any]:
    """Write the model.

    Returns:
        documents, bytes and words that it was made of, and n-grams by order.
    """
    readers = [partial(training_texts, kind, place) for kind, place in work.places["inputs"]]
    words, documents, size = sampled_words(
        lambda: chain.from_iterable(read() for read in readers), work.settings["max_bytes"]
    )
    if not len(words.hashes):
        where = ", ".join(place for _, place in work.places["inputs"])
        raise DataError("there is no word to learn n-grams from.", where=where)
    model = train(words, work.settings["order"], work.settings["min_count"])
    model.save(work.output)
    ngrams = [len(table.keys) for table in model.tables]
    return {"documents": documents, "bytes": size, "words": len(words.hashes), "ngrams": ngrams}
