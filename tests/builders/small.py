"""Small backbones with a FLARE adapter whose tensors are all drawn, and batches of unequal rows."""

import copy

import pytest
import torch
import transformers as hf

import lingualift as ll
from builders import tiny
from lingualift.backbone.architectures import outside_blocks
from lingualift.fusion.functions import FUSIONS

WORDS = 60
NAMES = {
    "llama": ["q_proj", "v_proj"],
    "gemma2": ["q_proj", "v_proj"],
    "qwen2": ["q_proj", "v_proj"],
    "qwen3": ["q_proj", "v_proj"],
    "xlmr": ["query", "value"],
    "t5": ["q", "v"],
    "mt5": ["q", "v"],
}
DECODERS = ("llama", "gemma2", "qwen2", "qwen3")
ENCODER_DECODERS = ("t5", "mt5")
CROSSED = [
    pytest.param(name, fusion, marks=() if name == "llama" or fusion == "add_relu" else pytest.mark.slow)
    for name in NAMES
    for fusion in FUSIONS
]
"""Every class with every function; those that are not slow have each class and each function."""


def plain(name, attention=None, **settings):
    """A backbone with random weights."""
    config = tiny.config_of(name, WORDS)
    for key, value in settings.items():
        setattr(config, key, value)
    if attention:
        config._attn_implementation = attention
    torch.manual_seed(0)
    kind = hf.AutoModelForMaskedLM if name == "xlmr" else hf.AutoModelForSeq2SeqLM
    model = (hf.AutoModelForCausalLM if name in DECODERS else kind).from_config(config)
    if (
        name in ENCODER_DECODERS
    ):  # at this width T5's own draw makes what float32 rounds as large as what is tested
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def fused(name, backbone=None, seed=1, **settings):
    """The plain backbone's copy with an adapter on it."""
    model = ll.flare(
        copy.deepcopy(backbone) if backbone is not None else plain(name),
        ll.FlareConfig(**{"r": 4, "lora_alpha": 6, "target_modules": NAMES[name], **settings}),
    )
    draw(model, seed)
    return model.eval()


def draw(model, seed=1):
    """Every tensor of the adapter."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.normal_(std=0.2)


def factors(model):
    """Path of a fused layer -> A, B and matrices, as tensors of their own that take a gradient."""
    found = {}
    for key, parameter in model.named_parameters():
        if "lora_" not in key:
            continue
        path, tail = key.removeprefix("base_model.model.").split(".lora_", 1)
        name = tail.split(".")[0] if tail[:2] in ("A.", "B.") else tail.rsplit(".", 1)[-1]
        found.setdefault(path, {})[name] = parameter.detach().clone().requires_grad_()
    return found


def gradients(model):
    """Path of a layer -> gradients by name."""
    found = {}
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            found[key.removeprefix("base_model.model.")] = parameter.grad
    return found


def padded(lengths, side, seed):
    """Token ids and mask of rows of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.full((len(lengths), width), 3)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        here = slice(width - length, width) if side == "left" else slice(0, length)
        ids[row, here] = torch.randint(5, WORDS, (length,), generator=generator)
        mask[row, here] = 1
    return ids, mask


def batch(name, answers=(2, 3, 1), source_side=None):
    """Inputs of three rows: source longer than, as long as and shorter than the target.

    On decoders the prompts are padded on the left and the answers on the right.
    """
    side = "left" if name in DECODERS else "right"
    ids, mask = padded([5, 4, 7], side, 1)
    source, source_mask = padded([8, 4, 3], source_side or side, 2)
    given = {"source_input_ids": source, "source_attention_mask": source_mask}
    if name in DECODERS:
        answer, answer_mask = padded(answers, "right", 3)
        labels = torch.cat([torch.full_like(ids, -100), answer.masked_fill(answer_mask == 0, -100)], 1)
        ids, mask = torch.cat([ids, answer], 1), torch.cat([mask, answer_mask], 1)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, **given}
    if name in ENCODER_DECODERS:
        labels = padded([3, 2, 4], "right", 4)[0]
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels.masked_fill(labels == 3, -100),
            **given,
        }
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100), **given}


def target_only(given):
    """The inputs without the source."""
    return {key: value for key, value in given.items() if not key.startswith("source_")}


def real(logits, given, name):
    """Logits of real tokens."""
    return logits if name in ENCODER_DECODERS else logits[given["attention_mask"].bool()]


def rounded(name, folder):
    """A backbone in NF4, and the same with its weights unpacked."""
    bnb = pytest.importorskip("bitsandbytes", reason="needs the extra `quantization`")
    functional = pytest.importorskip("bitsandbytes.functional")
    whole = plain(
        name, **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dropout_rate": 0.0}
    )
    whole.save_pretrained(folder)
    four = hf.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=outside_blocks(whole),
    )
    model = type(whole).from_pretrained(
        folder, quantization_config=four, device_map="cpu", dtype=torch.float32
    )
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    exact = copy.deepcopy(whole)
    for path, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            exact.get_submodule(path).weight.data = weight.float()
    return model.eval(), exact
