"""NusaTranslation: sentiment of Indonesian posts and of their translations into local languages, row-aligned."""

from lingualift.tasks.base import TASKS
from lingualift.tasks.prompts import PromptedTask


class NusaTranslation(PromptedTask):
    """Two-class sentiment."""

    name = "nusatranslation"
    labels = ("negative", "positive")
    columns = ("text",)
    texts = ("text",)
    gold_column = "label"
    metrics = ("macro_f1", "accuracy")
    source = "https://aclanthology.org/2023.ijcnlp-main.60"


TASKS.register("nusatranslation")(NusaTranslation())
