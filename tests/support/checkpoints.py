"""Checkpoints that are written file by file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sb3_dreamer.common.checkpoint import Checkpoint, CheckpointWriter, checkpoint_folder
from sb3_dreamer.common.files import atomic_folder


@contextmanager
def new_checkpoint(path: Path, step: int, previous: Checkpoint | None = None) -> Iterator[CheckpointWriter]:
    """A checkpoint of this step to write to."""
    with atomic_folder(checkpoint_folder(path, step)) as folder:
        yield CheckpointWriter(folder, previous)
