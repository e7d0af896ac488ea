"""What cannot be is said before anything runs."""

import pytest
import torch

import lingualift as ll
from builders import small
from builders.refusals import refused
from lingualift.fusion.functions import FUSIONS


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"fusion": "addrelu"}, "fusion 'addrelu': is not known\n  mend: did you mean add_relu"),
        ({"fusion": "cross-attention"}, "did you mean cross_attention"),
        ({"source_state": "block-inptu"}, "did you mean block-input"),
        ({"answer_source": "lst"}, "did you mean last"),
        ({"padding": "lefft"}, "did you mean left"),
        ({"r": 0}, "a whole number above 0"),
        ({"lora_dropout": 1.0}, "at least 0 and below 1"),
    ],
)
def test_settings_that_mean_nothing(settings, found):
    with pytest.raises(ll.UserError, match=found):
        ll.FlareConfig(**settings)


@pytest.mark.parametrize(
    ("name", "settings", "found"),
    [
        (
            "llama",
            {"target_modules": ["q_proj", "v_prj"]},
            "'v_prj' is no linear layer.*\n.*did you mean .*v_proj",
        ),
        ("llama", {"target_modules": "nothing"}, "'nothing' matches no linear layer"),
        ("llama", {"target_modules": "q_proj("}, "no regular expression"),
        ("llama", {"fusion_modules": ["k_prj"]}, "'k_prj' is no linear layer.*\n.*did you mean .*k_proj"),
        ("llama", {"fusion_modules": ["k_proj"]}, "k_proj has no LoRA to fuse in"),
        ("llama", {"fusion_modules": []}, "nothing would fuse"),
        ("llama", {"target_modules": ["lm_head"]}, "'lm_head' is no linear layer"),
        ("t5", {"fusion_modules": r"decoder.*SelfAttention\.q"}, "is in the decoder"),
        ("t5", {"target_modules": r"decoder.*\.q"}, "nothing would fuse"),
        ("xlmr", {"answer_source": "none"}, "means nothing here"),
        ("llama", {"modules_to_save": ["scoer"]}, "'scoer' matches no module"),
        ("llama", {"modules_to_save": ["embed_tokens"]}, "embed_tokens is a part of what reads the source"),
        ("xlmr", {"modules_to_save": ["intermediate"]}, "intermediate is a part of what reads the source"),
        ("xlmr", {"modules_to_save": ["encoder"]}, "encoder is a part of what reads the source"),
        (
            "llama",
            {"target_modules": ["down_proj"], "source_state": "block-input"},
            "reads 64 numbers, and the source's states have 32",
        ),
    ],
)
def test_places_that_cannot_be(name, settings, found):
    backbone = small.plain(name)
    with pytest.raises(ll.UserError, match=found):
        ll.flare(backbone, ll.FlareConfig(**{"target_modules": small.NAMES[name], **settings}))
    assert not any("lora" in key for key in backbone.state_dict())


def test_t5_is_fused_in_the_encoders_self_attention():
    """A bare `q` and `v` match the decoder's cross-attention too, which has no source beside it."""
    for fusion_modules in (None, ["q", "v"]):
        model = small.fused("t5", fusion_modules=fusion_modules)
        layers = {key: module for key, module in model.named_modules() if hasattr(module, "fuse_by")}
        fused = {key for key, module in layers.items() if module.fusion}
        assert len(layers) == 6 + 8
        assert fused == {key for key in layers if ".encoder." in key and ".SelfAttention." in key}


def test_a_backbone_with_an_adapter_on_it():
    model = small.fused("llama")
    for backbone in (model, model.get_base_model()):
        with refused("backbone", "adapter already"):
            ll.flare(backbone, ll.FlareConfig())


@pytest.mark.parametrize("name", ["llama", "xlmr", "t5"])
def test_rows_that_do_not_pair(name):
    model, given = small.fused(name), small.batch(name)
    fewer = {**given, "source_input_ids": given["source_input_ids"][:2]}
    fewer["source_attention_mask"] = given["source_attention_mask"][:2]
    with refused("source_input_ids", "2 rows", "3, one"):
        model(**fewer)
    empty = {**given, "source_attention_mask": given["source_attention_mask"].clone()}
    empty["source_attention_mask"][1] = 0
    with refused("source_attention_mask", "without a token"):
        model(**empty)


@pytest.mark.parametrize(("name", "limit"), [("llama", 1024), ("gemma2", 1024), ("xlmr", 512)])
def test_a_source_over_the_limit(name, limit):
    model, given = small.fused(name), small.batch(name)
    ids = torch.full((3, limit + 1), 7)
    with refused("source_input_ids", f"{limit + 1} tokens", f"at most {limit}"):
        model(**{**given, "source_input_ids": ids, "source_attention_mask": torch.ones_like(ids)})
    fits = ids[:, :limit]
    with torch.no_grad():
        model(**{**given, "source_input_ids": fits, "source_attention_mask": torch.ones_like(fits)})
    with refused("source_attention_mask", "is (3, 8)"):
        model(**{**given, "source_input_ids": fits})


def test_a_source_whose_answer_goes_over_the_limit():
    model, given = small.fused("llama", answer_source="generate"), small.batch("llama")
    prompt = {key: given[key][:, :7] for key in ("input_ids", "attention_mask")}
    ids = torch.full((3, 1020), 7)
    source = {"source_input_ids": ids, "source_attention_mask": torch.ones_like(ids)}
    with refused("source_input_ids", "1025 tokens", "1024"):
        model.generate(**prompt, **source, max_new_tokens=5)


def test_t5_has_no_limit():
    model, given = small.fused("t5"), small.batch("t5")
    ids = torch.full((3, 1500), 7)
    with torch.no_grad():
        model(**{**given, "source_input_ids": ids, "source_attention_mask": torch.ones_like(ids)})


def test_labels_that_leave_no_prompt():
    """Else every position would meet the source's last state, and none its own."""
    model, given = small.fused("llama"), small.batch("llama")
    ids, mask = given["input_ids"], given["attention_mask"]
    everywhere = {**given, "labels": ids.masked_fill(mask == 0, -100)}
    with refused("labels", "first token", "-100"):
        model(**everywhere)
    with torch.no_grad():
        model(**everywhere, answer_start=torch.full((3,), 7))
        with model.fusion_off():
            model(**small.target_only(everywhere))


def test_labels_without_a_target():
    """The backbone says what it misses."""
    model, given = small.fused("llama"), small.batch("llama")
    del given["input_ids"]
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model(**given)


def test_a_fused_layer_cannot_be_merged():
    with pytest.raises(RuntimeError, match="is fused: no weight"):
        small.fused("llama").merge_and_unload()


def test_a_new_function_is_one_decorated_function():
    from lingualift.fusion.functions import fusion

    @fusion("mean", formula="(S + T) / 2", source="a test")
    def mean(source, target, visible, weights):
        return (source + target[:, -source.shape[1] :]) / 2

    try:
        model, half = small.fused("llama", fusion="mean"), small.fused("llama", fusion="add", lora_alpha=3)
        given = small.batch("llama")
        with torch.no_grad():
            assert torch.allclose(model(**given).logits, half(**given).logits, atol=1e-5)
    finally:
        FUSIONS.pop("mean")
