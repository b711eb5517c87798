"""Tasks have code; model families do not. One file per kind of input, one entry here per task."""

from __future__ import annotations

from collections.abc import Mapping

from planish.tasks import features, generation, image, text
from planish.tasks.base import Task

TASKS: Mapping[str, Task] = {
    task.name: task for task in (*features.TASKS, *text.TASKS, *image.TASKS, *generation.TASKS)
}

__all__ = ["TASKS", "Task"]
