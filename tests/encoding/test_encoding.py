"""Prompts and answers as token ids; only answers carry loss."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders.refusals import refused
from lingualift.backbone.loading import load_backbone
from lingualift.encoding.collator import Collator
from lingualift.encoding.text import encode_pair, encode_pairs, encode_prompt, fit, training_row

text = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=40)
spoken = st.text("abc üßж漢 .,:?!'\n\t-_1", max_size=40)
answers = text.filter(str.strip)


@given(prompt=st.one_of(text, spoken), answer=st.one_of(answers, spoken.filter(str.strip)))
def test_a_pair_is_the_whole_text_tokenized_and_split(bpe, prompt, answer):
    _, tokenizer = load_backbone(bpe)
    pair = encode_pair(tokenizer, prompt, answer, 10_000)
    assert pair.prompt + pair.answer == [
        tokenizer.bos_token_id,
        *tokenizer(f"{prompt} {answer}", add_special_tokens=False)["input_ids"],
    ]
    assert pair.prompt == encode_prompt(tokenizer, prompt)
    assert tokenizer.decode(pair.answer, clean_up_tokenization_spaces=False) == f" {answer}"


def test_answers_of_this_backbone_have_several_tokens(bpe):
    _, tokenizer = load_backbone(bpe)
    lengths = {
        len(encode_pair(tokenizer, "x", word, 99).answer) for word in ("good", "wonderful", "mbaya sana")
    }
    assert max(lengths) > 2
    assert len(lengths) > 1


def test_word_level_answers_have_one_token(mini):
    _, tokenizer = load_backbone(mini)
    assert len(encode_pair(tokenizer, "the book is red . Rating:", "good", 99).answer) == 1


class Tokens:
    """A tokenizer without the ids that some lack."""

    chat_template = None

    def __init__(self, bos=0, eos=1):
        self.bos_token_id, self.eos_token_id = bos, eos

    def __call__(self, texts, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


ids = st.lists(st.integers(2, 99), max_size=30)


@given(body=ids, answer=ids.filter(len), room=st.integers(1, 70), bos=st.booleans())
def test_a_prompt_is_cut_at_the_left_and_keeps_its_start_and_the_answer(body, answer, room, bos):
    tokenizer = Tokens(bos=0 if bos else None)
    start = [0] if bos else []
    whole = start + body
    left = room - len(start) - len(answer)
    if len(whole) + len(answer) <= room:
        assert fit(tokenizer, whole, answer, room) == fit(tokenizer, whole, answer, 10_000)
        assert fit(tokenizer, whole, answer, room).truncated == 0
    elif left <= 0:
        with refused("max_length", f"{room} tokens hold no prompt", f"of {len(answer)} tokens", mend="raise"):
            fit(tokenizer, whole, answer, room)
    else:
        pair = fit(tokenizer, whole, answer, room)
        assert pair.answer == answer
        assert pair.prompt == start + body[len(body) - left :]
        assert len(pair.prompt) + len(pair.answer) == room
        assert pair.truncated == len(body) - left > 0


def test_tokenizers_without_begin_or_end_ids_are_served():
    tokenizer = Tokens(bos=None, eos=None)
    pair = encode_pair(tokenizer, "ab", "c", 99)
    assert pair.prompt == [97, 98]
    assert training_row(tokenizer, pair)["input_ids"] == [97, 98, 32, 99]


@pytest.mark.parametrize("name", ["mini", "bpe"])
def test_pairs_are_encoded_together_as_each_alone(request, name):
    _, tokenizer = load_backbone(request.getfixturevalue(name))
    asked = [("the red book " * 9, "good"), ("the red book " * 9, "bad"), ("a", "good bad"), ("the", "good")]
    pairs = encode_pairs(tokenizer, asked, 20)
    assert pairs == [encode_pair(tokenizer, *each, 20) for each in asked]
    assert [pair.truncated > 0 for pair in pairs] == [True, True, False, False]
    assert encode_pairs(tokenizer, [], 5) == []


def test_only_the_answer_and_the_end_carry_loss():
    tokenizer = Tokens()
    row = training_row(tokenizer, encode_pair(tokenizer, "ab", "c", 99))
    assert row == {
        "input_ids": [0, 97, 98, 32, 99, 1],
        "attention_mask": [1] * 6,
        "labels": [-100, -100, -100, 32, 99, 1],
    }


PADDED = {
    "input_ids": [[5, 6, 7, 9], [3, 3, 8, 1]],
    "attention_mask": [[1, 1, 1, 1], [0, 0, 1, 1]],
    "position_ids": [[0, 1, 2, 3], [0, 0, 0, 1]],
    "labels": [[-100, -100, 7, 9], [-100, -100, -100, 1]],
}


@pytest.mark.parametrize(
    ("trims", "expected"),
    [
        (False, PADDED),
        (True, {**PADDED, "labels": [[-100, 7, 9], [-100, -100, 1]], "logits_to_keep": 3}),
    ],
)
def test_a_batch_is_padded_on_the_left_and_keeps_the_logits_of_answers(trims, expected):
    rows = [
        {"input_ids": [5, 6, 7, 9], "attention_mask": [1] * 4, "labels": [-100, -100, 7, 9]},
        {"input_ids": [8, 1], "attention_mask": [1] * 2, "labels": [-100, 1]},
    ]
    batch = Collator(3, trims_logits=trims)(rows)
    assert {key: getattr(value, "tolist", lambda v=value: v)() for key, value in batch.items()} == expected


def test_padding_of_packed_segments_is_a_document_of_its_own():
    rows = [
        {"input_ids": [5, 6, 7], "position_ids": [0, 1, 0], "labels": [-100, 6, -100]},
        {"input_ids": [8], "position_ids": [0], "labels": [-100]},
    ]
    batch = {key: value.tolist() for key, value in Collator(3, trims_logits=False)(rows).items()}
    assert batch == {
        "input_ids": [[5, 6, 7], [8, 3, 3]],
        "position_ids": [[0, 1, 0], [0, 0, 1]],
        "labels": [[-100, 6, -100], [-100, -100, -100]],
    }


@pytest.mark.parametrize("trims", [False, True])
@pytest.mark.parametrize("name", ["mini", "bpe"])
def test_the_loss_is_the_mean_over_answer_tokens_and_ends_alone(request, name, trims):
    model, tokenizer = load_backbone(request.getfixturevalue(name))
    asked = [("the red book", "good"), ("a long one , the review was so good", "bad"), ("x", "good bad")]
    pairs = [encode_pair(tokenizer, prompt, answer, 99) for prompt, answer in asked]
    collator = Collator(tokenizer.pad_token_id, trims_logits=trims)
    batch = collator([training_row(tokenizer, pair) for pair in pairs])
    with torch.inference_mode():
        loss = model(**batch, use_cache=False).loss.item()
        losses = []
        for pair in pairs:
            answer = [*pair.answer, tokenizer.eos_token_id]
            logits = model(torch.tensor([[*pair.prompt, *answer]])).logits[0].double()
            for place, token in enumerate(answer, start=len(pair.prompt) - 1):
                losses.append(torch.logsumexp(logits[place], 0) - logits[place, token])
    assert loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
