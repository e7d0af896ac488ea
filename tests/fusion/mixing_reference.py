"""X-Mixup written down once more, from the formula: one row after the other, without padding, no lingualift."""

import math
from types import SimpleNamespace

import torch
from torch.nn import functional


def scale(states):
    return states.pow(2).mean(-1, keepdim=True).sqrt()


def mixed(target, source, mixer, ratio):
    """Target states (n, d) and source states (m, d) -> mixed states (n, d)."""
    ours, theirs = target / scale(target), source / scale(source)
    rows = []
    for position in range(len(ours)):
        query = mixer["query"] @ ours[position]
        scores = torch.stack([query @ (mixer["key"] @ state) for state in theirs]) / math.sqrt(len(query))
        weights = scores.softmax(0)
        values = torch.stack([mixer["value"] @ state for state in theirs])
        seen = mixer["up"] @ (weights[:, None] * values).sum(0)
        both = ratio * ours[position] + (1 - ratio) * seen
        rows.append(scale(target[position]) * both / scale(both))
    return torch.stack(rows)


class Reference:
    """A plain backbone with LoRA's factors on its layers, and one block whose output can be replaced."""

    def __init__(self, backbone, factors, mixer, block, ratio, scaling):
        self.backbone, self.mixer, self.ratio = backbone, mixer, ratio
        self.beside = self.left = None
        for path, factor in factors.items():

            def add(module, given, out, factor=factor):
                return out + scaling * (given[0] @ factor["A"].T) @ factor["B"].T

            backbone.get_submodule(path).register_forward_hook(add)
        backbone.get_submodule(block).register_forward_hook(self.replace)

    def replace(self, module, given, out):
        states = out[0] if isinstance(out, tuple) else out
        if self.beside is not None:
            states = mixed(states[0], self.beside, self.mixer, self.ratio)[None]
        self.left = states[0]
        return (states, *out[1:]) if isinstance(out, tuple) else states

    def run(self, ids, beside=None, **more):
        """Output for one row, and what left the block."""
        self.beside = beside
        return self.backbone(input_ids=ids[None], **more), self.left


def real(ids, mask):
    return [row[kept.bool()] for row, kept in zip(ids, mask, strict=True)]


def mean(states):
    return (states / scale(states)).mean(0)


def losses(reference, given, family):
    """Loss of the target, of the source, KL, MSE; logits by row."""
    targets, sources = [], []
    for prefix, into in (("", targets), ("source_", sources)):
        ids = real(given[f"{prefix}input_ids"], given[f"{prefix}attention_mask"])
        labels = given[f"{prefix}labels"]
        if family == "decoder":
            labels = real(labels, given[f"{prefix}attention_mask"])
        into += [SimpleNamespace(ids=row, labels=label) for row, label in zip(ids, labels, strict=True)]
    for target, source in zip(targets, sources, strict=True):
        for row, other in ((source, None), (target, source)):
            more = {}
            row.prompt = len(row.ids)
            if family == "encoder-decoder":
                row.labels = row.labels[row.labels != -100]
                start = torch.tensor([reference.backbone.config.decoder_start_token_id])
                more["decoder_input_ids"] = torch.cat([start, row.labels[:-1]])[None]
            if family == "decoder":
                row.prompt = int((row.labels != -100).int().argmax())
            beside = None if other is None else other.states[: other.prompt]
            output, row.states = reference.run(row.ids, beside, **more)
            row.logits = output.logits[0]
            if family == "decoder":
                row.tokens = functional.cross_entropy(
                    row.logits[row.prompt - 1 : -1], row.labels[row.prompt :], reduction="none"
                )
                row.answer = row.logits[row.prompt - 1]
            elif family == "encoder-decoder":
                row.tokens = functional.cross_entropy(row.logits, row.labels, reduction="none")
                row.answer = row.logits[0]
            else:
                row.tokens = functional.cross_entropy(row.logits, row.labels)[None]
                row.answer = row.logits
    task = [torch.cat([row.tokens for row in rows]).mean() for rows in (targets, sources)]
    divergence, distance = [], []
    for target, source in zip(targets, sources, strict=True):
        p, q = source.answer.softmax(-1), target.answer.softmax(-1)
        divergence.append((p * (p / q).log()).sum())
        gap = mean(target.states[: target.prompt]) - mean(source.states[: source.prompt])
        distance.append(gap.pow(2).mean())
    return *task, torch.stack(divergence).mean(), torch.stack(distance).mean(), targets
