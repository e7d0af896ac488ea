"""Decoders that read images too: text trains their text model, unless their other parts are asked for."""

import peft
import pytest
import torch
import transformers

from builders.refusals import refused
from lingualift.backbone.architectures import (
    blocks,
    fusion_names,
    ia3_modules,
    linear_names,
    outside_blocks,
    pattern_of,
)

TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
}
LOOK = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def gemma3():
    config = transformers.Gemma3Config(
        text_config={**TEXT, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
        vision_config={**LOOK, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def llava():
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT, num_attention_heads=2),
        vision_config=transformers.CLIPVisionConfig(**LOOK, image_size=28, patch_size=14),
    )
    return transformers.LlavaForConditionalGeneration(config)


def layers(model, names):
    """Layers that LoRA is put on, by the names."""
    config = peft.LoraConfig(r=2, target_modules=pattern_of(model, "decoder", names))
    wrapped = peft.get_peft_model(model, config)
    return {name.split(".lora_A")[0] for name, _ in wrapped.named_parameters() if ".lora_A" in name}


@pytest.fixture(params=[gemma3, llava], ids=lambda build: build.__name__)
def model(request):
    with torch.device("meta"):
        return request.param()


def test_text_trains_the_text_model_alone(model):
    found = layers(model, linear_names(model))
    assert len(found) == 2 * 7
    assert all(".language_model.layers." in name for name in found)


def test_a_name_that_both_parts_have_means_the_text_model_s(model):
    found = layers(model, ["q_proj", "self_attn.v_proj"])
    assert {name.split(".language_model.")[1] for name in found} == {
        f"layers.{index}.self_attn.{end}" for index in (0, 1) for end in ("q_proj", "v_proj")
    }


def test_another_part_is_trained_where_it_is_named(model):
    found = layers(model, ["vision_tower.q_proj", "vision_tower.mlp.fc1"])
    assert len(found) == 2
    assert all("vision_tower" in name and name.endswith(("q_proj", "mlp.fc1")) for name in found)
    for name in ("fc1", "vision_tower.nothing", "nowhere.q_proj"):
        with refused("adapter.modules", f"'{name}'", "down_proj, gate_proj"):
            pattern_of(model, "decoder", [name])


def test_every_other_choice_of_layers_is_of_the_text_model_too(model):
    assert sorted(fusion_names(model)) == ["q_proj", "v_proj"]
    assert ia3_modules(model) == (["down_proj", "k_proj", "v_proj"], ["down_proj"])
    assert all(".language_model." in f".{path}" for path, _, _ in blocks(model))
    rounded = {name for name, _, _ in blocks(model, whole=True)} - set(outside_blocks(model))
    assert any("vision_tower" in name for name in rounded)


def test_vision_within_an_encoder_is_left_out_too():
    with torch.device("meta"):
        model = hf_t5gemma2()
    found = layers(model, linear_names(model))
    assert found
    assert not any("vision" in name for name in found)


def hf_t5gemma2():
    text = {**TEXT, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    encoder = {"text_config": text, "vision_config": {**LOOK, "image_size": 28, "patch_size": 14}}
    config = transformers.T5Gemma2Config(encoder={**encoder, "mm_tokens_per_image": 4}, decoder=text)
    return transformers.T5Gemma2ForConditionalGeneration(config)
