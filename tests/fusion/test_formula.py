"""Outputs and gradients equal the formula's, for every architecture, fusion function and place of the states."""

import pytest
import reference
import torch

from builders import small

CASES = [
    *((name, fusion, "projection-input") for name in small.NAMES for fusion in small.FUSIONS),
    *((name, "add_relu", where) for name in small.NAMES for where in ("block-input", "block-output")),
]


def explicit(name, model, backbone, given, fusion, where, padding="left", answer="last"):
    """Loss, logits and gradients of the plain backbone with the formula hooked on."""
    factors = small.factors(model)
    paths = [path for path in factors if "decoder" not in path or name not in small.ENCODER_DECODERS]
    stack = backbone.get_encoder() if name in small.ENCODER_DECODERS else backbone.base_model
    blocks = {path.rsplit(".", _depth(path))[0]: None for path in paths}
    blocks = {path: backbone.get_submodule(path) for path in blocks}
    ids, mask = given["source_input_ids"], given["source_attention_mask"]
    extra = {}
    if name in small.DECODERS:
        extra = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0), "use_cache": False}
    states = reference.states_of(
        backbone,
        lambda **more: stack(input_ids=ids, attention_mask=mask, **extra, **more),
        blocks,
        paths,
        where,
    )
    causal = name in small.DECODERS
    starts = (given["labels"] != -100).int().argmax(1).tolist() if causal else None
    met = {
        path: reference.side_by_side(states[path], mask, given["attention_mask"], starts, padding, answer)
        for path in paths
    }
    fused = {path: factors[path] for path in paths}
    hooks = reference.hooked(backbone, fused, met, fusion, 6 / 4, given["attention_mask"], causal)
    for path in factors.keys() - fused.keys():  # plain LoRA in the decoder

        def add(module, inputs, out, factor=factors[path]):
            return out + 6 / 4 * inputs[0] @ factor["A"].T @ factor["B"].T

        hooks.append(backbone.get_submodule(path).register_forward_hook(add))
    output = backbone(**small.target_only(given))
    for hook in hooks:
        hook.remove()
    output.loss.backward()
    return output, factors


def _depth(path):
    """Parts of a path behind its block's number."""
    parts = path.split(".")
    return len(parts) - 1 - next(index for index, part in enumerate(parts) if part.isdigit())


def agree(name, given, model, backbone, *how, **more):
    expected, factors = explicit(name, model, backbone, given, *how, **more)
    found = model(**given)
    found.loss.backward()
    theirs, ours = (small.real(output.logits, given, name) for output in (expected, found))
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)
    compared = 0
    for path, factor in factors.items():
        layer = model.get_base_model().get_submodule(path)
        for key, tensor in factor.items():
            if key in "AB":
                gradient = getattr(layer, f"lora_{key}")["default"].weight.grad
            else:
                gradient = layer.lora_fusion["default"][key].grad
            assert gradient.abs().max() > 1e-6, (path, key)
            scale = max(1.0, float(tensor.grad.abs().max()))
            assert (gradient - tensor.grad).abs().max() <= 1e-5 * scale, (path, key)
            compared += 1
    return compared


@pytest.mark.parametrize(("name", "fusion", "where"), CASES, ids=["-".join(case) for case in CASES])
def test_outputs_and_gradients_equal_the_formula(name, fusion, where):
    backbone = small.plain(name)
    model = small.fused(name, backbone, fusion=fusion, source_state=where)
    per_layer = 2 + len(small.FUSIONS[fusion].weights)
    fused = 6 if name in small.ENCODER_DECODERS else 4
    plain = (
        8 if name in small.ENCODER_DECODERS else 0
    )  # in the decoder: q, v of self-attention and cross-attention
    assert agree(name, small.batch(name), model, backbone, fusion, where) == per_layer * fused + 2 * plain


@pytest.mark.parametrize("answer", ["last", "none"])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("source_side", ["left", "right"])
def test_what_meets_what_does_not_depend_on_how_a_batch_is_padded(padding, answer, source_side):
    backbone = small.plain("llama")
    model = small.fused("llama", backbone, fusion="add", padding=padding, answer_source=answer)
    given = small.batch("llama", source_side=source_side)
    assert agree("llama", given, model, backbone, "add", "block-input", padding=padding, answer=answer)


@pytest.mark.parametrize("name", ["xlmr", "t5"])
def test_padding_right_lets_first_tokens_meet_in_encoders(name):
    backbone = small.plain(name)
    model = small.fused(name, backbone, padding="right")
    assert agree(name, small.batch(name), model, backbone, "add_relu", "block-input", padding="right")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "xlmr", "t5"])
def test_eager_and_sdpa(name, attention):
    backbone = small.plain(name, attention)
    assert backbone.config._attn_implementation == attention
    model = small.fused(name, backbone, fusion="cross_attention")
    assert agree(name, small.batch(name), model, backbone, "cross_attention", "block-input")


def test_fused_modules_apart_from_the_others():
    """LoRA on all linear layers, fused on q and v: the rest is plain LoRA."""
    backbone = small.plain("llama")
    everything = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = small.fused("llama", backbone, target_modules=everything, fusion_modules=["q_proj", "v_proj"])
    given = small.batch("llama")
    alone = small.fused("llama", backbone)
    state = {key: value for key, value in model.state_dict().items() if "lora_" in key}
    rest = {key for key in state if ".q_proj." not in key and ".v_proj." not in key}
    assert len(rest) == 2 * 2 * 5
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key in rest:
                value.zero_()
        alone.load_state_dict({key: value for key, value in state.items() if key not in rest}, strict=False)
        assert torch.equal(model(**given).logits, alone(**given).logits)
    small.draw(model)
    with model.fusion_off(), torch.no_grad():
        off = model(**given).logits
    assert not torch.allclose(off, model(**given).logits, atol=1e-3)
