"""Cases of our own in many scripts: the metrics, the official scorers and the values worked out by hand agree."""

import json
import warnings
from fractions import Fraction
from pathlib import Path

import official
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from builders.refusals import refused
from lingualift.languages import language
from lingualift.metrics.rouge import rouge_words
from lingualift.metrics.scores import METRICS
from lingualift.metrics.squad import answer_words
from lingualift.metrics.words import words

CASES = json.loads((Path(__file__).parent / "metric_cases.json").read_text(encoding="utf-8"))
SCORERS = {"squad": official.squad, "mlqa": official.mlqa, "rouge": official.rouge}
TEXT = [case for case in CASES if "prediction" in case]
CLASSES = [case for case in CASES if "predictions" in case]


def name(case):
    return f"{case['metric']}-{case['language']}-{CASES.index(case)}"


def ours(case, prediction):
    return METRICS[case["metric"]].score([prediction], [tuple(case["golds"])], case["language"]).value


def test_there_are_enough_cases():
    held = [case for case in CASES if case["official"] or "tokens" in case]
    assert len(held) >= 60
    assert len({case["script"] for case in held}) >= 8
    assert {case["metric"] for case in CASES} == set(METRICS) - {"number_match"}
    assert all(language(case["language"]).script == case["script"] for case in CASES)
    assert len({json.dumps(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", TEXT, ids=name)
def test_a_text_scores_as_by_hand_and_by_the_official_scorers(case):
    expected = pytest.approx(100 * float(Fraction(case["score"])))
    assert ours(case, case["prediction"]) == expected
    for scorer in case["official"]:
        found = SCORERS[scorer](case["metric"], case["prediction"], case["golds"], case["language"])
        assert 100 * found == expected, scorer


@pytest.mark.parametrize("case", [case for case in TEXT if "tokens" in case], ids=name)
def test_words_split_by_hand_score_the_same_with_the_official_scorers(case):
    """Every word becomes a Latin one, so that scorers who know nothing but spaces and a-z count them."""
    prediction, golds = case["tokens"]
    numbers = {word: f"w{index}" for index, word in enumerate(" ".join([prediction, *golds]).split())}
    latin = [" ".join(numbers[word] for word in text.split()) for text in (prediction, *golds)]
    scorer = official.rouge if case["metric"] == "rouge_l" else official.squad
    assert scorer(case["metric"], latin[0], latin[1:], "en") == pytest.approx(float(Fraction(case["score"])))
    split = rouge_words if case["metric"] == "rouge_l" else answer_words
    for text, by_hand in zip([case["prediction"], *case["golds"]], [prediction, *golds], strict=True):
        assert split(text, case["language"]) == by_hand.split()


@pytest.mark.parametrize("case", CLASSES, ids=name)
def test_classes_score_as_by_hand_and_by_scikit_learn(case):
    golds = [tuple(gold) for gold in case["golds"]]
    found = METRICS[case["metric"]].score(case["predictions"], golds, case["language"]).value
    true, told = [gold for (gold,) in golds], [one or "?" for one in case["predictions"]]
    if case["metric"] == "macro_f1":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = f1_score(true, told, labels=sorted({*true, *told} - {"?"}), average="macro")
    else:
        expected = accuracy_score(true, told)
    assert found == pytest.approx(100 * expected) == pytest.approx(100 * float(Fraction(case["score"])))


@pytest.mark.parametrize("case", TEXT, ids=name)
def test_no_answer_is_worth_nothing(case):
    assert ours(case, None) == 0


plain = st.text("abcthe .,'-AB12é“«", max_size=25)


@given(plain, st.lists(plain, min_size=1, max_size=3))
def test_english_answers_are_those_of_mlqa(prediction, golds):
    for metric in ("squad_em", "squad_f1"):
        case = {"metric": metric, "golds": golds, "language": "en"}
        assert ours(case, prediction) == pytest.approx(100 * official.mlqa(metric, prediction, golds, "en"))


@given(plain, plain, st.sampled_from(["es", "de", "vi", "ar", "hi", "zh"]), st.data())
def test_any_answer_of_mlqas_languages_is_that_of_mlqa(one, other, code, data):
    letters = [case for case in TEXT if case["language"] == code and "squad" in case["metric"]]
    texts = st.sampled_from([text for case in letters for text in (case["prediction"], *case["golds"])])
    prediction, gold = one + data.draw(texts) + other, other + data.draw(texts)
    for metric in ("squad_em", "squad_f1"):
        case = {"metric": metric, "golds": [gold], "language": code}
        assert ours(case, prediction) == pytest.approx(100 * official.mlqa(metric, prediction, [gold], code))


@given(st.text("abcthe .,'-AB12\n$", max_size=30), st.text("abcthe .,'-AB12\n$", max_size=30))
def test_rouge_of_ascii_is_that_of_rouge_score(prediction, gold):
    case = {"metric": "rouge_l", "golds": [gold], "language": "en"}
    assert ours(case, prediction) == pytest.approx(100 * official.rouge("rouge_l", prediction, [gold], "en"))


def test_no_letter_is_lost_between_words():
    text = "ก่อนปี ๒๕๔๐ iPhone北京タワー ສະບາຍດີ ខ្មែរ မြန်မာ བོད་ 12"
    for code in ("en", "th", "zh", "ja", "lo", "km", "my", "bo"):
        assert "".join(words(text, code)) == text.replace(" ", "")
    assert "๒๕๔๐" in words(text, "th")
    assert words(text, "en") == text.split()


@pytest.mark.parametrize("metric", ["squad_em", "squad_f1", "rouge_l", "number_match"])
def test_a_language_that_is_not_known_is_told(metric):
    with refused("language 'xx-none'", "is not known"):
        METRICS[metric].score(["1"], [("1",)], "xx-none")


def test_codes_of_one_language_score_the_same():
    for code in ("zh", "zho", "zho_Hans", "cmn"):
        assert METRICS["squad_f1"].score(["北京市"], [("北京",)], code).value == pytest.approx(80)
