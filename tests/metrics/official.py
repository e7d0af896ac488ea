"""The official scorers, written from their definitions; the metrics under test are held against them.

SQuAD v1.1's (https://arxiv.org/abs/1606.05250, `evaluate-v1.1.py`), which XQuAD and TyDiQA-GoldP use in all languages,
and MLQA's (https://arxiv.org/abs/1910.07475, `mlqa_evaluation_v1.py`), which knows seven. ROUGE-L: rouge-score itself.
"""

import re
import string
import sys
import unicodedata
from collections import Counter

from rouge_score.rouge_scorer import RougeScorer

MLQA_PUNCTUATION = set(string.punctuation) | {
    chr(code) for code in range(sys.maxunicode) if unicodedata.category(chr(code))[0] == "P"
}
MLQA_ARTICLES = {
    "en": "a an the",
    "es": "un una unos unas el la los las",
    "de": "ein eine einen einem eines einer der die das den dem des",
    "vi": "của là cái chiếc những",
    "hi": "",
    "zh": "",
}


def squad_text(text):
    """SQuAD v1.1: lower case; ASCII punctuation, English articles and superfluous space go."""
    for char in string.punctuation:
        text = text.lower().replace(char, "")
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def mlqa_text(text, language):
    """MLQA: as SQuAD, with Unicode's punctuation and the language's articles; Chinese characters stand alone."""
    text = "".join(filter(lambda char: char not in MLQA_PUNCTUATION, text.lower()))
    if language == "ar":
        text = text.replace("ال", " ")
    for article in MLQA_ARTICLES.get(language, "").split():
        text = re.sub(rf"\b{article}\b", " ", text)
    if language == "zh":
        text = "".join(f" {char} " if "\u4e00" <= char <= "\u9fa5" else char for char in text)
    return " ".join(text.split())


def em(one, other):
    return float(one == other)


def f1(one, other):
    one, other = one.split(), other.split()
    hits = sum((Counter(one) & Counter(other)).values())
    if not hits:
        return 0.0
    precision, recall = hits / len(one), hits / len(other)
    return 2 * precision * recall / (precision + recall)


SHORT_ANSWER = {"squad_em": em, "squad_f1": f1}


def squad(metric, prediction, golds, language):
    return max(SHORT_ANSWER[metric](squad_text(prediction), squad_text(gold)) for gold in golds)


def mlqa(metric, prediction, golds, language):
    assert language in {*MLQA_ARTICLES, "ar"}
    given = mlqa_text(prediction, language)
    return max(SHORT_ANSWER[metric](given, mlqa_text(gold, language)) for gold in golds)


def rouge(metric, prediction, golds, language):
    """rouge-score with its own tokenizer, which keeps a-z and 0-9."""
    assert metric == "rouge_l"
    return RougeScorer(["rougeL"]).score_multi(golds, prediction)["rougeL"].fmeasure
