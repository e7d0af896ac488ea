"""bfloat16 products in float32, and the loss of a large vocabulary in parts, against torch's own."""

import peft
import pytest
import torch
import transformers as hf
from torch.nn import functional

from lingualift.backbone import products
from lingualift.backbone.products import (
    WideLinear,
    attend_unplanned,
    attend_wide,
    fold_lora,
    multiply_wide,
    summed_loss,
)


@pytest.fixture(params=[True, False], ids=["slow", "fast"])
def processor(request, monkeypatch):
    """A processor without, and one with, instructions for bfloat16."""
    monkeypatch.setattr(products, "multiplies_slowly", lambda dtype, place: request.param)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1, 2), (3, 7), (300,)])
def test_a_wide_layer_rounds_the_exact_product_once(rows, bias, monkeypatch):
    monkeypatch.setattr(products, "_PIECE", 500)  # several pieces, and the last one shorter
    torch.manual_seed(0)
    plain = torch.nn.Linear(40, 33, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    states = torch.randn(*rows, 40, dtype=torch.bfloat16)
    exact = functional.linear(states.double(), plain.weight.double(), plain.bias.double() if bias else None)
    model = torch.nn.Sequential(plain)
    multiply_wide(model)
    assert type(model[0]) is WideLinear
    found = model(states)
    assert found.dtype == torch.bfloat16
    # half a unit in the last place of bfloat16, and what float32 sums lose
    assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 * 1.01 + 1e-5).all()


def test_its_gradient_is_that_of_the_product(monkeypatch):
    monkeypatch.setattr(products, "_PIECE", 500)
    torch.manual_seed(1)
    layer = torch.nn.Linear(40, 33, dtype=torch.bfloat16).requires_grad_(False)
    layer.__class__ = WideLinear
    states = torch.randn(5, 6, 40, dtype=torch.bfloat16, requires_grad=True)
    above = torch.randn(5, 6, 33, dtype=torch.bfloat16)
    layer(states).backward(above)
    exact = above.double() @ layer.weight.double()
    assert ((states.grad.double() - exact).abs() <= exact.abs() * 2**-8 * 1.01 + 1e-5).all()


def test_layers_that_are_trained_or_in_another_format_are_left_to_torch():
    trained = torch.nn.Linear(4, 4, dtype=torch.bfloat16)
    trained.__class__ = WideLinear
    trained(torch.randn(8, 4, dtype=torch.bfloat16)).sum().backward()
    assert trained.weight.grad is not None
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    multiply_wide(model)
    assert type(model[0]) is torch.nn.Linear


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_a_bias_that_an_adapter_trains_gets_its_gradient(bias):
    """peft trains the layer's own bias then."""
    layer = torch.nn.Linear(8, 8, dtype=torch.bfloat16).requires_grad_(False)
    model = torch.nn.Sequential(layer)
    multiply_wide(model)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], r=2, bias=bias))
    fold_lora(model)
    model(torch.randn(10, 8, dtype=torch.bfloat16)).sum().backward()
    assert layer.bias.requires_grad
    assert (layer.bias.grad == 10).all()


def test_a_weight_that_an_adapter_computes_lets_its_gradient_through():
    """peft parametrizes the layer itself then, whose own parameters stay frozen."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8, dtype=torch.bfloat16).requires_grad_(False))
    multiply_wide(model)
    config = peft.LoraConfig(target_modules=[], target_parameters=["0.weight"], r=2)
    model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    fold_lora(model)
    model(torch.randn(10, 8, dtype=torch.bfloat16)).sum().backward()
    assert any(
        w.grad is not None and w.grad.any() for name, w in model.named_parameters() if "lora_B" in name
    )


@pytest.mark.parametrize("adapter", [False, True])
def test_an_output_may_be_changed_in_place(adapter):
    """As OLMo clips its queries, keys and values."""
    if adapter:
        model, _ = adapted()
    else:
        layer = torch.nn.Linear(40, 33, dtype=torch.bfloat16).requires_grad_(False)
        layer.__class__ = WideLinear
        model = torch.nn.Sequential(layer)
    states = torch.randn(4, 10, 40, dtype=torch.bfloat16, requires_grad=True)
    model(states).clamp_(-0.5, 0.5).sum().backward()
    assert states.grad.any()


@pytest.mark.parametrize("part", ["base_layer", "lora_A", "lora_B", "lora_dropout"])
def test_a_hook_on_a_part_of_a_lora_layer_is_called(part):
    model, _ = adapted()
    layer = getattr(model.base_model.model[0], part)
    seen = []
    (layer if part == "base_layer" else layer["default"]).register_forward_hook(lambda *_: seen.append(part))
    model(torch.randn(40, 40, dtype=torch.bfloat16))
    assert seen == [part]


def test_autocast_does_not_reach_inside():
    torch.manual_seed(2)
    layer = torch.nn.Linear(64, 64, dtype=torch.bfloat16).requires_grad_(False)
    layer.__class__ = WideLinear
    states = torch.randn(16, 64, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(states), layer(states))
        inside = layer(states)
    assert torch.equal(inside, layer(states))


CONFIGS = {
    "gemma3": lambda: hf.Gemma3TextConfig(
        vocab_size=60, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=4,
    ),
    "t5": lambda: hf.T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=16, num_layers=2, num_heads=4, decoder_start_token_id=0
    ),
    "bert": lambda: hf.BertConfig(
        vocab_size=60, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4
    ),
}  # fmt: skip
CLASSES = {"gemma3": hf.Gemma3ForCausalLM, "t5": hf.T5ForConditionalGeneration, "bert": hf.BertForMaskedLM}


@pytest.fixture(params=CONFIGS)
def asked(request):
    """Logits and gradients of a model, asked with padding; and the model."""
    torch.manual_seed(4)
    model = CLASSES[request.param](CONFIGS[request.param]()).eval()
    assert model.config._attn_implementation == "sdpa"
    ids = torch.randint(2, 60, (3, 9))
    given = {
        "input_ids": ids,
        "labels": ids,
        "attention_mask": (torch.arange(9) < torch.tensor([[9], [5], [7]])).long(),
    }

    def asked():
        model.zero_grad()
        output = model(**given)
        output.loss.backward()
        return output.logits.detach(), [value.grad.clone() for value in model.parameters()]

    return asked, model


def test_attention_without_cudnn_is_attention(asked):
    asked, model = asked
    expected = asked()
    attend_unplanned(model)
    allowed = torch.backends.cuda.cudnn_sdp_enabled()
    found = asked()
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(one, other) for one, other in zip(found[1], expected[1], strict=True))
    assert torch.backends.cuda.cudnn_sdp_enabled() == allowed


@pytest.mark.parametrize("attend", [attend_wide, attend_unplanned])
def test_models_that_ask_for_the_name_of_their_attention_attend_to_the_same(attend):
    """Gemma 4 prepares states for "sdpa" otherwise where layers share them, and under another name cut too many."""
    torch.manual_seed(5)
    config = hf.Gemma4TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, global_head_dim=16, num_kv_shared_layers=2,
        vocab_size_per_layer_input=64, hidden_size_per_layer_input=8, sliding_window=64,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    model = hf.Gemma4ForCausalLM(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    attend(model)
    ids = torch.randint(3, 64, (2, 9))
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -4:]
        cut = model(input_ids=ids, attention_mask=torch.ones_like(ids), logits_to_keep=4).logits
    assert torch.allclose(cut, whole, atol=1e-4)


def test_other_models_attend_as_ever(monkeypatch):
    ours, theirs = (CLASSES["gemma3"](CONFIGS["gemma3"]()).eval() for _ in range(2))
    attend_wide(ours)
    ids = torch.randint(2, 60, (2, 9))
    seen = []
    monkeypatch.setattr(products, "_wide", lambda value: seen.append(value) or value)
    theirs(input_ids=ids)
    assert not seen


def test_wide_attention_is_attention(asked, monkeypatch):
    """In float32, where nothing is rounded, the same logits and gradients, with padding; in bfloat16 close ones."""
    asked, model = asked
    expected = asked()
    attend_wide(model)
    seen = []
    monkeypatch.setattr(
        products, "_wide", lambda value, wide=products._wide: seen.append(value) or wide(value)
    )
    found = asked()
    assert seen
    assert torch.allclose(found[0], expected[0], atol=1e-5)
    assert all(
        torch.allclose(one, other, atol=1e-5) for one, other in zip(found[1], expected[1], strict=True)
    )
    model.bfloat16()
    rough = asked()
    assert rough[0].dtype == torch.bfloat16
    assert (rough[0] - expected[0]).abs().max() <= 0.05 * expected[0].abs().max()


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("tokens", [1, 9])
def test_the_loss_in_parts_is_the_loss_at_once(dtype, close, tokens, monkeypatch):
    monkeypatch.setattr(products, "LOGITS", 4 * 50)  # four tokens at once
    torch.manual_seed(3)
    weight = torch.randn(50, 12).to(dtype)
    states = torch.randn(tokens, 12).to(dtype).requires_grad_()
    labels = torch.randint(50, (tokens,))
    loss = summed_loss(states, weight, labels)
    (3 * loss).backward()
    exact = states.detach().double().requires_grad_()
    whole = functional.cross_entropy(exact @ weight.double().T, labels, reduction="sum")
    (3 * whole).backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(whole.item(), rel=close)
    assert (states.grad.double() - exact.grad).abs().max() <= close * exact.grad.abs().max()


def adapted(dtype=torch.bfloat16, **more):
    """A layer with a LoRA adapter on it, folded, and the same as peft has it."""
    torch.manual_seed(5)
    models = []
    for wide in (True, False):
        layer = torch.nn.Linear(40, 33, dtype=dtype).requires_grad_(False)
        model = torch.nn.Sequential(layer)
        if models:
            layer.load_state_dict(models[0].base_model.model[0].base_layer.state_dict())
        if wide:
            multiply_wide(model)
        config = peft.LoraConfig(target_modules=["0"], r=4, lora_alpha=12, **{"lora_dropout": 0.0, **more})
        model = peft.get_peft_model(model, config)
        for name, weight in model.named_parameters():
            if "lora" in name:
                torch.nn.init.normal_(weight, std=0.3)
        if models:
            model.load_state_dict(models[0].state_dict())
        models.append(model)
    fold_lora(models[0])
    return models


def test_beside_bfloat16_weights_that_are_multiplied_fast_lora_is_as_peft_has_it():
    """Two roundings as peft's; its gradients are those of float32 factors."""
    _, model = adapted()
    fold_lora(model)
    layer = model.base_model.model[0]
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    states = torch.randn(3, 13, 40, dtype=torch.bfloat16, requires_grad=True)
    above = torch.randn(3, 13, 33, dtype=torch.bfloat16)
    found = model(states)
    found.backward(above)
    kept = [value.grad.clone() for value in (states, down, up)]
    model.zero_grad()
    states.grad = None
    layer.__class__ = peft.tuners.lora.Linear
    expected = model(states)
    expected.backward(above)
    assert torch.equal(found, expected)
    assert torch.allclose(kept[0].float(), states.grad.float(), rtol=2**-6, atol=2**-6)
    for ours, theirs in zip(kept[1:], (down.grad, up.grad), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_a_lora_layer_keeps_for_the_backward_pass_is_its_states_once(dtype):
    ours, theirs = adapted(dtype)
    fold_lora(theirs)  # in bfloat16: the way of processors that multiply it fast
    states = torch.randn(64, 40, dtype=dtype, requires_grad=True)
    for model in (ours, theirs):
        seen = set()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda value, seen=seen: seen.add((value.data_ptr(), value.dtype, tuple(value.shape))) or value,
            lambda value: value,
        ):
            model(states)
        rows = {entry for entry in seen if entry[2][0] == 64}
        assert {(place, size[1]) for place, _, size in rows if size[1] > 4} == {(states.data_ptr(), 40)}


FORMATS = {torch.bfloat16: 2**-8, torch.float32: 2**-23}  # and half a unit in the last place


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_folded_lora_layer_rounds_the_exact_sum_once(dtype, monkeypatch):
    monkeypatch.setattr(products, "_PIECE", 500)
    model, _ = adapted(dtype)
    layer = model.base_model.model[0]
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    states = torch.randn(3, 13, 40, dtype=dtype, requires_grad=True)
    above = torch.randn(3, 13, 33, dtype=dtype)
    whole = layer.base_layer.weight.clone()
    model(states).backward(above)
    assert torch.equal(layer.base_layer.weight, whole)
    rows, small, large = (value.detach().double().requires_grad_() for value in (states, down, up))
    base = layer.base_layer
    exact = functional.linear(rows, base.weight.double() + 3 * large @ small, base.bias.double())
    exact.backward(above.double())
    for found, expected in ((model(states), exact), (states.grad, rows.grad)):
        assert found.dtype == dtype
        assert ((found.double() - expected).abs() <= expected.abs() * FORMATS[dtype] * 1.01 + 2e-5).all()
    for found, expected in ((down.grad, small.grad), (up.grad, large.grad)):
        assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    ("more", "fused"),
    [
        ({}, "training eval"),
        ({"lora_dropout": 0.5}, "eval"),
        ({"use_dora": True}, ""),
        ({"lora_bias": True}, ""),
    ],
)
def test_it_is_as_peft_has_it_up_to_rounding_and_left_to_peft_where_it_is_not_plain(
    dtype, more, fused, monkeypatch
):
    ours, theirs = adapted(dtype, **more)
    states = torch.randn(40, 40, dtype=dtype)
    products_of_both = []

    def pieces(weight, down=None, *rest, made=products._pieces):
        products_of_both.append(down is not None)
        return made(weight, down, *rest)

    monkeypatch.setattr(products, "_pieces", pieces)

    def check(when):
        products_of_both.clear()
        torch.manual_seed(6)
        found = ours(states)
        torch.manual_seed(6)
        expected = theirs(states)
        assert (found - expected).abs().max() <= 4 * FORMATS[dtype] * expected.abs().max()
        assert any(products_of_both) == (when in fused.split())

    check("training")
    ours.eval(), theirs.eval()
    check("eval")
    with ours.disable_adapter(), theirs.disable_adapter():
        check("disabled")
    if more.get("lora_bias"):
        return  # of which peft allows one adapter alone
    for model in (ours, theirs):
        model.add_adapter("other", peft.LoraConfig(target_modules=["0"], r=2))
        model.base_model.set_adapter(["default", "other"])
    check("two adapters")


def test_without_gradients_for_its_states_a_lora_layer_learns_the_same():
    model, _ = adapted()
    states = torch.randn(40, 40, dtype=torch.bfloat16)
    grads = []
    for begun in (states, states.clone().requires_grad_()):
        model.zero_grad()
        model(begun).float().sum().backward()
        grads.append([weight.grad.clone() for weight in model.parameters() if weight.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


@pytest.mark.parametrize("precision", [torch.bfloat16, None])
def test_a_model_of_transformers_learns_by_it_as_by_peft(precision):
    """Gemma with both ways of LoRA: losses close, every adapter weight's gradient in the same direction."""
    torch.manual_seed(7)
    model = CLASSES["gemma3"](CONFIGS["gemma3"]()).bfloat16().requires_grad_(False)
    multiply_wide(model)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules="all-linear")
    model = peft.get_peft_model(model, config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    ids = torch.randint(2, 60, (3, 9))

    def learnt():
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return loss.item(), {n: w.grad.clone() for n, w in model.named_parameters() if w.requires_grad}

    expected, theirs = learnt()
    fold_lora(model)
    found, ours = learnt()
    assert found == pytest.approx(expected, abs=0.02)
    assert all(torch.cosine_similarity(ours[n].flatten(), theirs[n].flatten(), dim=0) > 0.97 for n in theirs)
