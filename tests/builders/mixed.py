"""Small backbones with an X-Mixup adapter whose tensors are all drawn, and batches with the source's answer."""

import copy

import torch
import transformers as hf

import lingualift as ll
from builders import small, tiny

FAMILY = {
    "llama": "decoder",
    "gemma2": "decoder",
    "qwen3": "decoder",
    "xlmr": "encoder",
    "t5": "encoder-decoder",
}
NAMES = ("llama", "xlmr", "t5")


def plain(name, kind=hf.AutoModelForSequenceClassification, **settings):
    """A backbone; XLM-R answers by a head."""
    if name != "xlmr":
        return small.plain(name, **settings)
    torch.manual_seed(0)
    config = tiny.config_of(name, small.WORDS)
    config.num_labels = 2 if kind is hf.AutoModelForQuestionAnswering else 3
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return kind.from_config(config).eval()


def mixed(name, backbone=None, seed=1, first_stage=None, **settings):
    """The plain backbone's copy with an adapter on it."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": small.NAMES[name], **settings}
    if name == "xlmr":
        settings.setdefault("modules_to_save", ["classifier"])
    backbone = copy.deepcopy(backbone) if backbone is not None else plain(name)
    model = ll.mixup(backbone, ll.MixupConfig(**settings), first_stage=first_stage)
    draw(model, seed)
    return model.eval()


def draw(model, seed=1):
    """Every tensor of the adapter."""
    small.draw(model, seed)
    with torch.no_grad():
        for parameter in model.mixer.parameters():
            parameter.normal_(std=0.3)


def batch(name, side="left"):
    """Three rows for training: source longer than, as long as and shorter than the target, each with its answer."""
    given = small.batch(name)
    if name in small.DECODERS:
        ids, mask = given["source_input_ids"], given["source_attention_mask"]
        answers = [[7, 8], [9], [10, 11, 12]]
        rows = [
            [*row[kept.bool()].tolist(), *answer]
            for row, kept, answer in zip(ids, mask, answers, strict=True)
        ]
        width = max(map(len, rows))
        padded = {"input_ids": 3, "attention_mask": 0, "labels": -100}
        for row, answer in zip(rows, answers, strict=True):
            prompt = len(row) - len(answer)
            values = {"input_ids": row, "attention_mask": [1] * len(row), "labels": [-100] * prompt + answer}
            for key, value in values.items():
                fill = [padded[key]] * (width - len(row))
                given.setdefault(f"new_{key}", []).append(fill + value if side == "left" else value + fill)
        for key in padded:
            given[f"source_{key}"] = torch.tensor(given.pop(f"new_{key}"))
    elif name == "xlmr":
        given["labels"] = given["source_labels"] = torch.tensor([0, 2, 1])
    else:
        given["source_labels"] = torch.tensor([[6, 7, -100], [8, 9, 10], [11, -100, -100]])
    return given


def prompts(given):
    """Without answers and labels: what evaluation gives; on decoders the prompts of target and source."""
    kept = {key: value for key, value in given.items() if "labels" not in key}
    for prefix in ("", "source_"):
        labels = given.get(f"{prefix}labels")
        if labels is not None and labels.shape == given[f"{prefix}input_ids"].shape:
            kept[f"{prefix}attention_mask"] = given[f"{prefix}attention_mask"] * (labels == -100)
    return kept
