"""Causal language modelling on raw text, the reference task of AdaMergeX (section 4.1)."""

from lingualift.tasks.base import TASKS, TextTask


class CausalLM(TextTask):
    """Predict the next token of unlabelled text, packed into segments."""

    source = "https://arxiv.org/abs/2402.18913"


TASKS.register("causal-lm")(CausalLM())
