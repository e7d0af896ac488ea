"""XL-Sum: one-sentence summaries of news in 45 languages; not aligned."""

from lingualift.tasks.base import TASKS
from lingualift.tasks.prompts import PromptedTask


class XLSum(PromptedTask):
    """A generated summary, on one line."""

    name = "xlsum"
    columns = ("title", "text")
    gold_column = "summary"
    written_columns = ("summary",)
    encoder_head = None
    metrics = ("rouge_l",)
    source = "https://arxiv.org/abs/2106.13822"
    max_new_tokens = 64


TASKS.register("xlsum")(XLSum())
