"""TyDiQA-GoldP: questions written in each language by its speakers, answered by a span of a passage; not aligned."""

from lingualift.tasks.base import TASKS
from lingualift.tasks.xquad import XQuAD


class TyDiQAGoldP(XQuAD):
    """As XQuAD, on other data and by FLARE's prompt."""

    name = "tydiqa-goldp"
    source = "https://arxiv.org/abs/2003.05002"
    max_new_tokens = 100


TASKS.register("tydiqa-goldp")(TyDiQAGoldP())
