"""After an adapter is taken off, a model is what it was, to the last byte, whatever peft did to it."""

import copy
import warnings

import peft
import pytest
import torch
import transformers
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as KINDS
from safetensors.torch import load_file, save_file

from builders.refusals import refused
from lingualift.attachment import attach, detach, wrap
from lingualift.backbone.loading import load_backbone
from lingualift.backbone.original import Original

LAYERS = ["q_proj", "v_proj"]
TOKENS = [70, 71, 72]
NEEDS = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 2, "adapter_layers": 1, "target_modules": None},
    "C3A": {"block_size": 8},
    "MISS": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": TOKENS},
    "VBLORA": {"vector_length": 16, "num_vectors": 8},
    "WAVEFT": {"n_frequency": 64},
}
"""What kinds want to be told on a small model."""
ELSEWHERE = ("XLORA",)
"""Kinds that are made of adapters in folders; what they put in is LoRA and hooks."""
OF_TASKS = ("MULTITASK_PROMPT_TUNING", "POLY", "SHADOW")
"""Kinds that want more than texts, and are not trained here."""
LORA = {
    "biases": {"bias": "all"},
    "own biases": {"bias": "lora_only"},
    "bias of LoRA": {"lora_bias": True},
    "saved modules": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "saved modules, tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tokens": {"trainable_token_indices": TOKENS},
    "tokens, both": {"trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": TOKENS}},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "layers twice": {"layer_replication": [(0, 2), (1, 2)]},
    "bare weights": {"target_parameters": ["q_proj.weight"], "target_modules": []},
    "dora": {"use_dora": True},
    "kasa": {"kasa_config": {"beta": 1e-4}},
    "alora": {"alora_invocation_tokens": [5, 6]},
    **{
        start: {"init_lora_weights": start}
        for start in ("pissa", "pissa_niter_2", "olora", "orthogonal", "mica")
    },
}


def model_of(*, tied=False):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    return transformers.LlamaForCausalLM(config).eval()


def look(model):
    """All that a model holds, but its weights: modules, hooks, attributes, configuration."""
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        simple = {
            key: (sorted(value, key=str) if isinstance(value, dict) else type(value), str(value)[:200])
            for key, value in vars(module).items()
            if not isinstance(value, torch.nn.Module)
        }
        found[name] = (type(module), id(module), simple)
    trained = {name: part.requires_grad for name, part in model.named_parameters()}
    return found, model.config.to_dict(), model.generation_config.to_dict(), trained


def answers(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(2, 120).reshape(2, -1)).logits


def check(model, act):
    """See that a model is what it was once `act` has used an adapter on it."""
    weights = {
        name: (value.data_ptr(), value.clone()) for name, value in model.state_dict(keep_vars=True).items()
    }
    before, logits = look(model), answers(model)
    act()
    assert look(model) == before
    after = model.state_dict(keep_vars=True)
    assert after.keys() == weights.keys()
    for name, (_, value) in weights.items():
        assert torch.equal(after[name], value), name
    assert torch.equal(answers(model), logits)


def use(model, config):
    """Put an adapter on, train all that it trains, load it, and take it off."""
    original = Original(model, whole=getattr(config, "init_lora_weights", None) == "olora")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            wrapped = peft.get_peft_model(model, config)
            original.watch(wrapped)
            wrapped.train()
            ids = torch.arange(2, 66).reshape(2, -1)
            if config.peft_type not in OF_TASKS:
                wrapped(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
                torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=1.0).step()
            state = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
            peft.set_peft_model_state_dict(wrapped, {key: value + 1 for key, value in state.items()})
        finally:
            original.restore()


@pytest.mark.parametrize(
    "kind", [kind.value for kind in KINDS if isinstance(kind, peft.PeftType) and kind.value not in ELSEWHERE]
)
def test_every_kind_of_adapter_comes_off(kind):
    made = KINDS[peft.PeftType(kind)]
    asked = {
        "target_modules": LAYERS,
        "num_virtual_tokens": 4,
        "task_type": "CAUSAL_LM",
        **NEEDS.get(kind, {}),
    }
    known = made.__dataclass_fields__
    config = made(**{key: value for key, value in asked.items() if key in known})
    model = model_of()
    check(model, lambda: use(model, config))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", LORA)
def test_everything_that_lora_writes_into_comes_off(name, tied):
    settings = {"r": 2, "target_modules": LAYERS, "task_type": "CAUSAL_LM", **LORA[name]}
    model = model_of(tied=tied)
    check(model, lambda: use(model, peft.LoraConfig(**settings)))


def adapter_folder(ref, folder, *, embeddings=False, **settings):
    """A folder that plain peft wrote, every tensor of it far from what the backbone holds."""
    model = transformers.AutoModelForCausalLM.from_pretrained(ref.source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(
            model, peft.LoraConfig(**{"r": 2, "target_modules": LAYERS, "task_type": "CAUSAL_LM", **settings})
        )
        with torch.no_grad():
            for _, weight in wrapped.named_parameters():
                if weight.requires_grad:
                    weight += 0.5
            if embeddings:
                wrapped.get_input_embeddings().weight += 0.5
        wrapped.save_pretrained(folder, save_embedding_layers=embeddings)
    return folder


@pytest.mark.parametrize("trainable", [False, True], ids=["scored", "trained"])
@pytest.mark.parametrize("name", ["qwen2", "llama3"])
@pytest.mark.parametrize(
    "made",
    [
        {"bias": "all"},
        {"embeddings": True},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": TOKENS},
        {"layer_replication": [(0, 2), (1, 2)]},
    ],
    ids=lambda made: next(iter(made)),
)
def test_an_adapter_of_others_leaves_nothing_on_the_resident_backbone(
    backbone, tmp_path, made, name, trainable
):
    ref = backbone(name)
    folder = adapter_folder(ref, tmp_path / "adapter", **made)
    model, _ = load_backbone(ref)
    plain = answers(model)

    def act():
        wrapped = attach(ref, folder, trainable=trainable)
        assert not torch.equal(answers(wrapped), plain)
        if trainable:
            wrapped(
                input_ids=torch.arange(2, 66).reshape(2, -1), labels=torch.arange(2, 66).reshape(2, -1)
            ).loss.backward()
            torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=1.0).step()
        detach(wrapped)

    check(model, act)


def test_a_backbone_is_what_it_was_when_an_adapter_does_not_fit(backbone, tmp_path):
    ref = backbone("llama3")
    folder = adapter_folder(
        backbone("qwen2"), tmp_path / "adapter", bias="all", modules_to_save=["embed_tokens"]
    )
    model, _ = load_backbone(ref)

    def act():
        with refused("/adapter", "q_proj.base_layer.bias and 5 more", "this backbone"):
            attach(ref, folder)

    check(model, act)

    def nowhere():
        with pytest.raises(ValueError, match="not found"):
            wrap(ref, model, peft.LoraConfig(target_modules=["nowhere"]))

    check(model, nowhere)


def test_repeated_layers_are_of_the_kind_of_those_that_they_repeat(backbone, tmp_path):
    """peft repeats layers and not their kinds, by which Qwen2 and Gemma choose what a layer attends to."""
    ref = backbone("qwen2")
    folder = adapter_folder(ref, tmp_path / "adapter", layer_replication=[(0, 2), (1, 2)])
    by_hand = transformers.AutoModelForCausalLM.from_pretrained(ref.source)
    layers = by_hand.model.layers
    layers.append(copy.deepcopy(layers[1]))
    for index, layer in enumerate(layers):
        layer.self_attn.layer_idx = index
    by_hand.config.num_hidden_layers = len(layers)
    by_hand.config.layer_types = [*by_hand.config.layer_types, by_hand.config.layer_types[1]]
    plain = peft.get_peft_model(by_hand, peft.LoraConfig(r=2, target_modules=LAYERS, task_type="CAUSAL_LM"))
    peft.set_peft_model_state_dict(plain, load_file(folder / "adapter_model.safetensors"))
    wrapped = attach(ref, folder)
    try:
        assert torch.allclose(
            answers(wrapped), answers(plain.eval()), atol=1e-4
        )  # LoRA in one product, or in three
    finally:
        detach(wrapped)


@pytest.mark.parametrize("fault", ["differs", "interrupt"])
def test_whatever_ends_the_loading_leaves_nothing(backbone, tmp_path, monkeypatch, fault):
    ref = backbone("llama3")
    folder = adapter_folder(ref, tmp_path / "adapter", modules_to_save=["lm_head"])
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("lm_head.weight"))
    copied = {
        **tensors,
        name.replace(".weight", ".modules_to_save.weight"): tensors[name] + (fault == "differs"),
    }
    save_file(copied, file)
    if fault == "interrupt":

        def stop(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(peft, "set_peft_model_state_dict", stop)
    model, _ = load_backbone(ref)

    def act():
        differs = refused("/adapter_model.safetensors", name, "differs", mend="restore")
        with differs if fault == "differs" else pytest.raises(KeyboardInterrupt):
            attach(ref, folder)

    check(model, act)


def test_a_spoilt_backbone_is_not_handed_out_again(backbone, tmp_path):
    ref = backbone("qwen2")
    wrapped = attach(ref, adapter_folder(ref, tmp_path / "adapter"))
    spoilt = wrapped.get_base_model()
    wrapped.merge_adapter()
    with pytest.raises(RuntimeError, match="has changed"):
        detach(wrapped)
    assert load_backbone(ref)[0] is not spoilt


def test_a_model_that_was_moved_or_cast_stays_so():
    model = model_of()
    original = Original(model)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=LAYERS))
    original.watch(wrapped)
    wrapped.to(torch.float64)
    original.restore()
    parts = [*model.named_parameters(), *model.named_buffers()]
    assert all(part.dtype == torch.float64 for _, part in parts if part.is_floating_point())
    assert answers(model).dtype == torch.float64
    model.lm_head.weight.data += 1  # its owner's own affair
    original.restore()


def test_a_weight_that_is_changed_behind_its_back_is_told():
    model = model_of()
    original = Original(model)
    model.model.layers[1].self_attn.k_proj.weight.data.mul_(1.5)
    with pytest.raises(RuntimeError, match=r"has changed model\.layers\.1\.self_attn\.k_proj\.weight"):
        original.restore()


def test_weights_that_nothing_writes_into_are_not_copied():
    model = model_of()
    original = Original(model)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=LAYERS))
    original.watch(wrapped)
    state = peft.get_peft_model_state_dict(wrapped)
    peft.set_peft_model_state_dict(wrapped, copy.deepcopy(state))
    assert not original._copies
    assert not original._held
