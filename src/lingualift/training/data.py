"""Training data: encoded rows, how they become a batch, and the loss on it, by family and head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lingualift.adapters.config import MIXUP
from lingualift.backbone.architectures import Head, head_modules
from lingualift.backbone.loading import base_of, ending, keeps_apart, keeps_logits
from lingualift.backbone.reference import BackboneRef
from lingualift.backbone.words import check_speaks
from lingualift.config import Training
from lingualift.encoding.collator import Collate, Collator, Padding, PairCollator
from lingualift.encoding.heads import encode_choices, encode_classes, encode_windows, span_row
from lingualift.encoding.parallel import (
    SourceInputs,
    TextReader,
    answered_sources,
    source_prompts,
    source_texts,
    source_windows,
    speaking,
    too_long,
)
from lingualift.encoding.text import (
    IGNORED,
    decoder_ids,
    encode_pairs,
    encode_texts,
    encoder_ids,
    set_language,
    training_row,
)
from lingualift.errors import UserError
from lingualift.tasks import Example, Task, TextTask
from lingualift.tasks.base import labels_of
from lingualift.training.objectives import continued, masked, span_corruption

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Loss = Callable[[Any, dict[str, Any], Any], Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class TrainingData:
    """Encoded rows for a trainer, and the loss on them.

    Attributes:
        rows: Encoded rows; those with fresh noise in every epoch have `set_epoch`.
        collate: Rows -> the tensors of a batch.
        truncated: Prompts that were cut to fit.
        loss: Model, batch and the number of labels in all batches of a step (None: in this one) -> the loss; None
            for the model's own.
    """

    rows: Sequence[Row]
    collate: Collate
    truncated: int
    loss: Loss | None

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row; of its longest text where it has several."""
        return [max(len(text["input_ids"]) for text in row.get("inputs", [row])) for row in self.rows]


@dataclass(frozen=True)
class Encoded:
    """A labelled example: one row, or a row for each window of its passage.

    Attributes:
        rows: The rows.
        truncated: Whether its prompt was cut to fit.
    """

    rows: list[Row]
    truncated: bool


def training_data(
    ref: BackboneRef,
    model: Any,
    tokenizer: Any,
    task: Task | TextTask,
    rows: Sequence[Any],
    settings: Training,
    *,
    language: str,
    segment_tokens: int,
    seed: int,
    fused: str | None = None,
    translator: TextReader | None = None,
) -> TrainingData:
    """Encode rows for a backbone.

    Args:
        ref: The backbone, with the head that answers the task.
        model: Loaded.
        tokenizer: Its tokenizer.
        task: The task.
        rows: Examples of a labelled task, texts of a reference task.
        settings: Longest row.
        language: Code of the rows' language, for tokenizers that tag it.
        segment_tokens: Tokens per segment, for texts.
        seed: Seed of the noise, for texts.
        fused: Kind of an adapter that reads the rows' source side; X-Mixup learns to answer that too.
        translator: Makes that side of the rows' own texts, for an adapter with a source encoder.

    Raises:
        UserError: the objective is none for this family; an answer leaves no room for its prompt, or is no part of
            its passage; a source side is needed and missing or too long.
    """
    if isinstance(task, TextTask) and fused:
        found = "learns from a text and the same one in the source language, and unlabelled text has no such"
        raise UserError("a fused adapter", found, "a labelled task", "train it on the task")
    set_language(tokenizer, language)
    collate = _collator(ref, model, tokenizer)
    if isinstance(task, TextTask):
        return _texts(ref, model, tokenizer, task, rows, collate, segment_tokens, seed)
    how = (ref, tokenizer, task, settings.max_length)
    if fused == MIXUP:
        return _mixed(*how, rows, collate)
    encoded, loss = _encoded(*how, rows, bool(fused), translator), _loss(ref)
    if fused:
        collate = PairCollator(collate, pad=tokenizer.pad_token_id if translator is None else translator.pad)
    if fused and ref.family != "encoder":
        sources = source_prompts(model.config, tokenizer, rows, settings.max_length, translator)
        encoded = [
            Encoded([{**example.rows[0], **source}], example.truncated)
            for example, source in zip(encoded, sources, strict=True)
        ]
        loss = None if ref.family == "decoder" else loss
    return _data(encoded, collate, loss)


def _data(encoded: Sequence[Encoded], collate: Collate, loss: Loss | None) -> TrainingData:
    rows = [row for example in encoded for row in example.rows]
    return TrainingData(rows, collate, sum(example.truncated for example in encoded), loss)


def _collator(ref: BackboneRef, model: Any, tokenizer: Any) -> Collate:
    """What makes batches for a family."""
    pad = tokenizer.pad_token_id
    if ref.family == "decoder":
        return Collator(pad, trims_logits=keeps_logits(model))
    start = model.config.decoder_start_token_id if ref.family == "encoder-decoder" else None
    return Padding(pad, decoder_start=start)


def _loss(ref: BackboneRef) -> Loss | None:
    """The loss on a labelled task."""
    if ref.family == "decoder":
        return WordLoss()
    if ref.family == "encoder-decoder":
        return token_loss
    return None if ref.head.kind == "span" else class_loss


def _encoded(
    ref: BackboneRef,
    tokenizer: Any,
    task: Task,
    max_length: int,
    rows: Sequence[Example],
    fused: bool = False,
    translator: TextReader | None = None,
) -> list[Encoded]:
    """Examples with their answers; of an encoder that reads their source side too (`fused`), with that."""
    if ref.family == "decoder":  # the answer follows its prompt
        room = max_length - len(ending(tokenizer))
        pairs = encode_pairs(tokenizer, [(row.prompt, row.answer) for row in rows], room)
        return [Encoded([training_row(tokenizer, pair)], pair.truncated > 0) for pair in pairs]
    if ref.family == "encoder-decoder":
        return [_written(tokenizer, row, max_length) for row in rows]
    return [_answered(tokenizer, ref.head, task, row, max_length, fused, translator) for row in rows]


def _written(tokenizer: Any, row: Example, max_length: int) -> Encoded:
    """The prompt is read, the answer written."""
    ids, cut = encoder_ids(tokenizer, row.prompt, max_length)
    labels = decoder_ids(tokenizer, row.answer)
    return Encoded([{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}], cut)


def _answered(
    tokenizer: Any,
    head: Head,
    task: Task,
    row: Example,
    max_length: int,
    fused: bool,
    translator: TextReader | None,
) -> Encoded:
    """An encoder's head answers."""
    if head.kind == "span":
        return Encoded(_windows(tokenizer, row, max_length, fused, translator), False)
    label = labels_of(task, row).index(row.gold[0])
    choices = head.kind == "choices"
    texts = (
        encode_choices(tokenizer, row, max_length)
        if choices
        else [encode_classes(tokenizer, row, max_length)]
    )
    sources = source_texts(tokenizer, [row], max_length, translator)[0] if fused else [{} for _ in texts]
    inputs = [{**text.inputs, **source} for text, source in zip(texts, sources, strict=True)]
    answered = {"inputs": inputs, "labels": label} if choices else {**inputs[0], "labels": label}
    return Encoded([answered], any(text.truncated for text in texts))


def _windows(
    tokenizer: Any, row: Example, max_length: int, fused: bool, translator: TextReader | None
) -> list[dict[str, Any]]:
    start = row.starts[0] if row.starts else -1
    if start < 0:
        raise UserError(
            f"example {row.id!r}",
            f"its answer {row.gold[0]!r} is no part of the passage, or stands there more than once and `answer_start` "
            "does not say where",
            "a span of the passage, which is all that an encoder can answer with",
            "mend the row, or leave it out",
        )
    end = start + len(row.gold[0])
    windows = encode_windows(tokenizer, row, max_length)
    none: list[SourceInputs] = [{} for _ in windows]
    sources = source_windows(tokenizer, row, max_length, windows, translator) if fused else none
    return [
        {**span_row(window, start, end), **source} for window, source in zip(windows, sources, strict=True)
    ]


def _mixed(
    ref: BackboneRef,
    tokenizer: Any,
    task: Task,
    max_length: int,
    rows: Sequence[Example],
    collate: Collate,
) -> TrainingData:
    """Rows with their source side as `source`, encoded by itself with its answer.

    Of a passage in windows, each window has the source's window of the same number, or its last.
    """
    answered = answered_sources(ref, rows)
    with speaking(tokenizer, answered[0].language):
        sources = _encoded(ref, tokenizer, task, max_length, answered)
    paired = []
    for row, target, source in zip(
        rows, _encoded(ref, tokenizer, task, max_length, rows), sources, strict=True
    ):
        if source.truncated:
            raise too_long(f"source of example {row.id!r}", None, max_length)
        last = len(source.rows) - 1
        beside = [{**one, "source": source.rows[min(place, last)]} for place, one in enumerate(target.rows)]
        paired.append(Encoded(beside, target.truncated))
    loss = None if ref.head.kind == "span" else mixed_loss
    return _data(paired, PairCollator(collate, pad=tokenizer.pad_token_id), loss)


OBJECTIVES = {
    "decoder": ("causal",),
    "encoder": ("masked",),
    "encoder-decoder": ("span-corruption", "prefix"),
}


def check_objective(ref: BackboneRef, task: TextTask) -> str:
    """The objective by which a backbone learns from text.

    Raises:
        UserError: the task's is none for its family.
    """
    objective = task.objective or ref.objective
    fitting = OBJECTIVES[ref.family]
    if objective not in fitting:
        raise UserError(
            "reference.task",
            f"{objective} language modelling is not for {ref.family}s, which {ref.name!r} is one of",
            " or ".join(fitting),
            "leave `reference.task` out: it follows from the backbone",
        )
    return objective


def _texts(
    ref: BackboneRef,
    model: Any,
    tokenizer: Any,
    task: TextTask,
    texts: Sequence[str],
    collate: Collate,
    tokens: int,
    seed: int,
) -> TrainingData:
    """Segments of texts, by the objective."""
    if ref.family != "decoder":
        check_speaks(ref, model)
    objective = check_objective(ref, task)
    if objective == "causal":
        packed = encode_texts(tokenizer, texts, tokens, packed=keeps_apart(model))
        return TrainingData(packed, collate, 0, WordLoss())
    if objective == "masked":
        return TrainingData(masked(tokenizer, texts, tokens, seed), collate, 0, masked_loss)
    if objective == "prefix":
        return TrainingData(continued(tokenizer, texts, tokens), collate, 0, token_loss)
    return TrainingData(span_corruption(tokenizer, texts, tokens, seed), collate, 0, token_loss)


class WordLoss:
    """Mean negative log-likelihood of the next word, over all batches of a step, as a decoder of transformers has it.

    The logits of a batch are never all there at once where the head is plain and frozen and the model does nothing
    more to its logits, as Gemma 2 does: found out on the first batch. Elsewhere the loss is the model's own.
    """

    def __init__(self) -> None:
        self._alone: bool | None = None

    def __call__(self, model: Any, batch: dict[str, Any], count: Tensor | int | None) -> Tensor:
        """The loss of a batch, whose labels (rows, tokens) are those of its last tokens."""
        import torch

        from lingualift.backbone.products import summed_loss

        labels = batch.pop("labels")
        head = _base(model).get_output_embeddings()
        plain = isinstance(head, torch.nn.Linear) and not head.weight.requires_grad and head.bias is None
        if not plain or self._alone is False:
            return self._whole(model, batch, labels, count)
        read: list[Tensor] = []

        def first(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
            read.append(given[0])
            return (given[0][:, :1].contiguous(),)

        hook = head.register_forward_pre_hook(first, prepend=True)
        try:
            logits = model(**batch).logits
        finally:
            hook.remove()
        weight = head.weight
        states = read.pop().to(weight.device)  # which `device_map` may have put elsewhere than the labels
        if self._alone is None:
            with torch.no_grad():
                self._alone = torch.equal(logits.to(weight.device), head(states[:, :1].contiguous()))
            if not self._alone:
                return self._whole(model, batch, labels, count)
        answers = labels[:, 1:].to(weight.device)
        real = answers != IGNORED
        total = summed_loss(states[:, :-1][real], weight, answers[real]).to(labels.device)
        return total / (int(real.sum()) if count is None else count)

    @staticmethod
    def _whole(model: Any, batch: dict[str, Any], labels: Tensor, count: Tensor | int | None) -> Tensor:
        counted = {} if count is None else {"num_items_in_batch": count}
        loss: Tensor = model(**batch, labels=labels, **counted).loss
        return loss


def _base(model: Any) -> Any:
    """The backbone under DDP and an adapter."""
    return base_of(getattr(model, "module", model))


def token_loss(model: Any, batch: dict[str, Any], count: Tensor | int | None) -> Tensor:
    """Mean negative log-likelihood of the labels, over all batches of a step."""
    labels = batch.pop("labels")
    logits = model(**batch).logits
    return _mean(logits[labels != IGNORED], labels[labels != IGNORED], count)


def masked_loss(model: Any, batch: dict[str, Any], count: Tensor | int | None) -> Tensor:
    """As `token_loss`; the head, most of the cost where the vocabulary is large, sees the masked tokens alone.

    Where even their logits are many, the head reads them in parts, and again in the backward pass.
    """
    from torch.utils.checkpoint import checkpoint

    from lingualift.backbone.products import LOGITS

    labels = batch.pop("labels")
    chosen = labels != IGNORED
    base = _base(model)
    names = head_modules(base)
    head = getattr(base, names[0])  # what comes after it takes what it is given
    most = max(1, LOGITS // base.config.vocab_size) if len(names) == 1 else len(labels.flatten())
    kept: dict[str, Any] = {}

    def choose(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        states = given[0][chosen]
        kept.update(states=states, more=given[1:], autocast=_autocast(states))
        return (states[:most], *given[1:])

    def part(states: Tensor, answers: Tensor) -> Tensor:
        with kept["autocast"]:
            return _mean(head(states, *kept["more"]), answers, count)

    hook = head.register_forward_pre_hook(choose)
    try:
        logits = model(**batch).logits
    finally:
        hook.remove()
    answers = labels[chosen]
    count = len(answers) if count is None else count
    loss = _mean(logits, answers[:most], count)
    for start in range(most, len(answers), most):
        place = slice(start, start + most)
        loss = loss + checkpoint(part, kept["states"][place], answers[place], use_reentrant=False)
    return loss


def _autocast(states: Tensor) -> torch.autocast:
    """The format of arithmetic that is in force: the trainer sets it for a model's own forward pass alone."""
    import torch

    kind = states.device.type
    return torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))


def mixed_loss(model: Any, batch: dict[str, Any], count: Tensor | int | None) -> Tensor:
    """The loss of a model that learns source and target together (X-Mixup), over all batches of a step."""
    loss: Tensor = model(**batch, num_items_in_batch=count).loss
    return loss


def class_loss(model: Any, batch: dict[str, Any], count: Tensor | int | None) -> Tensor:
    """Mean negative log-likelihood of the right class or choice, over all batches of a step."""
    labels = batch.pop("labels")
    logits = model(**batch).logits
    return _mean(logits.reshape(len(labels), -1), labels, count)


def _mean(logits: Tensor, labels: Tensor, count: Tensor | int | None) -> Tensor:
    import torch

    total = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
    return total / (len(labels) if count is None else count)
