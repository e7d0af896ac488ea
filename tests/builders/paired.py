"""Paired rows on disk, and FLARE folders with their first stage, whose tensors are all drawn."""

import json
from dataclasses import replace

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

import lingualift as ll
from builders import tiny
from lingualift.config import Adapter, Data
from lingualift.data.datasets import Beside, Examples
from lingualift.encoding.heads import head_of
from lingualift.provenance import sha256_file
from lingualift.tasks import shipped_rows
from lingualift.training.trainer import initialise, initialise_fused

WEIGHTS = "adapter_model.safetensors"
MODULES = {
    "llama": ("q_proj", "v_proj"),
    "t5": ("q", "v"),
    "xlmr": ("query", "value"),
    "bert": ("query", "value"),
}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def world(folder, task, language, english=None):
    """The shipped rows of a task in a language, and beside them, in another order, those in English."""
    rows = [{"id": f"r{number}", **row} for number, row in enumerate(shipped_rows(task, language))]
    english = english or [{"id": f"r{number}", **row} for number, row in enumerate(shipped_rows(task, "en"))]
    write(folder / language / "train.jsonl", [{**row, "id": f"r{number}"} for number, row in enumerate(rows)])
    write(
        folder / f"beside-{language}" / "train.jsonl",
        [{**row, "id": f"r{number}"} for number, row in reversed(list(enumerate(english)))],
    )
    beside = Beside(Data(files="beside-{language}/{split}.jsonl"), "en")
    return Examples(task, Data(files="{language}/{split}.jsonl"), folder, beside=beside)


def drawn(folder, seed):
    """Every factor of an adapter folder, and a head, in place of its start."""
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / WEIGHTS)
    save_file(
        {
            key: torch.empty(tensor.shape).normal_(std=0.3, generator=generator)
            for key, tensor in sorted(tensors.items())
        },
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    provenance = folder / "provenance.json"
    if provenance.exists():
        recorded = {**json.loads(provenance.read_text()), "weights_sha256": sha256_file(folder / WEIGHTS)}
        provenance.write_text(json.dumps(recorded))
    return folder


def headed(ref, source, examples):
    task = source.get_task()
    return ref.answering(head_of(ref.family, task, examples, source.task))


def first_stage(ref, name, folder, seed=3):
    folder.mkdir()
    initialise(ref, Adapter(rank=2, alpha=4, modules=MODULES[name]), 0, folder)
    return drawn(folder, seed)


def flare_start(ref, name, folder, first, seed=0, **settings):
    """The untrained folder."""
    folder.mkdir()
    config = ll.FlareConfig(**{"r": 4, "lora_alpha": 6, "target_modules": MODULES[name], **settings})
    initialise_fused(ref, config, first, seed, folder)
    return folder


def flare_folder(ref, name, folder, seed=5, **settings):
    """A folder as if it had been trained."""
    first = first_stage(ref, name, folder.parent / f"{folder.name}-first")
    return drawn(flare_start(ref, name, folder, first, **settings), seed)


def check_checkpointing(case):
    """Training steps by the same gradients with and without it, from a start where every tensor has one.

    Adapters would be too much to compare: T5's gradients differ by rounding, and where one is as small as that, which
    it is by some of the tokenizers that `tiny` draws, AdamW takes another step.
    """
    drawn(case.start, 5)
    found = []

    def note(optimizer, *_):
        found.append([tensor.grad.clone() for group in optimizer.param_groups for tensor in group["params"]])

    hook = register_optimizer_step_pre_hook(note)
    try:
        for kept in (False, True):
            case.trained(str(kept), gradient_checkpointing=kept, steps=1)
    finally:
        hook.remove()
    one, other = found
    assert all(tensor.any() for tensor in one)
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(one, other, strict=True))


def other_sources(examples):
    """The same rows, each beside the source of another."""
    sources = [example.source for example in examples]
    return [
        replace(example, source=source)
        for example, source in zip(examples, sources[1:] + sources[:1], strict=True)
    ]


def with_gold(examples):
    """The same rows, with a gold answer on the source side that must not be seen."""
    return [
        replace(row, source=replace(row.source, gold=("poison",), completion="poison " * 30, starts=(999,)))
        for row in examples
    ]


def load_alone(ref, folder, kind):
    """The adapter on a backbone of its own, apart from the resident one."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "FLARE"
    options = {"num_labels": ref.head.outputs} if ref.head.kind != "words" else {}
    return ll.load_flare(kind.from_pretrained(ref.source, **options).eval(), folder)


def translation_model(folder, seed=7):
    """An NLLB whose states are wider than any backbone's here, and large."""
    tokenizer = tiny.tokenizer_of("nllb")
    config = tiny.config_of("nllb", len(tokenizer))
    config.d_model = 24
    torch.manual_seed(seed)
    hf.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
