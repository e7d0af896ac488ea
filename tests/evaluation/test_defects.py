"""What the authors' evaluation got wrong, one test for each defect; how ours counts it."""

import pytest

from lingualift.backbone.loading import load_backbone
from lingualift.config import Scoring
from lingualift.evaluation.runner import evaluate, predict
from lingualift.metrics.scores import METRICS
from lingualift.tasks import Example, Task


def score(name, predictions, golds, language="en"):
    return METRICS[name].score(predictions, [(gold,) for gold in golds], language).value


def test_rouge_l_does_not_depend_on_how_long_the_words_are():
    """Theirs divides by the length of the reference in characters: short words score higher."""
    short = score("rouge_l", ["a b c d"], ["a b x d"])
    long = score("rouge_l", ["alpha bravo charlie delta"], ["alpha bravo xray delta"])
    assert short == long == pytest.approx(75)
    assert score("rouge_l", ["alpha bravo"], ["alpha bravo"]) == 100


def test_rouge_l_has_a_score_in_scripts_that_rouge_score_does_not_know():
    for text, code in (
        ("北京欢迎你", "zh"),
        ("กรุงเทพ", "th"),
        ("नई दिल्ली", "hi"),
        ("القاهرة", "ar"),
        ("Москва", "ru"),
    ):
        assert score("rouge_l", [text], [text], code) == 100


@pytest.mark.parametrize("metric", list(METRICS))
def test_an_answer_with_the_prompt_attached_is_wrong(metric):
    """Theirs compares unparsed output, the prompt still in it, and searches the label in it."""
    prompt = "Premise: 7 it rains. Is it true, false or undetermined? entailment neutral contradiction 12 "
    assert score(metric, [prompt, "7"], ["7", "7"], "sw") < 100
    if metric != "number_match":  # which reads a number out of a text; tasks hand it none with the prompt
        assert score(metric, [prompt + "7", "7"], ["7", "7"], "sw") < 100


@pytest.mark.parametrize("metric", list(METRICS))
def test_a_malformed_answer_is_wrong_in_every_metric(metric):
    assert score(metric, [None, None], ["7", "7"], "sw") == 0
    assert score(metric, [None, "7"], ["7", "7"], "sw") < score(metric, ["7", "7"], ["7", "7"], "sw") == 100


class Numbers(Task):
    columns = ("id",)
    gold_column = "gold"
    metrics = ("number_match", "squad_em", "rouge_l")
    source = "a test"
    max_new_tokens = 3

    def parse(self, text, *_):
        return None if "12" not in text else text


def test_what_stands_in_the_prompt_is_never_the_answer(mini):
    """The gold number and the gold label stand in the prompt; the model writes something else."""
    asked = [Example(str(index), "The answer is 12. #### 12", ("12",), language="en") for index in range(3)]
    found = evaluate(mini, None, Numbers(), asked, Scoring())
    assert all("12" not in prediction.text for prediction in found.predictions)
    assert {name: entry["score"] for name, entry in found.scores.items()} == dict.fromkeys(Numbers.metrics, 0)
    assert (found.malformed, len(found.predictions)) == (3, 3)
    assert not any(prediction.correct for prediction in found.predictions)


def test_an_answer_is_right_where_the_first_metric_says_so(mini):
    """Not letter by letter if the metric is another one."""
    model, tokenizer = load_backbone(mini)

    class Spelled(Numbers):
        def parse(self, text, *_):
            return "1.234,00"

    asked = [Example(code, "How many?", ("1234",), language=code) for code in ("de", "en")]
    found, _ = predict(mini, model, tokenizer, Spelled(), asked, Scoring())
    assert [prediction.correct for prediction in found] == [True, True]
    Spelled.metrics = ("exact_match",)
    found, _ = predict(mini, model, tokenizer, Spelled(), asked, Scoring())
    assert [prediction.correct for prediction in found] == [False, False]


def test_ranked_labels_are_all_labels_and_chance_is_told(mini):
    """Reviewers asked for scores above the 33% that guessing XNLI gives: chance stands beside every score."""
    labels = {"entailment": "true", "neutral": "undetermined", "contradiction": "false"}

    class Ranked(Numbers):
        metrics = ("accuracy",)

    asked = [
        Example(str(i), "entailment?", (label,), labels, language="en") for i, label in enumerate(labels)
    ]
    found = evaluate(mini, None, Ranked(), asked, Scoring())
    assert found.scores["accuracy"]["chance"] == pytest.approx(100 / 3)
    assert {one.prediction for one in found.predictions} <= set(labels)
