"""Documents in segments: nothing is lost, and no document sees another."""

import itertools

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from lingualift.backbone.loading import load_backbone
from lingualift.encoding.collator import Collator
from lingualift.encoding.text import IGNORED, encode_texts, pack

documents = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=30), max_size=8)


def runs(segment):
    """The stretches of a segment within which positions count up from 0."""
    starts = [index for index, place in enumerate(segment["position_ids"]) if place == 0]
    return [slice(*pair) for pair in itertools.pairwise([*starts, len(segment["input_ids"])])]


@given(documents, st.integers(1, 12))
def test_no_token_is_lost_or_moved(texts, length):
    segments = pack(texts, length)
    assert [token for segment in segments for token in segment["input_ids"]] == list(itertools.chain(*texts))
    assert all(len(segment["input_ids"]) == length for segment in segments[:-1])
    assert all(0 < len(segment["input_ids"]) <= length for segment in segments)


@given(documents, st.integers(1, 12))
def test_positions_begin_anew_at_documents_and_segments_and_count_up_between(texts, length):
    segments = pack(texts, length)
    places = [place for segment in segments for place in segment["position_ids"]]
    begins = {0, *itertools.accumulate(map(len, texts))}
    for segment in segments:
        assert segment["position_ids"][0] == 0
        for before, place in itertools.pairwise(segment["position_ids"]):
            assert place in (0, before + 1)
    for index, place in enumerate(places):
        if index in begins:
            assert place == 0
    assert max(places, default=0) < length


@given(documents, st.integers(1, 12))
def test_every_token_but_the_first_of_a_run_is_predicted(texts, length):
    for segment in pack(texts, length):
        for run in runs(segment):
            first, *rest = zip(segment["input_ids"][run], segment["labels"][run], strict=True)
            assert first[1] == IGNORED
            assert all(label == token for token, label in rest)


@given(documents)
def test_documents_that_fit_are_whole(texts):
    (segment,) = pack(texts, 1000) or [{"input_ids": [], "position_ids": [], "labels": []}]
    assert [segment["input_ids"][run] for run in runs(segment)] == texts if texts else True


def test_a_document_longer_than_a_segment_is_cut():
    assert pack([[1, 2, 3, 4, 5], [6, 7]], 3) == [
        {"input_ids": [1, 2, 3], "position_ids": [0, 1, 2], "labels": [-100, 2, 3]},
        {"input_ids": [4, 5, 6], "position_ids": [0, 1, 0], "labels": [-100, 5, -100]},
        {"input_ids": [7], "position_ids": [0], "labels": [-100]},
    ]


def test_texts_stand_between_begin_and_end(bpe):
    _, tokenizer = load_backbone(bpe)
    (segment,) = encode_texts(tokenizer, ["red book", "good"], 999, packed=True)
    assert tokenizer.decode(segment["input_ids"]) == "<s>red book</s><s>good</s>"
    assert sum(label == tokenizer.eos_token_id for label in segment["labels"]) == 2
    assert tokenizer.bos_token_id not in segment["labels"]


def lora(model, folder):
    """An adapter that does something, as a trained one."""
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(
        model,
        peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False),
    )
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return wrapped.unload()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", ["mini", "bpe"])
def test_in_the_trainer_a_document_has_the_logits_it_has_alone(request, tmp_path, name, adapted, attention):
    """The trainer's own step is run, and what the model answers is listened to."""
    ref = request.getfixturevalue(name)
    _, tokenizer = load_backbone(ref)
    model = AutoModelForCausalLM.from_pretrained(ref.source, attn_implementation=attention)
    model.requires_grad_(False)
    lora(model, tmp_path / "adapter")
    wrapped = peft.PeftModel.from_pretrained(model, tmp_path / "adapter", is_trainable=True)
    texts = ["the red book was good", "Rating: bad", "where is it ?", "the review was so good and so bad"] * 2
    segments = encode_texts(tokenizer, texts, 24, packed=True)
    assert len(segments) > 1
    assert len(segments[-1]["input_ids"]) < 24  # padding too
    heard = {}
    handle = wrapped.register_forward_hook(
        lambda _, args, kwargs, output: heard.update(kwargs, logits=output.logits.detach()), with_kwargs=True
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "work"),
        use_cpu=True,
        report_to="none",
        use_cache=False,
        remove_unused_columns=False,
    )
    collator = Collator(tokenizer.pad_token_id, trims_logits=True)
    trainer = Trainer(model=wrapped, args=arguments, data_collator=collator)
    if not adapted:
        wrapped.disable_adapter_layers()
    wrapped.eval()
    trainer.compute_loss(wrapped, trainer._prepare_inputs(collator(segments)))
    handle.remove()
    assert "attention_mask" not in heard
    for row, segment in enumerate(segments):
        for run in runs(segment):
            with torch.inference_mode():
                alone = wrapped(torch.tensor([segment["input_ids"][run]])).logits[0]
            torch.testing.assert_close(heard["logits"][row, run], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mini", "bpe"])
def test_changing_a_document_changes_no_logit_of_another(request, name):
    model, tokenizer = load_backbone(request.getfixturevalue(name))
    texts = ["the red book was good", "Rating: bad", "where is the kitchen ?"]

    def logits(token):
        (segment,) = encode_texts(tokenizer, texts, 999, packed=True)
        segment["input_ids"][2] = token
        batch = Collator(tokenizer.pad_token_id, trims_logits=True)([segment])
        del batch["labels"]
        with torch.inference_mode():
            return model(**batch, use_cache=False).logits[0], runs(segment)

    before, places = logits(7)
    swapped, same_places = logits(8)
    assert places == same_places
    assert not torch.equal(before[places[0]], swapped[places[0]])
    for run in places[1:]:
        assert torch.equal(before[run], swapped[run])
