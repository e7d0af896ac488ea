"""What is asked of a model: rows become examples, prompts, and how an answer is read."""

from lingualift.tasks import (  # each registers its task
    language_modelling,
    mgsm,
    miniworld,
    nusatranslation,
    nusax,
    tydiqa,
    xcopa,
    xlsum,
    xnli,
    xquad,
)
from lingualift.tasks.base import (
    TASKS,
    Example,
    RowError,
    Task,
    TextTask,
    class_of,
    get_task,
    label_of,
    task_code,
    text_of,
)
from lingualift.tasks.files import TaskError
from lingualift.tasks.prompts import PromptedTask
from lingualift.tasks.shipped import shipped_languages, shipped_rows

__all__ = [
    "TASKS",
    "Example",
    "PromptedTask",
    "RowError",
    "Task",
    "TaskError",
    "TextTask",
    "class_of",
    "get_task",
    "label_of",
    "language_modelling",
    "mgsm",
    "miniworld",
    "nusatranslation",
    "nusax",
    "shipped_languages",
    "shipped_rows",
    "task_code",
    "text_of",
    "tydiqa",
    "xcopa",
    "xlsum",
    "xnli",
    "xquad",
]
