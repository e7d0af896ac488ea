"""What the mixed target sees: the source's prompt, itself up to now, and no answer; in one pass as token by token."""

import pytest
import torch

from builders import mixed, small

DECODERS = ("llama", "gemma2", "qwen3")


def prompts(side="left"):
    ids, mask = small.padded([5, 4, 7], "left", 1)
    source, source_mask = small.padded([8, 4, 3], side, 2)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "source_input_ids": source,
        "source_attention_mask": source_mask,
    }


def endless(name, **settings):
    model = mixed.mixed(name, **settings)
    model.get_base_model().generation_config.eos_token_id = None
    return model


def test_a_later_target_token_changes_no_earlier_logit():
    model, given = mixed.mixed("llama"), small.batch("llama")
    given.pop("labels")
    with torch.no_grad():
        before = model(**given).logits
        for position in range(7, given["input_ids"].shape[1]):
            other = {**given, "input_ids": given["input_ids"].clone()}
            other["input_ids"][:, position] = (given["input_ids"][:, position] + 1) % small.WORDS
            after = model(**other).logits
            assert torch.allclose(before[:, :position], after[:, :position], atol=1e-5)
            assert not torch.allclose(before[:, position], after[:, position], atol=1e-4)


@pytest.mark.parametrize("name", mixed.NAMES)
def test_the_sources_answer_does_not_reach_the_target(name):
    """In training the source has its answer in it; the target's logits are those of evaluation, without it."""
    model, given = mixed.mixed(name), mixed.batch(name)
    other = {**given, "source_labels": given["source_labels"].clone()}
    if name == "llama":
        answer = given["source_labels"] != -100
        other["source_input_ids"] = given["source_input_ids"].masked_fill(answer, 33)
        other["source_labels"][answer] = 33
    else:
        other["source_labels"] = other["source_labels"].flip(0)
    asked = mixed.prompts(given)
    asked["attention_mask"] = given["attention_mask"]
    if name == "t5":
        asked["decoder_input_ids"] = model.get_base_model()._shift_right(given["labels"])
    with torch.no_grad():
        trained, changed = model(**given), model(**other)
        assert torch.equal(trained.logits, changed.logits)
        assert abs(float(trained.loss - changed.loss)) > 1e-3
        assert torch.allclose(trained.logits, model(**asked).logits, atol=1e-5)
        moved = {**asked, "source_input_ids": (asked["source_input_ids"] + 1) % small.WORDS}
        assert not torch.allclose(trained.logits, model(**moved).logits, atol=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", DECODERS)
def test_generation_with_a_cache_equals_full_forward_passes(name, side):
    model, given, new = endless(name), prompts(side), 5
    how = {"max_new_tokens": new, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found = model.generate(**given, **how)
    assert found.past_key_values.get_seq_length() == 7 + new - 1
    whole = {**given, "input_ids": found.sequences}
    whole["attention_mask"] = torch.cat([given["attention_mask"], torch.ones(3, new, dtype=torch.long)], 1)
    with torch.no_grad():
        logits = model(**whole).logits
    assert torch.allclose(torch.stack(found.logits, 1), logits[:, 6:-1], atol=1e-5)


def test_beams_with_a_cache_equal_beams_without_and_meet_their_own_source():
    model, given = endless("llama"), prompts()
    how = {"max_new_tokens": 6, "num_beams": 4, "do_sample": False, "output_scores": True}
    cached, full = (
        model.generate(**given, **how, use_cache=use, return_dict_in_generate=True) for use in (True, False)
    )
    assert torch.equal(cached.sequences, full.sequences)
    assert torch.allclose(cached.sequences_scores, full.sequences_scores, atol=1e-5)
    for row in range(3):
        real, theirs = given["attention_mask"][row].bool(), given["source_attention_mask"][row].bool()
        alone = model.generate(
            input_ids=given["input_ids"][row][real][None],
            attention_mask=torch.ones(1, int(real.sum()), dtype=torch.long),
            source_input_ids=given["source_input_ids"][row][theirs][None],
            **{**how, "output_scores": False},
        )
        assert torch.equal(cached.sequences[row, 7:], alone[0, int(real.sum()) :])


def test_an_encoder_decoder_generates_what_its_full_passes_say():
    model, given = endless("t5"), mixed.prompts(mixed.batch("t5"))
    how = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found = model.generate(**given, **how)
    with torch.no_grad():
        logits = model(**given, decoder_input_ids=found.sequences[:, :-1]).logits
        encoded = model.encode(**given)
        again = model(
            attention_mask=given["attention_mask"],
            encoder_outputs=encoded,
            decoder_input_ids=found.sequences[:, :-1],
        ).logits
    assert torch.allclose(torch.stack(found.logits, 1), logits, atol=1e-5)
    assert torch.allclose(again, logits, atol=1e-5)
    beams = [model.generate(**given, max_new_tokens=5, num_beams=3, use_cache=use) for use in (True, False)]
    assert torch.equal(*beams)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_the_source_is_read_once_in_a_generation(name):
    model = endless(name)
    given = prompts() if name == "llama" else mixed.prompts(mixed.batch(name))
    lengths = []
    model.mixer.key.register_forward_hook(lambda module, inputs, out: lengths.append(out.shape[1]))
    layers = model.get_base_model().model.layers if name == "llama" else model.get_base_model().encoder.block
    seen = []
    layers[-1].register_forward_hook(lambda module, inputs, out: seen.append(1))
    model.generate(**given, max_new_tokens=4, do_sample=False)
    assert lengths == [8]
    assert len(seen) == (4 if name == "llama" else 1)  # the source's pass stops behind the mixed block


def test_rows_of_a_cache_go_on_with_their_own_source():
    model, given = endless("llama"), prompts("right")
    rows, answers = torch.tensor([2, 0, 0, 2]), torch.tensor([[5, 6], [7, 8], [9, 5], [6, 6]])
    with torch.no_grad():
        cache = model(**given, use_cache=True).past_key_values
        cache.batch_select_indices(rows)
        mask = torch.cat([given["attention_mask"][rows], torch.ones_like(answers)], 1)
        found = model(input_ids=answers, attention_mask=mask, past_key_values=cache).logits
        for row, number in enumerate(rows.tolist()):
            one = {key: value[number : number + 1] for key, value in given.items()}
            one["input_ids"] = torch.cat([one["input_ids"], answers[row : row + 1]], 1)
            one["attention_mask"] = mask[row : row + 1]
            assert torch.allclose(found[row], model(**one).logits[0, -2:], atol=1e-5)
        with pytest.raises(RuntimeError, match="holds its source"):
            model(**given, past_key_values=cache)
        with model.fusion_off():
            unmixed = model(**small.target_only(given), use_cache=True).past_key_values
        with pytest.raises(RuntimeError, match="not filled by the fused model"):
            model(input_ids=answers[:3], past_key_values=unmixed)
