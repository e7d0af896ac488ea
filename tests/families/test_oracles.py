"""What encoders and encoder-decoders compute, against plain loops written from the definitions."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from builders import tiny
from builders.refusals import refused
from lingualift.attachment import attach, detach
from lingualift.backbone.architectures import Head, blocks, ia3_modules, linear_names, pattern_of
from lingualift.backbone.loading import load_backbone
from lingualift.config import Adapter, Scoring, Training
from lingualift.encoding.heads import encode_windows, span_row
from lingualift.encoding.text import IGNORED, encoder_ids, set_language
from lingualift.evaluation.heads import find_spans
from lingualift.evaluation.perplexity import mean_nats
from lingualift.evaluation.writing import rank_written, write_answers
from lingualift.tasks import TASKS, Example
from lingualift.training.data import masked_loss, training_data
from lingualift.training.objectives import Frame, _spans, continued, masked, span_corruption
from lingualift.training.trainer import initialise, train

TEXTS = ["the red book is on the table", "nobody reads it in the kitchen", "buku merah ada di dapur", "x"]
CHOICES = {"a": "good", "b": "rather bad", "c": "neither of the two"}


def examples():
    return [Example(str(i), f"{text} . it was", ("a",), CHOICES, "en") for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize("name", tiny.ENCODER_DECODERS)
@pytest.mark.parametrize("normalization", ["none", "tokens", "characters"])
def test_ranked_answers_have_the_likelihood_of_one_step_after_another(backbone, name, normalization):
    model, tokenizer = load_backbone(backbone(name))
    set_language(tokenizer, "id")
    scoring = Scoring(batch_size=3, length_normalization=normalization)
    found, cut = rank_written(model, tokenizer, examples(), scoring)
    assert cut == 0
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for example, scores in zip(examples(), found, strict=True):
        read = tokenizer(example.prompt, return_tensors="pt")
        for label, words in CHOICES.items():
            total, written, count = 0.0, [model.config.decoder_start_token_id], 0
            for token in tokenizer(text_target=words)["input_ids"]:
                with torch.inference_mode():
                    logits = model(**read, decoder_input_ids=torch.tensor([written])).logits[0, -1]
                if token not in special:
                    total += float(logits.log_softmax(-1)[token])
                    count += 1
                written.append(token)
            expected = total / {"none": 1, "tokens": count, "characters": len(words)}[normalization]
            assert scores[label] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", tiny.ENCODER_DECODERS)
def test_written_answers_are_greedy(backbone, name):
    model, tokenizer = load_backbone(backbone(name))
    set_language(tokenizer, "id")
    found, _ = write_answers(model, tokenizer, examples(), Scoring(batch_size=3), 6)
    for example, text in zip(examples(), found, strict=True):
        read = tokenizer(example.prompt, return_tensors="pt")
        written = [model.config.decoder_start_token_id]
        if name == "nllb":
            written.append(tokenizer.convert_tokens_to_ids("ind_Latn"))
        while len(written) < 7 and written[-1] != tokenizer.eos_token_id:
            with torch.inference_mode():
                logits = model(**read, decoder_input_ids=torch.tensor([written])).logits
            written.append(int(logits[0, -1].argmax()))
            if len(written) == 2 and written[-1] == tokenizer.eos_token_id and name != "nllb":
                break
        assert text == tokenizer.decode(written, skip_special_tokens=True)


def test_a_long_prompt_loses_its_beginning_and_is_counted(backbone):
    model, tokenizer = load_backbone(backbone("t5"))
    long = [Example("0", "one two three four five six seven eight", ("a",), CHOICES, "en")]
    _, cut = rank_written(model, tokenizer, long, Scoring(max_length=6))
    assert cut == 1
    whole = tokenizer(long[0].prompt)["input_ids"]
    assert encoder_ids(tokenizer, long[0].prompt, 6) == (whole[-6:], True)
    assert encoder_ids(tokenizer, long[0].prompt, len(whole)) == (whole, False)


@pytest.mark.parametrize("name", tiny.ENCODERS)
def test_masks_are_bits_of_the_text_and_never_special_tokens(backbone, name):
    _, tokenizer = load_backbone(backbone(name))
    rows = masked(tokenizer, TEXTS * 200, 32, seed=3)
    frame = Frame.of(tokenizer)
    hidden, kept, changed, count, free = 0, 0, 0, 0, 0
    for row, segment in zip(rows, rows.segments, strict=True):
        assert len(row["input_ids"]) <= 32
        whole = frame.around(segment)
        labels = np.array(row["labels"])
        chosen = np.flatnonzero(labels != IGNORED)
        assert len(chosen)
        assert [whole[place] for place in chosen] == labels[chosen].tolist()
        same = [i for i, (a, b) in enumerate(zip(row["input_ids"], whole, strict=True)) if a == b]
        assert set(range(len(whole))) - set(same) <= set(chosen.tolist())
        assert not {whole[place] for place in chosen} & set(tokenizer.all_special_ids)
        hidden += sum(row["input_ids"][place] == tokenizer.mask_token_id for place in chosen)
        kept += sum(row["input_ids"][place] == whole[place] for place in chosen)
        count += len(chosen)
        free += sum(token not in tokenizer.all_special_ids for token in whole)
    changed = count - hidden - kept
    assert count / free == pytest.approx(0.15, abs=0.02)
    assert hidden / count == pytest.approx(0.8, abs=0.04)
    assert changed / count == pytest.approx(0.1, abs=0.03)


def test_noise_follows_from_seed_epoch_and_place(backbone):
    _, tokenizer = load_backbone(backbone("xlmr"))
    rows, again, other = (masked(tokenizer, TEXTS * 9, 16, seed) for seed in (1, 1, 2))
    assert list(rows) == list(again) != list(other)
    assert [len(row["input_ids"]) for row in rows] == [len(row["input_ids"]) for row in other]
    first = list(rows)
    rows.set_epoch(1)
    assert list(rows) != first
    rows.set_epoch(0)
    assert rows[1] == first[1]


@given(st.integers(2, 600), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_corrupted_spans_never_touch_and_hold_a_share_of_the_tokens(count, seed):
    spans = _spans(count, np.random.default_rng(seed))
    assert spans[0][0] > 0
    assert spans[-1][1] <= count
    assert all(start < end for start, end in spans)
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(spans))
    noisy = sum(end - start for start, end in spans)
    assert noisy == min(max(1, round(0.15 * count)), count - 1)
    if count > 100:
        assert noisy / len(spans) == pytest.approx(3, abs=0.7)


@pytest.mark.parametrize("name", ["t5", "mt5"])
def test_corrupted_text_and_its_target_give_back_the_text(backbone, name):
    _, tokenizer = load_backbone(backbone(name))
    rows = span_corruption(tokenizer, TEXTS * 30, 40, seed=5)
    sentinels = [tokenizer.convert_tokens_to_ids(f"<extra_id_{index}>") for index in range(100)]
    for row, segment in zip(rows, rows.segments, strict=True):
        assert row["input_ids"][-1] == row["labels"][-1] == tokenizer.eos_token_id
        pieces, current = {}, None
        for token in row["labels"][:-1]:
            current = token if token in sentinels else current
            pieces.setdefault(current, [])
            if token not in sentinels:
                pieces[current].append(token)
        assert list(pieces) == sentinels[: len(pieces)]
        assert pieces[sentinels[len(pieces) - 1]] == []  # the closing one
        back = [other for token in row["input_ids"][:-1] for other in (pieces.get(token, [token]))]
        assert back == segment


def test_without_sentinels_spans_are_refused(backbone):
    _, tokenizer = load_backbone(backbone("nllb"))
    with refused("reference.task", "span-corruption", "<extra_id_0>", mend="prefix-lm"):
        span_corruption(tokenizer, TEXTS, 20, 0)
    with refused("reference.task", "masked-lm", "no mask token", mend="mask_token"):
        masked(load_backbone(backbone("t5"))[1], TEXTS, 20, 0)


@pytest.mark.parametrize("name", tiny.ENCODER_DECODERS)
def test_a_continued_segment_is_the_segment(backbone, name):
    _, tokenizer = load_backbone(backbone(name))
    set_language(tokenizer, "jv")
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    tape = [
        token for row in continued(tokenizer, TEXTS * 5, 20) for token in row["input_ids"] + row["labels"]
    ]
    texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS * 5]
    assert [token for token in tape if token not in special] == [token for ids in texts for token in ids]
    if name == "nllb":
        (first, *_) = continued(tokenizer, TEXTS, 20)
        assert (
            tokenizer.convert_ids_to_tokens([first["input_ids"][0], first["labels"][0]]) == ["jav_Latn"] * 2
        )


@pytest.mark.parametrize("name", tiny.ENCODERS)
@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_the_loss_at_masked_tokens_is_the_whole_models(backbone, tmp_path, name, kind):
    """The head sees the masked tokens only; transformers' own loss over all of them is the same, gradients too."""
    ref = backbone(name)
    (tmp_path / "start").mkdir()
    initialise(ref, Adapter(type=kind, rank=2, tokens=3), 0, tmp_path / "start")
    model, tokenizer = load_backbone(ref)
    feed = training_data(
        ref, model, tokenizer, TASKS["masked-lm"], TEXTS * 3, Training(steps=1), language="en", segment_tokens=12,
        seed=0,
    )  # fmt: skip
    wrapped = attach(ref, tmp_path / "start", trainable=True)
    try:
        batch = feed.collate(list(feed.rows))
        losses, gradients = [], []
        for loss in (masked_loss(wrapped, dict(batch), None), wrapped(**batch).loss):
            wrapped.zero_grad()
            loss.backward()
            losses.append(loss.item())
            gradients.append([p.grad.clone() for p in wrapped.parameters() if p.grad is not None])
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert any(grad.abs().max() > 0 for grad in gradients[0])
        for ours, theirs in zip(*gradients, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6)
    finally:
        detach(wrapped)


def test_a_prefix_is_keys_and_values_before_the_text(backbone, tmp_path):
    """An oracle without peft: the prefix as keys and values of every layer of the encoder, told by a plain cache."""
    from transformers import DynamicCache

    ref = backbone("xlmr")
    (tmp_path / "start").mkdir()
    initialise(ref, Adapter(type="prefix", tokens=3), 0, tmp_path / "start")
    model, tokenizer = load_backbone(ref)
    batch = tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    wrapped = attach(ref, tmp_path / "start")
    with torch.inference_mode():
        ours = wrapped(**batch).logits
    detach(wrapped)
    with torch.inference_mode():
        plain = model(**batch).logits
        flat = load_file(tmp_path / "start" / "adapter_model.safetensors")[
            "prompt_embeddings"
        ]  # (3, layers·2·width)
        blocks_ = flat.view(3, 2, 2, 4, 8)  # token, layer, key or value, head, width
        cache = DynamicCache()
        for layer in range(2):
            key, value = (blocks_[:, layer, part].permute(1, 0, 2).expand(2, 4, 3, 8) for part in (0, 1))
            cache.update(key, value, layer)
        seen = torch.cat([torch.ones(2, 3, dtype=torch.long), batch["attention_mask"]], dim=1)
        theirs = model(input_ids=batch["input_ids"], attention_mask=seen, past_key_values=cache).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, plain, atol=1e-3)


@pytest.mark.parametrize("name", ["t5", "mt5"])
def test_a_prefix_trains_where_no_cache_is_kept(backbone, tmp_path, name):
    ref = backbone(name)
    (tmp_path / "start").mkdir()
    (tmp_path / "out").mkdir()
    initialise(ref, Adapter(type="prefix", tokens=3), 0, tmp_path / "start")
    rows = [Example(str(i), text, ("a",), CHOICES, "en") for i, text in enumerate(TEXTS)]
    train(
        ref, TASKS["nusax"], rows, Training(steps=3, batch_size=4, learning_rate=0.1), start=tmp_path / "start", seed=0,
        output=tmp_path / "out", work=tmp_path / "work", language="en",
    )  # fmt: skip
    both = [
        load_file(tmp_path / at / "adapter_model.safetensors")["prompt_embeddings"] for at in ("start", "out")
    ]
    moved = (both[0] != both[1]).view(3, 2, 2, -1)  # token, layer, self- or cross-attention, key and value
    assert moved[:, :, 0].float().mean() > 0.9
    assert not moved[:, :, 1].any()


def test_every_layer_of_a_decoder_has_a_prefix_of_its_own(backbone, tmp_path):
    """An oracle without peft, whose own layout has layers share one."""
    from transformers import DynamicCache, EncoderDecoderCache

    ref = backbone("t5")
    (tmp_path / "start").mkdir()
    initialise(ref, Adapter(type="prefix", tokens=3), 0, tmp_path / "start")
    model, tokenizer = load_backbone(ref)
    read = tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    written = torch.tensor([[0, 7, 9], [0, 11, 8]])
    wrapped = attach(ref, tmp_path / "start")
    with torch.inference_mode():
        ours = wrapped(**read, decoder_input_ids=written).logits
    detach(wrapped)
    flat = load_file(tmp_path / "start" / "adapter_model.safetensors")["prompt_embeddings"]
    pairs = flat.view(3, 2, 2, 2, 4, 12)  # token, layer, self or cross, key or value, head, width
    cache = DynamicCache()
    for layer in range(2):
        key, value = (pairs[:, layer, 0, part].permute(1, 0, 2).expand(2, 4, 3, 12) for part in (0, 1))
        cache.update(key, value, layer)
    with torch.inference_mode():
        theirs = model(
            **read, decoder_input_ids=written, past_key_values=EncoderDecoderCache(cache, DynamicCache())
        ).logits
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_best_span_is_found_over_all_windows(backbone, monkeypatch):
    """Against every pair of tokens of every window."""
    ref = backbone("xlmr").answering(Head("span"))
    model, tokenizer = load_backbone(ref)
    passage = " ".join(
        f"{word} number {i}" for i, word in enumerate(["kitchen", "garden", "table", "book"] * 12)
    )
    asked = [Example("0", "", ("x",), parts=("where is the book?", passage), language="en")]
    monkeypatch.setattr("lingualift.evaluation.heads._BEST", 1000)
    (found,) = find_spans(model, tokenizer, asked, Scoring(max_length=64, batch_size=2), 6)
    windows = encode_windows(tokenizer, asked[0], 64)
    assert len(windows) > 2
    best = (-1e9, "")
    for window in windows:
        with torch.inference_mode():
            output = model(**{name: torch.tensor([value]) for name, value in window.inputs.items()})
        for first, start in enumerate(window.places):
            for last in range(first, min(first + 6, len(window.places))):
                end = window.places[last]
                if start and end:
                    score = float(output.start_logits[0, first] + output.end_logits[0, last])
                    best = max(best, (score, passage[start[0] : end[1]].strip()))
    assert found == best[1]
    covered = {place for window in windows for part in window.places if part for place in range(*part)}
    assert {i for i, letter in enumerate(passage) if letter != " "} <= covered


def test_a_span_is_learnt_in_the_windows_that_hold_it_whole(backbone):
    _, tokenizer = load_backbone(backbone("xlmr"))
    passage = " ".join(f"word{i}" for i in range(80))
    answer = "word41 word42"
    start = passage.index(answer)
    asked = Example("0", "", (answer,), parts=("which?", passage), language="en")
    there = 0
    for window in encode_windows(tokenizer, asked, 64):
        row = span_row(window, start, start + len(answer))
        first, last = row["start_positions"], row["end_positions"]
        if first:
            there += 1
            assert passage[window.places[first][0] : window.places[last][1]].strip() == answer
        else:
            assert last == 0
            text = tokenizer.decode(window.inputs["input_ids"])
            assert answer not in text
    assert there


@pytest.mark.parametrize("name", [*tiny.DECODERS, *tiny.ENCODER_DECODERS, *tiny.ENCODERS])
def test_ia3_is_on_keys_values_and_the_way_down(backbone, tmp_path, name):
    """Where the paper puts it; peft's defaults differ in Gemma 2, Qwen, mT5 and BERT and lack XLM-R and NLLB."""
    ref = backbone(name)
    model, _ = load_backbone(ref)
    (tmp_path / "start").mkdir()
    initialise(ref, Adapter(type="ia3"), 0, tmp_path / "start")
    vectors = load_file(tmp_path / "start" / "adapter_model.safetensors")
    placed = {
        key.removeprefix("base_model.model.").removesuffix(".ia3_l"): vector.shape
        for key, vector in vectors.items()
    }
    attention = ("k_proj", "v_proj", "key", "value", "k", "v")
    expected = {}
    for path, place, layer in blocks(model):
        last = path.rsplit(".", 1)[-1]
        rows, columns = layer.weight.shape
        if last in attention:
            expected[path] = (rows, 1)
        elif last in ("down_proj", "fc2", "wo") or (place == "output.dense"):
            expected[path] = (1, columns)
    assert placed == expected
    assert len(ia3_modules(model)[1]) == 1


@pytest.mark.parametrize("name", tiny.ENCODERS)
def test_lora_on_an_encoder_never_reaches_a_head(backbone, tmp_path, name):
    ref = backbone(name)
    model, _ = load_backbone(ref)
    assert "dense" in linear_names(model)
    (tmp_path / "start").mkdir()
    initialise(ref, Adapter(rank=2), 0, tmp_path / "start")
    modules = {key.split(".lora_")[0] for key in load_file(tmp_path / "start" / "adapter_model.safetensors")}
    assert len(modules) == 2 * 6
    assert all(".encoder.layer." in module for module in modules)
    with refused("adapter.modules", "'q_proj'", "dense, key, query, value"):
        pattern_of(model, "encoder", ["q_proj"])


@pytest.mark.parametrize("name", ["xlmr", "t5", "nllb"])
def test_perplexity_is_that_of_the_familys_own_objective(backbone, name):
    ref = backbone(name)
    model, tokenizer = load_backbone(ref)
    nats = mean_nats(ref, model, tokenizer, TEXTS * 20, 24, "id")
    assert nats == pytest.approx(mean_nats(ref, model, tokenizer, TEXTS * 20, 24, "id"))
    task = TASKS[{"xlmr": "masked-lm", "t5": "span-corruption", "nllb": "prefix-lm"}[name]]
    feed = training_data(
        ref, model, tokenizer, task, TEXTS * 20, Training(steps=1), language="id", segment_tokens=24, seed=0
    )  # fmt: skip
    total, count = 0.0, 0
    for row in feed.rows:
        batch = {key: torch.tensor([value]) for key, value in row.items()}
        labels = batch["labels"][0]
        with torch.inference_mode():
            logits = model(**batch).logits[0]
        for place, label in enumerate(labels.tolist()):
            if label != IGNORED:
                total -= float(logits[place].log_softmax(-1)[label])
                count += 1
    assert nats == pytest.approx(total / count, rel=1e-4)
