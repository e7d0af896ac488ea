"""XNLI: does the premise entail the hypothesis? English and fourteen translations, row-aligned."""

from lingualift.tasks.base import TASKS
from lingualift.tasks.prompts import PromptedTask


class XNLI(PromptedTask):
    """Three classes, numbered as on the hub or by name."""

    name = "xnli"
    labels = ("entailment", "neutral", "contradiction")
    columns = ("premise", "hypothesis")
    texts = ("premise", "hypothesis")
    gold_column = "label"
    metrics = ("accuracy", "macro_f1")
    source = "https://arxiv.org/abs/1809.05053"


TASKS.register("xnli")(XNLI())
