"""The base of settings of filters that read more than documents. No heavy imports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llmkit.config.base import Config, Facts, Finding, Input


class FilterWithInputs(Config):
    """Settings of a filter that name files, folders or artifacts.

    The stage depends on what these hold. Who makes the filter gets the settings with the paths that were found in the
    place of what is written; their digests go into the keys of what is measured, and need not be in `measuring`.
    """

    def inputs(self, key: str) -> list[Input]:
        """The files and artifacts as inputs of a stage, `key` being where these settings stand in it."""
        raise NotImplementedError

    def check(self, key: str, inputs: Mapping[str, Facts]) -> Iterator[Finding]:
        """What is wrong with these settings given the facts of the stage's inputs.

        Args:
            key: where these settings stand in the stage.
            inputs: by dotted key; those whose facts nobody knows yet say nothing.
        """
        yield from ()
