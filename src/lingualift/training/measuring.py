"""What an optimiser step takes: a few are done on some rows before a plan says what all of them would cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lingualift.attachment import answering, attach, detach
from lingualift.backbone.loading import load_backbone, recompute_activations
from lingualift.backbone.reference import BackboneRef
from lingualift.backbone.words import head_alone
from lingualift.config import Training
from lingualift.processes import device
from lingualift.tasks import Example, Task, TextTask
from lingualift.training.data import training_data
from lingualift.training.trainer import read_beside

_SAMPLED = 512  # rows that a calibration encodes
Row = TypeVar("Row")


def measure_step(
    ref: BackboneRef,
    task: Task | TextTask,
    rows: Sequence[Example] | Sequence[str],
    settings: Training,
    *,
    start: Path | None,
    language: str,
    segment_tokens: int = 512,
    budget: float = 3.0,
) -> tuple[float, int, int]:
    """Do a few optimiser steps on some of the rows, and measure; nothing is kept.

    Where a step takes long, it is measured on fewer rows than it will have, never on more.

    Args:
        ref: The backbone.
        task: As for `train`.
        rows: As for `train`.
        settings: As for `train`.
        start: Adapter folder to start from; None to train the head for words that the backbone names.
        language: Code of the rows' language.
        segment_tokens: Tokens per segment, for texts.
        budget: Seconds that measuring may take, but for a row at least.

    Returns:
        Seconds of an optimiser step; bytes that autograd keeps for each row of a batch, the longest of the sample;
        rows (or segments of text) in all, from the sample.
    """
    import torch

    sample = rows[:: max(1, len(rows) // _SAMPLED)]
    ref = answering(ref, task, rows)
    model, tokenizer = load_backbone(ref)
    data = training_data(
        ref,
        model,
        tokenizer,
        task,
        sample,
        settings,
        language=language,
        segment_tokens=segment_tokens,
        seed=0,
        **read_beside(start),
    )
    encoded = [data.rows[index] for index in np.argsort(data.lengths, kind="stable")]
    wrapped = attach(ref, start, trainable=True) if start else head_alone(model)
    try:
        optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad])
        precision = torch.autocast(device(), torch.bfloat16, enabled=settings.precision == "bfloat16")

        def forward(batch: Sequence[Any]) -> Any:
            inputs = {
                name: value.to(model.device) if isinstance(value, torch.Tensor) else value
                for name, value in data.collate(batch).items()
            }
            with precision:
                return data.loss(wrapped, inputs, None) if data.loss else wrapped(**inputs).loss

        def step(batch: Sequence[Any]) -> float:
            began = time.perf_counter()
            loss = forward(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.item()  # waits for a GPU
            return time.perf_counter() - began

        wrapped.train()
        kept = _kept_bytes(wrapped, lambda: forward(encoded[-1:]))
        if settings.gradient_checkpointing:
            layers = model.config.get_text_config().num_hidden_layers
            recompute_activations(model)
            kept //= layers  # one is recomputed at a time
            kept += _kept_bytes(wrapped, lambda: forward(encoded[-1:]))
        passed = seconds_of_batch(step, encoded, settings.batch_size, budget)
    finally:
        detach(wrapped)
    return passed * settings.accumulation, kept, round(len(encoded) * len(rows) / len(sample))


def seconds_of_batch(
    seconds: Callable[[Sequence[Row]], float], rows: Sequence[Row], most: int, budget: float
) -> float:
    """Seconds that a batch of rows takes, told from as little as the time allows, never from more rows at once.

    Where there is time, from batches of short, middling and long rows, as batches by length are. Else from one middling
    row and from a few: what each further row adds is what a whole batch's further rows add.

    Args:
        seconds: Does the work of some rows and says how long it took; warm, but for what a GPU does once for each size.
        rows: By length, at least one.
        most: Rows of a batch; fewer rows than that stand for as many.
        budget: Seconds that all may take, but for two rows; twice as many on a GPU.
    """

    def window(count: int, share: float) -> Sequence[Row]:
        place = int(share * (len(rows) - count))
        return rows[place : place + count]

    def timed(few: Sequence[Row]) -> float:
        if device() != "cpu":
            seconds(few)  # loads the kernels for this size, which takes seconds
        return seconds(few)

    count = min(most, len(rows))
    one = timed(window(1, 1 / 2))
    if 3 * count * one <= budget:
        found = sum(timed(window(count, share)) for share in (1 / 6, 3 / 6, 5 / 6)) / 3
    elif count == 1:
        found = one
    else:
        few = min(count, max(2, int(budget / one)))
        some = timed(window(few, 1 / 2))
        found = some + max(0.0, some - one) / (few - 1) * (count - few)
    return found * most / count


def _kept_bytes(model: Any, forward: Callable[[], Any]) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass, each memory once, the model's own not at all."""
    import torch

    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()
    del result  # kept until here: memory that is given back could be counted twice
    return sum(sizes.values())
