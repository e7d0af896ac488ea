"""What is asked of a model: rows become examples, prompts, and how an answer is read."""

from lingualift.tasks import causal_lm, miniworld, nusax  # each registers its task
from lingualift.tasks.base import (
    TASKS,
    Example,
    RowError,
    Task,
    TextTask,
    get_task,
    label_of,
    task_code,
    text_of,
)

__all__ = [
    "TASKS",
    "Example",
    "RowError",
    "Task",
    "TextTask",
    "causal_lm",
    "get_task",
    "label_of",
    "miniworld",
    "nusax",
    "task_code",
    "text_of",
]
