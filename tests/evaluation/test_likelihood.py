"""Ranked answers: batched, cached and padded, they score as one full forward pass per sequence does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.refusals import refused
from lingualift.backbone.loading import load_backbone
from lingualift.config import Scoring
from lingualift.evaluation.likelihood import score_choices
from lingualift.tasks import Example

CHOICES = {"yes": "good", "no": "bad", "some": "not so bad at all", "odd": "wonderful terrible"}
PROMPTS = [
    "x",
    "the red book",
    "the review was so good that the red book was bad",
    "where is the red book ? in the kitchen",
    "Rating:",
    "a b c d e f g h i j k l m n o p",
]


def naive(model, tokenizer, prompt, answer, normalization):
    """The plain definition: the whole sequence, by itself, without padding or cache; float64 softmax."""
    start = [tokenizer.bos_token_id]
    ids = start + tokenizer(f"{prompt} {answer}", add_special_tokens=False)["input_ids"]
    begin = len(start + tokenizer(prompt, add_special_tokens=False)["input_ids"])
    with torch.inference_mode():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].double()
    logprobs = torch.log_softmax(logits, -1)
    total = sum(logprobs[place - 1, ids[place]].item() for place in range(begin, len(ids)))
    return total / {"none": 1, "tokens": len(ids) - begin, "characters": len(answer)}[normalization]


@pytest.mark.parametrize("normalization", ["none", "tokens", "characters"])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
@pytest.mark.parametrize("name", ["mini", "bpe"])
def test_likelihoods_are_those_of_one_sequence_at_a_time(request, name, batch_size, normalization):
    model, tokenizer = load_backbone(request.getfixturevalue(name))
    examples = [Example(str(i), prompt, ("yes",), CHOICES) for i, prompt in enumerate(PROMPTS)]
    scoring = Scoring(batch_size=batch_size, length_normalization=normalization)
    found, truncated = score_choices(model, tokenizer, examples, scoring)
    assert truncated == 0
    for prompt, scores in zip(PROMPTS, found, strict=True):
        assert list(scores) == list(CHOICES)
        for label, score in scores.items():
            assert score == pytest.approx(
                naive(model, tokenizer, prompt, CHOICES[label], normalization), abs=2e-4, rel=1e-4
            )


words = st.text("abc gd", min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=15)
@given(
    asked=st.lists(
        st.tuples(words, st.lists(words, min_size=1, max_size=3, unique=True)), min_size=1, max_size=5
    ),
    batch_size=st.integers(1, 6),
)
def test_examples_may_repeat_prompts_and_have_choices_of_their_own(bpe, asked, batch_size):
    model, tokenizer = load_backbone(bpe)
    examples = [
        Example(str(i), prompt, ("0",), {str(k): word for k, word in enumerate(choices)})
        for i, (prompt, choices) in enumerate(asked)
    ]
    found, _ = score_choices(model, tokenizer, examples, Scoring(batch_size=batch_size))
    for example, scores in zip(examples, found, strict=True):
        assert scores == {
            label: pytest.approx(naive(model, tokenizer, example.prompt, word, "none"), abs=2e-4, rel=1e-4)
            for label, word in example.choices.items()
        }


def test_a_long_prompt_is_cut_at_the_left_for_each_answer_and_counted(bpe):
    model, tokenizer = load_backbone(bpe)
    examples = [Example("long", PROMPTS[2] * 3, ("yes",), CHOICES), Example("short", "x", ("yes",), CHOICES)]
    scoring = Scoring(max_length=24)
    (found, _), truncated = score_choices(model, tokenizer, examples, scoring)
    assert truncated == 1
    whole = tokenizer(examples[0].prompt, add_special_tokens=False)["input_ids"]
    for label, words in CHOICES.items():
        answer = tokenizer(f" {words}", add_special_tokens=False)["input_ids"]
        ids = [tokenizer.bos_token_id, *whole[-(23 - len(answer)) :], *answer]
        assert len(ids) == 24
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        begin = 24 - len(answer)
        expected = sum(logprobs[place - 1, ids[place]].item() for place in range(begin, 24))
        assert found[label] == pytest.approx(expected, abs=2e-4, rel=1e-4)


def test_an_answer_that_does_not_fit_is_the_users_error(bpe):
    model, tokenizer = load_backbone(bpe)
    with refused("max_length", "4 tokens", "no prompt"):
        score_choices(model, tokenizer, [Example("0", "x", ("yes",), CHOICES)], Scoring(max_length=4))


def test_a_model_that_gives_no_number_is_told(bpe):
    model, tokenizer = load_backbone(bpe)
    weight = model.get_output_embeddings().weight
    before = weight.detach().clone()
    try:
        weight.data[5] = float("nan")
        with refused("example '0'", "not a number"):
            score_choices(model, tokenizer, [Example("0", "x", ("yes",), CHOICES)], Scoring())
    finally:
        weight.data.copy_(before)
