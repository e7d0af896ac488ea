"""Generated answers: batched and padded, they are the greedy continuation of each prompt by itself."""

import pytest
import torch

from builders.worlds import build_bpe_backbone
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.reference import find_backbone
from lingualift.config import Backbone, Scoring
from lingualift.evaluation.generation import generate_answers
from lingualift.evaluation.runner import predict, score
from lingualift.metrics.scores import METRICS
from lingualift.tasks import Example, Task, get_task

PROMPTS = [
    "x",
    "the red book",
    "Amina buys the red book in the market . Q: where is the red book ? A:",
    "where is it ? A:",
    "Rating: bad Rating:",
]


def naive(model, tokenizer, prompt, tokens):
    """Greedy decoding by its definition: the likeliest token, one at a time, without padding or cache."""
    ids = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    made = []
    for _ in range(tokens):
        with torch.inference_mode():
            token = model(torch.tensor([ids + made]), use_cache=False).logits[0, -1].argmax().item()
        if token == tokenizer.eos_token_id:
            break
        made.append(token)
    return tokenizer.decode(made, skip_special_tokens=True)


def examples(prompts=PROMPTS):
    return [Example(str(index), prompt, ("?",)) for index, prompt in enumerate(prompts)]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("name", ["mini", "bpe"])
def test_answers_are_those_of_greedy_decoding(request, name, batch_size):
    model, tokenizer = load_backbone(request.getfixturevalue(name))
    found, truncated = generate_answers(model, tokenizer, examples(), Scoring(batch_size=batch_size), 5)
    assert found == [naive(model, tokenizer, prompt, 5) for prompt in PROMPTS]
    assert truncated == 0


@pytest.mark.parametrize(
    "setting",
    [
        {"repetition_penalty": 50.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(3, 200))},
        {"do_sample": True, "temperature": 9.0},
        {"min_new_tokens": 5, "max_length": 3},
    ],
    ids=lambda setting: "-".join(setting),
)
def test_a_backbone_that_ships_other_ways_to_decode_is_decoded_greedily_all_the_same(tmp_path, setting):
    folder = build_bpe_backbone(tmp_path / "backbone", **setting)
    model, tokenizer = load_backbone(find_backbone(Backbone(name=str(folder))))
    found, _ = generate_answers(model, tokenizer, examples(), Scoring(), 5)
    assert found == [naive(model, tokenizer, prompt, 5) for prompt in PROMPTS]


def test_a_long_prompt_is_cut_at_the_left_and_counted(bpe):
    model, tokenizer = load_backbone(bpe)
    found, truncated = generate_answers(model, tokenizer, examples(), Scoring(max_length=15), 5)
    assert truncated == 3
    for prompt, text in zip(PROMPTS, found, strict=True):
        kept = tokenizer(prompt, add_special_tokens=False)["input_ids"][-9:]
        ids = torch.tensor([[tokenizer.bos_token_id, *kept]])
        assert len(ids[0]) + 5 <= 15
        made = model.generate(ids, max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(ids))
        assert text == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


class Echo(Task):
    """Answers are `<letter>`; all else is malformed."""

    columns = ("id",)
    metrics = ("exact_match",)
    source = "a test"
    max_new_tokens = 4

    def parse(self, text, example):
        return text[1:-1] if text.startswith("<") and text.endswith(">") else None


def test_the_prompt_is_no_part_of_what_is_parsed(mini):
    """The authors' code searched the label in text that still held the prompt: a malformed answer was correct."""
    model, tokenizer = load_backbone(mini)
    heard = []

    class Listening(Echo):
        def parse(self, text, example):
            heard.append(text)
            return super().parse(text, example)

    asked = [Example("0", "the answer is <positive> Rating: positive <positive>", ("positive",))]
    found, _ = predict(mini, model, tokenizer, Listening(), asked, Scoring())
    assert heard == [found[0].text] == [naive(model, tokenizer, asked[0].prompt, 4)]
    assert found[0].prediction is None
    assert not found[0].correct
    assert score(Listening(), found, 0, "en")["exact_match"]["score"] == 0


def test_answers_without_prompt_are_parsed_by_the_first_line():
    task = get_task("mini-qa")
    asked = Example("0", "prompt")
    assert task.parse(" jikoni \nQ: wapi", asked) == "jikoni"
    assert task.parse("\n\n two words ", asked) == "two words"
    assert task.parse("", asked) is None
    assert task.parse(" \n\t ", asked) is None


def test_malformed_answers_count_as_wrong_and_are_counted(bpe):
    model, tokenizer = load_backbone(bpe)
    found, _ = predict(bpe, model, tokenizer, Echo(), examples(), Scoring())
    assert [one.prediction for one in found] == [None] * len(PROMPTS)
    assert [one.id for one in found] == [str(index) for index in range(len(PROMPTS))]
    assert METRICS["exact_match"].score([None], [("?",)], "en").value == 0
