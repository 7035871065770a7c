"""The trackers that people watch their runs with. Neither package is imported unless it is asked for."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmkit.errors import LLMKitError
from llmkit.store.files import write_text_atomic
from llmkit.store.stage import Context
from llmkit.train.config import TrainConfig
from llmkit.train.metrics import Tracker

WANDB_ID = "wandb-run-id"
"""File with the id of the run on Weights & Biases."""


class WandbTracker:
    """Weights & Biases. A resumed run goes on in the run that it began."""

    def __init__(self, config: TrainConfig, context: Context, run_id: str) -> None:
        import wandb

        settings = config.wandb
        assert settings is not None
        try:
            self._run: Any = wandb.init(
                project=settings.project,
                entity=settings.entity,
                name=settings.name or context.name,
                id=run_id,
                mode=settings.mode,
                dir=str(context.directory),
                config=config.model_dump(mode="json"),
                resume="allow",
            )
        except wandb.errors.Error as error:
            raise LLMKitError(
                f"Weights & Biases did not start: {error}",
                where=context.place("wandb"),
                hint="Log in with `wandb login`, or set `wandb.mode: offline`.",
            ) from None

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line, each value named after its split."""
        self._run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class TensorBoardTracker:
    """TensorBoard event files in `tensorboard/`."""

    def __init__(self, directory: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line, each value named after its split."""
        for name, value in values.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def open_trackers(config: TrainConfig, context: Context, step: int) -> list[Tracker]:
    """The trackers that the settings ask for."""
    trackers: list[Tracker] = []
    if config.wandb is not None:
        trackers.append(WandbTracker(config, context, _wandb_run_id(context.directory)))
    if config.tensorboard:
        trackers.append(TensorBoardTracker(context.directory, step))
    return trackers


def _wandb_run_id(directory: Path) -> str:
    """The id of the run that an earlier attempt began, or a new one."""
    file = directory / WANDB_ID
    if not file.is_file():
        write_text_atomic(file, secrets.token_hex(8))
    return file.read_text(encoding="utf-8")
