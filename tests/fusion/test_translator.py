"""FLARE-MT: the encoder of a translation model reads the target text, tagged with its own language."""

import pytest
import reference
import torch
import transformers as hf

import lingualift as ll
from builders import small, tiny
from builders.refusals import refused
from lingualift.fusion import source_ids

NAME = "nllb"


def translator():
    torch.manual_seed(5)
    config = tiny.config_of("nllb", small.WORDS)
    config.d_model = 24
    return hf.AutoModelForSeq2SeqLM.from_config(config).eval()


def fused(name, backbone=None, **settings):
    model = ll.flare(
        backbone or small.plain(name),
        ll.FlareConfig(r=4, lora_alpha=6, target_modules=small.NAMES[name], source_encoder=NAME, **settings),
        source_encoder=translator(),
    )
    small.draw(model)
    return model.eval()


def expected(name, backbone, model, given, fusion):
    """The plain backbone with the formula hooked on: x_S = P·(the encoder's last states) for every layer."""
    mask = given["source_attention_mask"]
    with torch.no_grad():
        encoder = translator().get_encoder()
        last = encoder(input_ids=given["source_input_ids"], attention_mask=mask).last_hidden_state
    P, b = (value.detach().clone().requires_grad_() for value in model.flare_projection.parameters())
    causal = name in small.DECODERS
    starts = (given["labels"] != -100).int().argmax(1).tolist() if causal else None
    factors = small.factors(model)
    inside = {path: factor for path, factor in factors.items() if not path.startswith("decoder.")}
    states = last @ P.T + b
    met = side_by_side(states, mask, given, starts)
    target = given["attention_mask"]
    hooks = reference.hooked(backbone, inside, dict.fromkeys(inside, met), fusion, 6 / 4, target, causal)
    for path in factors.keys() - inside.keys():

        def add(module, inputs, out, factor=factors[path]):
            return out + 6 / 4 * inputs[0] @ factor["A"].T @ factor["B"].T

        hooks.append(backbone.get_submodule(path).register_forward_hook(add))
    output = backbone(**small.target_only(given))
    output.loss.backward()
    for hook in hooks:
        hook.remove()
    return output, factors, P, b


def side_by_side(states, mask, given, starts):
    """As `reference.side_by_side`, which fills numbers in and so takes gradients too."""
    return reference.side_by_side(states, mask, given["attention_mask"], starts)


@pytest.mark.parametrize("fusion", ["add", "add_relu", "cross_attention"])
@pytest.mark.parametrize("name", small.NAMES)
def test_outputs_and_gradients_equal_the_formula(name, fusion):
    backbone = small.plain(name)
    model, given = fused(name, small.plain(name), fusion=fusion), small.batch(name)
    theirs, factors, P, b = expected(name, backbone, model, given, fusion)
    ours = model(**given)
    ours.loss.backward()
    one, two = (small.real(output.logits, given, name) for output in (ours, theirs))
    assert torch.allclose(one, two, atol=1e-5)
    for found, wanted in ((model.flare_projection.weight, P), (model.flare_projection.bias, b)):
        assert wanted.grad.abs().max() > 1e-6
        assert torch.allclose(found.grad, wanted.grad, atol=1e-5, rtol=1e-4)
    for path, factor in factors.items():
        layer = model.get_base_model().get_submodule(path)
        assert torch.allclose(layer.lora_A["default"].weight.grad, factor["A"].grad, atol=1e-5, rtol=1e-4)
        assert torch.allclose(layer.lora_B["default"].weight.grad, factor["B"].grad, atol=1e-5, rtol=1e-4)
    assert all(value.grad is None for value in model.source_encoder.parameters())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama", "xlmr", "t5"])
def test_gradients_with_checkpointing_equal_those_without(name, reentrant):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dropout_rate": 0.0}
    model, given = fused(name, small.plain(name, **still)).train(), small.batch(name)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
            model.get_base_model().enable_input_require_grads()
        model.zero_grad()
        model(**given).loss.backward()
        trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
        found.append({key: value.grad.clone() for key, value in trained.items()})
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        assert torch.allclose(found[1][key], value, atol=1e-6, rtol=1e-5), key


def test_what_is_trained_saved_and_loaded(tmp_path):
    model, given = fused("llama"), small.batch("llama")
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    assert trained == {key for key, _ in model.named_parameters() if "lora_" in key or "flare_proj" in key}
    assert len([key for key in trained if "flare_proj" in key]) == 2
    model.save_pretrained(tmp_path)
    again = ll.load_flare(small.plain("llama"), tmp_path, source_encoder=translator())
    with torch.no_grad():
        assert torch.equal(again(**given).logits, model(**given).logits)
    assert not any(value.requires_grad for value in again.parameters())
    with refused("source_encoder", "'nllb'"):
        ll.load_flare(small.plain("llama"), tmp_path)


@pytest.mark.parametrize("fusion", ["add_relu", "cross_attention"])
def test_generation_with_a_cache_equals_full_forward_passes(fusion):
    model, given = fused("llama", fusion=fusion), small.batch("llama")
    prompt = {key: given[key][:, :7] for key in ("input_ids", "attention_mask")}
    beside = {key: value for key, value in given.items() if key.startswith("source_")}
    model.get_base_model().generation_config.eos_token_id = None
    how = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found = model.generate(**prompt, **beside, **how)
    mask = torch.cat([prompt["attention_mask"], torch.ones(3, 4, dtype=torch.long)], 1)
    start = torch.full((3,), 7)
    with torch.no_grad():
        logits = model(input_ids=found.sequences, attention_mask=mask, answer_start=start, **beside).logits
    assert torch.allclose(torch.stack(found.logits, 1), logits[:, 6:-1], atol=1e-5)


def test_nothing_is_encoded_twice_with_a_cache(tmp_path):
    """The authors' code encodes every text again in every epoch."""
    model, given = fused("xlmr"), small.batch("xlmr")
    ran = []
    model.source_encoder.register_forward_hook(lambda *_: ran.append(1))
    pairs = zip(given["source_input_ids"], given["source_attention_mask"], strict=True)
    rows = [ids[mask.bool()].tolist() for ids, mask in pairs]
    model.cache_sources(rows, tmp_path, tell=lambda line: None)
    ran.clear()
    with torch.no_grad():
        for _ in range(3):
            cached = model(**small.target_only(given), source_rows=torch.arange(3)).logits
        assert not ran
        assert torch.allclose(cached, model(**given).logits, atol=0.05)
    assert ran == [1]


def test_texts_are_tagged_with_their_own_language():
    """The authors' code tags the target's texts as English."""
    tokenizer, model = tiny.tokenizer_of("nllb"), fused("llama")
    rows = source_ids(model, tokenizer, ["habari ya asubuhi", "asante"], max_length=64, language="sw")
    tag, english = (tokenizer.convert_tokens_to_ids(each) for each in ("swh_Latn", "eng_Latn"))
    assert all(tag in row and english not in row for row in rows)
    tokenizer.src_lang = "swh_Latn"
    assert rows[1] == tokenizer("asante")["input_ids"]
    with refused("language", "not given"):
        source_ids(model, tokenizer, ["asante"], max_length=64)
    with pytest.raises(ll.UserError, match="has no tag"):
        source_ids(model, tokenizer, ["asante"], max_length=64, language="zu")


def test_what_cannot_be():
    config = {"target_modules": ["q_proj"], "source_encoder": NAME}
    with refused("answer_source", "'generate'", "'last' or 'none'"):
        ll.FlareConfig(**config, answer_source="generate")
    with refused("source_encoder", "none is given"):
        ll.flare(small.plain("llama"), ll.FlareConfig(**config))
    with refused("source_encoder", "has none", mend="FlareConfig(source_encoder=...)"):
        ll.flare(small.plain("llama"), ll.FlareConfig(), source_encoder=translator())
    with refused("source_encoder", "LlamaForCausalLM", "NLLB"):
        ll.flare(small.plain("llama"), ll.FlareConfig(**config), source_encoder=small.plain("llama"))
    down = ll.FlareConfig(target_modules=["down_proj"], source_encoder=NAME)
    with refused("fusion_modules", "64", "32", mend="projection-input"):
        ll.flare(small.plain("llama"), down, source_encoder=translator())
