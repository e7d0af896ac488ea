"""Language modelling on raw text, the reference tasks: each family of backbones has its own objective."""

from lingualift.tasks.base import TASKS, TextTask


class CausalLM(TextTask):
    """Decoders: predict the next token, in packed segments (AdaMergeX, section 4.1)."""

    objective = "causal"
    source = "https://arxiv.org/abs/2402.18913"


class MaskedLM(TextTask):
    """Encoders: fill in 15% of the tokens, masked anew in every epoch."""

    objective = "masked"
    source = "https://arxiv.org/abs/1810.04805"


class SpanCorruption(TextTask):
    """T5 and mT5: fill in spans of three tokens on average, 15% of the tokens, cut out anew in every epoch."""

    objective = "span-corruption"
    source = "https://arxiv.org/abs/1910.10683"


class PrefixLM(TextTask):
    """Encoder-decoders: read a segment but for its last fifth, and write that."""

    objective = "prefix"
    source = "https://arxiv.org/abs/1910.10683"


REFERENCE_TASKS = {
    "causal": "causal-lm",
    "masked": "masked-lm",
    "span-corruption": "span-corruption",
    "prefix": "prefix-lm",
}
"""Objective -> the task that an experiment on such a backbone has for its reference."""

TASKS.register("causal-lm")(CausalLM())
TASKS.register("masked-lm")(MaskedLM())
TASKS.register("span-corruption")(SpanCorruption())
TASKS.register("prefix-lm")(PrefixLM())
