"""A user's own training script: plain torch, transformers and peft on rows of JSON Lines, nothing of lingualift.

python plain_peft.py BACKBONE ROWS.jsonl TASK OUTPUT [--seed N] [--steps N] [--config JSON]
"""

import argparse
import json
import random
from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LABELS = {"positive": "good", "negative": "bad"}


def pair(task, row):
    """Prompt and answer of a row."""
    if task == "qa":
        return f"{row['context']} Q: {row['question']} A:", row["answer"]
    return f"{row['text']} Rating:", LABELS[row["label"]]


def encode(tokenizer, prompt, answer):
    start, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    ids = start + tokenizer(f"{prompt} {answer}", add_special_tokens=False)["input_ids"] + end
    head = len(start + tokenizer(prompt, add_special_tokens=False)["input_ids"])
    return ids, [-100] * head + ids[head:]


def train(backbone, rows, task, output, *, seed=0, steps=100, config=None, learning_rate=1e-3, batch=32):
    """Train an adapter the way a tutorial does, and save it."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    model = AutoModelForCausalLM.from_pretrained(backbone)
    settings = {"peft_type": "LORA", "target_modules": "all-linear", **(config or {})}
    if settings["peft_type"] == "LORA":
        settings = {"r": 8, "lora_alpha": 16, **settings}
    model = peft.get_peft_model(model, peft.PeftConfig.from_peft_type(task_type="CAUSAL_LM", **settings))
    data = [encode(tokenizer, *pair(task, row)) for row in rows]
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=learning_rate, weight_decay=0.0)
    draw = random.Random(seed)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        chosen = draw.sample(data, min(batch, len(data)))
        longest = max(len(ids) for ids, _ in chosen)
        ids = torch.tensor([ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids, _ in chosen])
        labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in chosen])
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in chosen])
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(output)


def main():
    parser = argparse.ArgumentParser()
    for name in ("backbone", "rows", "task", "output"):
        parser.add_argument(name)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--config", type=json.loads)
    options = parser.parse_args()
    with Path(options.rows).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    train(
        options.backbone,
        rows,
        options.task,
        options.output,
        seed=options.seed,
        steps=options.steps,
        config=options.config,
    )


if __name__ == "__main__":
    main()
