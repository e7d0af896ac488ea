"""What a decoder has seen so far decides what it says next: in one pass, and token by token with a cache."""

import pytest
import torch

from builders import small
from builders.refusals import refused

CAUSAL = [(name, fusion) for name in small.DECODERS for fusion in small.FUSIONS]


def prompts(name, side="left"):
    ids, mask = small.padded([5, 4, 7], side, 1)
    source, source_mask = small.padded([8, 4, 3], "left", 2)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "source_input_ids": source,
        "source_attention_mask": source_mask,
    }


@pytest.mark.parametrize(("name", "fusion"), CAUSAL)
def test_a_later_target_token_changes_no_earlier_logit(name, fusion):
    model, given = small.fused(name, fusion=fusion), small.batch(name)
    real = given["attention_mask"].bool()  # Gemma's padding attends to everything
    with torch.no_grad():
        before = model(**given).logits
        for position in range(7, given["input_ids"].shape[1]):
            other = {**given, "input_ids": given["input_ids"].clone()}
            other["input_ids"][:, position] = (given["input_ids"][:, position] + 1) % small.WORDS
            after = model(**other).logits
            earlier = real[:, :position]
            assert torch.allclose(before[:, :position][earlier], after[:, :position][earlier], atol=1e-5)
            assert not torch.allclose(before[:, position], after[:, position], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "fusion", "answer"),
    [
        *((*case, "last") for case in CAUSAL),
        *((name, fusion, answer) for name, fusion in CAUSAL[2:4] for answer in ("none", "generate")),
    ],
)
def test_generation_with_a_cache_equals_full_forward_passes(name, fusion, answer):
    """Greedy, rows of unequal length, padded on the left: the scores of every step."""
    model, given = small.fused(name, fusion=fusion, answer_source=answer), prompts(name)
    model.get_base_model().generation_config.eos_token_id = None
    width, new = given["input_ids"].shape[1], 5
    found = model.generate(
        **given, max_new_tokens=new, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    assert found.past_key_values.get_seq_length() == width + new - 1
    whole = {**given, "input_ids": found.sequences}
    whole["attention_mask"] = torch.cat([given["attention_mask"], torch.ones(3, new, dtype=torch.long)], 1)
    with torch.no_grad():
        logits = model(**whole, answer_start=torch.full((3,), width)).logits
    for step in range(new):
        assert torch.allclose(found.logits[step], logits[:, width - 1 + step], atol=1e-5), step


@pytest.mark.parametrize("fusion", ["add_relu", "cross_attention", "matmul"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3"])
def test_beams_with_a_cache_equal_beams_without(name, fusion):
    """Beams change places, and what the cache holds of the target goes with them."""
    model, given = small.fused(name, fusion=fusion), prompts(name)
    model.get_base_model().generation_config.eos_token_id = None
    how = {"max_new_tokens": 6, "num_beams": 4, "num_return_sequences": 3, "do_sample": False}
    how |= {"output_scores": True, "return_dict_in_generate": True}
    cached, full = (model.generate(**given, **how, use_cache=use) for use in (True, False))
    assert torch.equal(cached.sequences, full.sequences)
    assert torch.allclose(cached.sequences_scores, full.sequences_scores, atol=1e-5)
    parents = {tuple(row.tolist()) for row in cached.beam_indices}
    assert len({row[1] for row in parents}) > 1  # else nothing has changed places


def test_beams_meet_the_source_of_their_row():
    """Rows generate together what they generate alone."""
    model, given = small.fused("llama", fusion="cross_attention"), prompts("llama")
    how = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False}
    together = model.generate(**given, **how)
    for row in range(3):
        real, theirs = given["attention_mask"][row].bool(), given["source_attention_mask"][row].bool()
        alone = model.generate(
            input_ids=given["input_ids"][row][real][None],
            attention_mask=torch.ones(1, int(real.sum()), dtype=torch.long),
            source_input_ids=given["source_input_ids"][row][theirs][None],
            source_attention_mask=torch.ones(1, int(theirs.sum()), dtype=torch.long),
            **how,
        )
        answer = alone[0, int(real.sum()) :]
        assert torch.equal(together[row, 7 : 7 + len(answer)], answer)


@pytest.mark.parametrize("name", small.ENCODER_DECODERS)
def test_an_encoder_decoder_generates_what_its_full_passes_say(name):
    model, given = small.fused(name, fusion="cross_attention"), small.target_only(small.batch(name))
    del given["labels"]
    given |= prompts(name, "right")
    how = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    model.get_base_model().generation_config.eos_token_id = None
    found = model.generate(**given, **how)
    with torch.no_grad():
        logits = model(**given, decoder_input_ids=found.sequences[:, :-1]).logits
    assert torch.allclose(torch.stack(found.logits, 1), logits, atol=1e-5)
    beams = [model.generate(**given, max_new_tokens=5, num_beams=3, use_cache=use) for use in (True, False)]
    assert torch.equal(*beams)
    other = {**given, "source_input_ids": given["source_input_ids"].flip(0)}
    other["source_attention_mask"] = given["source_attention_mask"].flip(0)
    changed = model.generate(**other, **how)
    assert not torch.allclose(changed.logits[0], found.logits[0], atol=1e-4)


@pytest.mark.parametrize("fusion", ["add_relu", "cross_attention"])
def test_a_cache_goes_on_with_its_source(fusion):
    """Token by token by hand: the source is given once, with the prompt."""
    model, given = small.fused("llama", fusion=fusion), prompts("llama")
    answer = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]])
    whole = {**given, "input_ids": torch.cat([given["input_ids"], answer], 1)}
    mask = torch.cat([given["attention_mask"], torch.ones(3, 3, dtype=torch.long)], 1)
    with torch.no_grad():
        expected = model(**{**whole, "attention_mask": mask}, answer_start=torch.full((3,), 7)).logits
        output = model(**given, use_cache=True)
        assert torch.allclose(output.logits[:, -1], expected[:, 6], atol=1e-5)
        cache = output.past_key_values
        for step in range(3):
            output = model(
                input_ids=answer[:, step : step + 1],
                attention_mask=mask[:, : 8 + step],
                position_ids=torch.full((3, 1), 7 + step),
                past_key_values=cache,
            )
            assert torch.allclose(output.logits[:, 0], expected[:, 7 + step], atol=1e-5)
        with pytest.raises(RuntimeError, match="holds its source"):
            model(**given, past_key_values=cache)
        with model.fusion_off():
            plain = model(**small.target_only(given), use_cache=True).past_key_values
        with pytest.raises(RuntimeError, match="not filled by the fused model"):
            model(**given, past_key_values=plain)


def test_the_sources_bottleneck_states_are_computed_once():
    """Of a generation: the layer's A meets the source once, and each new token once."""
    model, given = small.fused("llama"), prompts("llama")
    model.get_base_model().generation_config.eos_token_id = None
    lengths = []
    down = model.get_base_model().model.layers[1].self_attn.v_proj.lora_A["default"]
    down.register_forward_hook(lambda module, inputs, out: lengths.append(out.shape[1]))
    model.generate(**given, max_new_tokens=4, do_sample=False)
    assert lengths == [7, 8, 1, 1, 1]


@pytest.mark.parametrize("fusion", ["add_relu", "cross_attention"])
def test_behind_a_sliding_window_too(fusion):
    """Gemma 2's cache forgets keys and values behind its window; what the target's answer meets stays."""
    backbone = small.plain("gemma2", sliding_window=4)
    model, given = small.fused("gemma2", backbone, fusion=fusion), prompts("gemma2")
    model.get_base_model().generation_config.eos_token_id = None
    how = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found = model.generate(**given, **how)
    mask = torch.cat([given["attention_mask"], torch.ones(3, 6, dtype=torch.long)], 1)
    whole = {**given, "input_ids": found.sequences, "attention_mask": mask}
    with torch.no_grad():
        logits = model(**whole, answer_start=torch.full((3,), 7)).logits
    assert torch.allclose(torch.stack(found.logits, 1), logits[:, 6:-1], atol=1e-5)


def test_the_sources_answer_is_as_long_as_the_targets_may_be():
    model, given = small.fused("llama", answer_source="generate"), prompts("llama")
    settings = model.get_base_model().generation_config
    settings.eos_token_id = None
    expected = model.generate(**given, max_new_tokens=5, do_sample=False)
    assert torch.equal(model.generate(**given, max_length=12, do_sample=False), expected)
    settings.max_new_tokens = 5
    assert torch.equal(model.generate(**given, do_sample=False), expected)
    widths = []
    states = model.source_states
    model.source_states = lambda ids, mask: widths.append(ids.shape[1]) or states(ids, mask)
    model.generate(**given, do_sample=False)
    assert widths == [8 + 5]
    settings.max_new_tokens = settings.max_length = None
    with refused("max_new_tokens", "not set", "answer_source='generate'"):
        model.generate(**given, do_sample=False)


@pytest.mark.parametrize("answer_source", ["last", "none", "generate"])
@pytest.mark.parametrize("fusion", small.FUSIONS)
def test_rows_of_a_fused_cache_go_on_with_their_own_source(fusion, answer_source):
    model, given = small.fused("llama", fusion=fusion, answer_source=answer_source), prompts("llama")
    if answer_source == "generate":
        model.get_base_model().generation_config.eos_token_id = None
    rows, answers = torch.tensor([2, 0, 0, 2]), torch.tensor([[5, 6], [7, 8], [9, 5], [6, 6]])
    with torch.no_grad():
        first = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
        cache = model(**given, position_ids=first, use_cache=True, answer_tokens=2).past_key_values
        cache.batch_select_indices(rows)
        mask = torch.cat([given["attention_mask"][rows], torch.ones_like(answers)], 1)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        found = model(
            input_ids=answers, attention_mask=mask, position_ids=places[:, -2:], past_key_values=cache
        ).logits
        for row, number in enumerate(rows.tolist()):
            one = {key: value[number : number + 1] for key, value in given.items()}
            whole = torch.cat([one["input_ids"], answers[row : row + 1]], 1)
            one |= {"input_ids": whole, "attention_mask": mask[row : row + 1]}
            start = torch.tensor([given["input_ids"].shape[1]])
            expected = model(**one, position_ids=places[row : row + 1], answer_start=start).logits
            assert torch.allclose(found[row], expected[0, -2:], atol=1e-5)
