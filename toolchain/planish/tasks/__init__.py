"""Tasks have code; model families do not. One file per kind of input, one entry here per task."""

from __future__ import annotations

from collections.abc import Mapping

from planish.tasks import features, generation, image, seq2seq, text
from planish.tasks.base import Task

TASKS: Mapping[str, Task] = {
    task.name: task for task in (*features.TASKS, *text.TASKS, *image.TASKS, *generation.TASKS)
}

# A task may need several programs; each of them is a task of its own.
PROGRAMS: Mapping[str, tuple[Task, ...]] = {**{name: (task,) for name, task in TASKS.items()}, **seq2seq.PARTS}

__all__ = ["PROGRAMS", "TASKS", "Task"]
