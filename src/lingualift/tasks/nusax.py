"""NusaX: sentiment of short texts in English, Indonesian and ten local languages, row-aligned."""

from lingualift.tasks.base import TASKS
from lingualift.tasks.prompts import PromptedTask


class NusaX(PromptedTask):
    """Three-class sentiment."""

    name = "nusax"
    labels = ("negative", "neutral", "positive")
    columns = ("text",)
    texts = ("text",)
    gold_column = "label"
    metrics = ("macro_f1", "accuracy")
    source = "https://aclanthology.org/2023.eacl-main.57"


TASKS.register("nusax")(NusaX())
