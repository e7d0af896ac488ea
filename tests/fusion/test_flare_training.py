"""Fusion survives what training does to a forward pass."""

import copy

import peft
import pytest
import torch

from builders import small

KINDS = {"reentrant": True, "not-reentrant": False}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dropout_rate": 0.0}


def learner(name, attention=None, **settings):
    """A model in training whose backbone has no dropout."""
    return small.fused(name, small.plain(name, attention, **STILL), **settings).train()


def checkpointed(model, reentrant):
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
    model.get_base_model().enable_input_require_grads()
    return model


def gradients(model, *batches, scope=None):
    """Gradients of the sum of losses: all forward passes first, then one backward pass."""
    model.zero_grad()
    loss = sum(model(**given).loss for given in batches)
    loss.backward()
    return {key: value.clone() for key, value in small.gradients(model).items()}


def equal(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    assert all(value is not None and value.abs().max() > 1e-6 for value in theirs.values())
    for key in ours:
        assert torch.allclose(ours[key], theirs[key], **(tolerance or {"atol": 1e-6, "rtol": 1e-5})), key


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fusion", ["add_relu", "cross_attention"])
@pytest.mark.parametrize("name", small.NAMES)
def test_gradients_with_checkpointing_equal_those_without(name, fusion, kind):
    model, given = learner(name, fusion=fusion), small.batch(name)
    expected = gradients(model, given)
    calls = []
    layer = model.get_base_model().get_submodule(next(iter(small.factors(model))))
    layer.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    equal(gradients(checkpointed(model, KINDS[kind]), given), expected)
    assert len(calls) == 3  # source pass, target pass, and the target pass again


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "xlmr", "t5"])
def test_two_forward_passes_before_one_backward_pass(name, kind):
    """Each is run again with its own source."""
    model, one = learner(name), small.batch(name)
    other = {**one, "source_input_ids": small.padded([6, 5, 2], "left", 9)[0]}
    other["source_attention_mask"] = (other["source_input_ids"] != 3).long()
    apart = [gradients(model, given) for given in (one, other)]
    expected = {key: apart[0][key] + apart[1][key] for key in apart[0]}
    assert any(not torch.allclose(apart[0][key], apart[1][key], rtol=0.05) for key in apart[0])
    equal(gradients(model, one, other), expected)
    equal(gradients(checkpointed(model, KINDS[kind]), one, other), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_with_fusion_off_is_repeated_with_fusion_off(kind):
    model, given = learner("llama"), small.batch("llama")
    checkpointed(model, KINDS[kind])
    with model.fusion_off():
        loss = model(**small.target_only(given)).loss
    loss.backward()
    after = {key: value.clone() for key, value in small.gradients(model).items()}
    with model.fusion_off():
        expected = gradients(model, small.target_only(given))
    equal(after, expected)
    assert any(not torch.allclose(after[key], value) for key, value in gradients(model, given).items())


@pytest.mark.parametrize("name", small.NAMES)
def test_fusion_off_is_peft_lora_bit_for_bit(name):
    backbone = small.plain(name)
    model = small.fused(name, backbone, lora_dropout=0.2, fusion="cross_attention").train()
    config = peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=0.2, target_modules=small.NAMES[name])
    plain = peft.get_peft_model(copy.deepcopy(backbone), config).train()
    state = {key: value for key, value in model.state_dict().items() if "lora_fusion" not in key}
    plain.load_state_dict(state)
    given = small.target_only(small.batch(name))
    torch.manual_seed(0)
    theirs = plain(**given)
    theirs.loss.backward()
    torch.manual_seed(0)
    with model.fusion_off():
        ours = model(**given)
    ours.loss.backward()
    assert torch.equal(ours.logits, theirs.logits)
    expected = small.gradients(plain)
    found = {key: value for key, value in small.gradients(model).items() if "lora_fusion" not in key}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(("name", "fusion"), small.CROSSED)
def test_bf16_autocast(name, fusion):
    """In eager attention: with checkpointing, T5's position bias takes a gradient, and SDPA another kernel for it."""
    # a block's output is not normalised, and matmul, a product of three states, lets its rounding grow
    where = "projection-input" if fusion == "matmul" else "block-output"
    model, given = learner(name, "eager", fusion=fusion, source_state=where), small.batch(name)
    exact = model(**given)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(**given)
        expected = gradients(model, given)
        again = gradients(checkpointed(model, False), given)
    assert not torch.equal(exact.logits, rounded.logits)
    ours, theirs = (small.real(output.logits.float(), given, name) for output in (rounded, exact))
    assert (ours - theirs).norm() < 0.03 * theirs.norm()
    with model.fusion_off():
        off = small.real(model(**small.target_only(given)).logits, given, name)
    assert (off - theirs).norm() > 4 * (ours - theirs).norm()
    equal(again, expected)


def test_weights_of_the_backbone_can_be_trained_too_under_autocast():
    """What autocast casts in the source pass, which has no gradients, must not be used in the target pass."""
    model, given = learner("llama"), small.batch("llama")
    weight = model.get_base_model().model.layers[0].mlp.up_proj.weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        model(**given).loss.backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


def test_a_bf16_backbone_has_its_adapter_in_float32():
    backbone = small.plain("llama").to(torch.bfloat16)
    model, given = small.fused("llama", backbone, fusion="cross_attention"), small.batch("llama")
    output = model(**given)
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert {value.dtype for value in small.gradients(model).values()} == {torch.float32}


@pytest.mark.parametrize("name", small.NAMES)
def test_a_fused_layer_without_its_source_says_so(name):
    model, given = small.fused(name), small.target_only(small.batch(name))
    with pytest.raises(RuntimeError, match="is fused and got no source"):
        model(**given)
    with pytest.raises(RuntimeError, match="is fused and got no source"):
        model.get_base_model()(**given)
    model(**small.batch(name))
    with pytest.raises(RuntimeError, match="is fused and got no source"):  # not the one before it
        model(**given)
    with model.fusion_off():
        model(**given)


def test_dropout_is_drawn_for_the_target_alone():
    """Two passes in training differ in the target's dropout; the source's states are the same."""
    backbone = small.plain("xlmr")
    model, given = small.fused("xlmr", backbone).train(), small.batch("xlmr")
    source = given["source_input_ids"], given["source_attention_mask"]
    one, two = model.source_states(*source), model.source_states(*source)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert model.training
    assert all(module.training for module in model.modules())
    assert not torch.equal(model(**given).logits, model(**given).logits)
