"""The source pass: whose states they are, where it stops, and what the target learns from them."""

import pytest
import torch

from builders import small


@pytest.mark.parametrize("where", ["block-input", "block-output", "projection-input"])
@pytest.mark.parametrize("name", small.NAMES)
def test_changing_only_the_source_changes_the_output(name, where):
    model, given = small.fused(name, source_state=where), small.batch(name)
    other = {**given, "source_input_ids": given["source_input_ids"].clone()}
    other["source_input_ids"][0, 4] = 7 + (given["source_input_ids"][0, 4] == 7)
    with torch.no_grad():
        one, two = model(**given).logits, model(**other).logits
    assert not torch.allclose(one[0], two[0], atol=1e-4)
    assert torch.allclose(one[1:], two[1:], atol=1e-5)  # other rows have other sources


@pytest.mark.parametrize("name", small.NAMES)
def test_source_padding_is_not_read(name):
    model, given = small.fused(name, fusion="cross_attention"), small.batch(name)
    other = {**given, "source_input_ids": given["source_input_ids"].clone()}
    other["source_input_ids"][given["source_attention_mask"] == 0] = 9
    with torch.no_grad():
        one, two = (small.real(model(**each).logits, given, name) for each in (given, other))
    assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("name", small.NAMES)
def test_target_padding_is_not_read(name):
    model, given = small.fused(name, fusion="cross_attention"), small.batch(name)
    other = {**given, "input_ids": given["input_ids"].clone()}
    other["input_ids"][given["attention_mask"] == 0] = 9
    with torch.no_grad():
        one, two = (small.real(model(**each).logits, given, name) for each in (given, other))
    assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize(
    ("where", "last"), [("block-input", 0), ("projection-input", 1), ("block-output", 1)]
)
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen2", "xlmr", "t5"])
def test_the_source_pass_stops_after_the_last_fused_block(name, where, last):
    """Fused in the first block alone: of the source, no later block and no head is computed."""
    first = r"encoder\.block\.0\..*\.(q|v)" if name == "t5" else r".*\.0\..*\.(q_proj|v_proj|query|value)"
    model = small.fused(name, target_modules=first, fusion_modules=first, source_state=where)
    backbone = model.get_base_model()
    ran = {"head": 0, "second": 0, "feed-forward": 0}
    stack = next(
        module for key, module in backbone.named_modules() if key.endswith((".layers", ".layer", ".block"))
    )
    _count(ran, "head", backbone.lm_head)
    _count(ran, "second", stack[1])
    _count(ran, "feed-forward", [m for m in stack[0].modules() if isinstance(m, torch.nn.Linear)][-1])
    given = small.batch(name)
    model.source_states(given["source_input_ids"], given["source_attention_mask"])
    assert ran == {"head": 0, "second": 0, "feed-forward": int(where == "block-output")}
    model(**given)
    assert ran["head"] == ran["second"] == 1


def _count(ran, name, module):
    module.register_forward_pre_hook(lambda *_: ran.__setitem__(name, ran[name] + 1))


@pytest.mark.parametrize("name", small.NAMES)
def test_source_states_are_those_of_the_backbone_without_the_adapter(name):
    """And no gradient flows into the source pass."""
    backbone = small.plain(name)
    everything = [*small.NAMES[name], *({"llama": ["up_proj"], "xlmr": ["key"]}.get(name, []))]
    model = small.fused(name, backbone, target_modules=everything, source_state="block-output")
    given = small.batch(name)
    ids, mask = given["source_input_ids"], given["source_attention_mask"]
    states = list(model.source_states(ids, mask).values())
    stack = backbone.get_encoder() if name in small.ENCODER_DECODERS else backbone.base_model
    hidden = stack(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert not any(state.requires_grad for state in states)
    real = mask.bool()
    assert torch.allclose(states[0][real], hidden[1][real], atol=1e-5)
    before = {key: value.clone() for key, value in model.named_parameters() if "lora_" not in key}
    model(**given).loss.backward()
    assert all(torch.equal(value, before[key]) for key, value in model.named_parameters() if key in before)
    assert all(value.grad is None for key, value in model.named_parameters() if key in before)


def _seen(model):
    """Token ids that the backbone reads, pass by pass."""
    seen = []
    embedding = model.get_base_model().get_input_embeddings()
    embedding.register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()))
    return seen


@pytest.mark.parametrize("answer", ["last", "none", "generate"])
@pytest.mark.parametrize("name", small.DECODERS)
def test_the_gold_answer_is_nowhere_in_the_source(name, answer):
    """The source side is the same whatever the gold answer says, in training and in generation."""
    model, given = small.fused(name, answer_source=answer), small.batch(name)
    gold = given["labels"] != -100
    other = {key: value.clone() for key, value in given.items()}
    other["input_ids"][gold], other["labels"][gold] = 11, 11
    seen = _seen(model)
    with torch.no_grad():
        model(**given)
        first, seen[:] = list(seen), []
        model(**other)
    assert len(first) == len(seen)
    assert all(torch.equal(one, two) for one, two in zip(first[:-1], seen[:-1], strict=True))
    assert not torch.equal(first[-1], seen[-1])
    width = given["source_input_ids"].shape[1]
    assert torch.equal(first[0][:, :width], given["source_input_ids"])


def test_answers_meet_the_sources_own_answer():
    """`generate`: the states of the source prompt and its greedy answer, met position by position."""
    model, given = small.fused("llama", answer_source="generate", fusion="add"), small.batch("llama")
    plain = small.fused("llama", fusion="add")
    backbone = small.plain("llama")
    tokens = given["input_ids"].shape[1] - 7
    ids, mask = given["source_input_ids"], given["source_attention_mask"]
    backbone.generation_config.eos_token_id = model.get_base_model().generation_config.eos_token_id = None
    answered = backbone.generate(input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False)
    whole = {**given, "source_input_ids": answered}
    whole["source_attention_mask"] = torch.cat([mask, torch.ones(3, tokens, dtype=torch.long)], 1)
    whole["attention_mask"] = torch.cat(
        [given["attention_mask"][:, :7], torch.ones(3, tokens, dtype=torch.long)], 1
    )
    with torch.no_grad():
        ours = model(**{**given, "attention_mask": whole["attention_mask"]}).logits
        # with nothing called an answer, `left` lets prompts with their answers behind them meet
        theirs = plain(**{key: value for key, value in whole.items() if key != "labels"}).logits
    real = given["attention_mask"][:, :7].bool()
    assert torch.allclose(ours[:, :7][real], theirs[:, :7][real], atol=1e-5)
    assert torch.allclose(ours[:, 7:], theirs[:, 7:], atol=1e-5)


def test_the_sources_answer_ends_where_it_ends():
    """Positions behind its end meet the end."""
    model, given = small.fused("llama", answer_source="generate", fusion="add"), small.batch("llama")
    backbone = model.get_base_model()
    ids, mask = given["source_input_ids"], given["source_attention_mask"]
    backbone.generation_config.eos_token_id = None
    free, _, _ = model._answered(ids, mask, 3)
    backbone.generation_config.eos_token_id = int(free[0, -2])
    _, ended_mask, prompt_end = model._answered(ids, mask, 3)
    first = (free[0, -3:] == free[0, -2]).int().argmax() + 1
    assert torch.equal(ended_mask[0], torch.tensor([1] * (8 + int(first)) + [0] * (3 - int(first))))
    assert prompt_end.tolist() == [8, 8, 8]


@pytest.mark.parametrize("name", small.NAMES)
def test_hidden_states_that_are_asked_for_are_the_targets(name):
    """The source pass ends early, and leaves nothing behind in what collects the target's states."""
    model, given = small.fused(name), small.batch(name)
    with torch.no_grad():
        plain = model(**given).logits
        for _ in range(2):
            output = model(**given, output_hidden_states=True)
            assert torch.equal(output.logits, plain)
        with model.fusion_off():
            unfused = model(**small.target_only(given), output_hidden_states=True)
        asked = {"output_hidden_states": True} if name in small.ENCODER_DECODERS else {}  # T5 wants it said
        model.get_base_model().config.output_hidden_states = True
        again = model(**given, **asked)
    names = [key for key in unfused if key.endswith("hidden_states")]
    assert names
    for key in names:
        assert [each.shape for each in output[key]] == [each.shape for each in unfused[key]]
        assert all(torch.equal(one, two) for one, two in zip(output[key], again[key], strict=True))
