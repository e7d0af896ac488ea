"""What the trainer draws from: encoded rows, how they become a batch, and the loss on it, by family and head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lingualift.adapters.config import MIXUP
from lingualift.backbone.architectures import Head, head_modules
from lingualift.backbone.chat import ending
from lingualift.backbone.loading import BackboneRef, base_of, check_speaks, keeps_apart, keeps_logits
from lingualift.config import Training
from lingualift.encoding.collator import Collator, Padding
from lingualift.encoding.heads import encode_choices, encode_classes, encode_windows, span_row
from lingualift.encoding.parallel import (
    SourceInputs,
    answered_sources,
    source_prompts,
    source_texts,
    source_windows,
    too_long,
)
from lingualift.encoding.text import (
    IGNORED,
    encode_pairs,
    encode_texts,
    set_language,
    source_ids,
    target_ids,
    training_row,
)
from lingualift.errors import UserError
from lingualift.tasks import Example, Task, TextTask
from lingualift.tasks.base import labels_of
from lingualift.training.objectives import continued, masked, span_corruption

if TYPE_CHECKING:
    from lingualift.fusion.translator import Translator

Loss = Callable[[Any, dict[str, Any], Any], Any]
Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]


@dataclass(frozen=True)
class Feed:
    """Rows for a trainer.

    Attributes:
        rows: Encoded rows; those with fresh noise in every epoch have `set_epoch`.
        collate: Rows -> the tensors of a batch.
        truncated: Prompts that were cut to fit.
        loss: Model, batch and the number of labels in all batches of a step (None: in this one) -> the loss; None
            for the model's own.
    """

    rows: Sequence[dict[str, Any]]
    collate: Collate
    truncated: int
    loss: Loss | None

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row; of its longest text where it has several."""
        return [max(len(text["input_ids"]) for text in row.get("inputs", [row])) for row in self.rows]


def feed_of(
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
    translator: Translator | None = None,
) -> Feed:
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
    if fused == MIXUP:

        def side(row: Example, code: str) -> Feed:
            how = (ref, model, tokenizer, task, [row], settings)
            return feed_of(*how, language=code, segment_tokens=segment_tokens, seed=seed)

        return _mixed(ref, tokenizer, task, rows, settings, side, language)
    set_language(tokenizer, language)
    if fused:
        return _fused(ref, model, tokenizer, task, rows, settings, translator)
    if ref.family == "decoder":
        collate: Any = Collator(tokenizer.pad_token_id, trims_logits=keeps_logits(model))
        if isinstance(task, TextTask):
            check_objective(ref, task)
            texts = encode_texts(tokenizer, rows, segment_tokens, packed=keeps_apart(model))
            return Feed(texts, collate, 0, WordLoss())
        return _continued(tokenizer, rows, collate, settings.max_length)
    start = model.config.decoder_start_token_id if ref.family == "encoder-decoder" else None
    collate = Padding(tokenizer.pad_token_id, decoder_start=start)
    if isinstance(task, TextTask):
        check_speaks(ref, model)
        return _texts(ref, tokenizer, task, rows, collate, segment_tokens, seed)
    if ref.family == "encoder-decoder":
        return _written(tokenizer, rows, collate, settings.max_length)
    return _answered(tokenizer, ref.head, task, rows, collate, settings.max_length)


def _fused(
    ref: BackboneRef,
    model: Any,
    tokenizer: Any,
    task: Task | TextTask,
    rows: Sequence[Any],
    settings: Training,
    translator: Translator | None,
) -> Feed:
    """Rows with their source side."""
    from lingualift.encoding.collator import PairCollator

    if isinstance(task, TextTask):
        raise _no_pairs()
    pad = tokenizer.pad_token_id
    theirs = pad if translator is None else translator.pad
    if ref.family == "encoder":
        collate = PairCollator(Padding(pad), pad=theirs)
        more: dict[str, Any] = {"fused": True, "translator": translator}
        return _answered(tokenizer, ref.head, task, rows, collate, settings.max_length, **more)
    if ref.family == "decoder":
        collate = PairCollator(Collator(pad, trims_logits=keeps_logits(model)), pad=theirs)
        feed = replace(_continued(tokenizer, rows, collate, settings.max_length), loss=None)
    else:
        start = model.config.decoder_start_token_id
        collate = PairCollator(Padding(pad, decoder_start=start), pad=theirs)
        feed = _written(tokenizer, rows, collate, settings.max_length)
    sides = source_prompts(model.config, tokenizer, rows, settings.max_length, translator)
    return replace(feed, rows=[{**row, **side} for row, side in zip(feed.rows, sides, strict=True)])


def _no_pairs() -> UserError:
    found = "learns from a text and the same one in the source language, and unlabelled text has no such"
    return UserError("a fused adapter", found, "a labelled task", "train it on the task")


def _mixed(
    ref: BackboneRef,
    tokenizer: Any,
    task: Task | TextTask,
    rows: Sequence[Any],
    settings: Training,
    encode: Callable[[Example, str], Feed],
    language: str,
) -> Feed:
    """Rows with their source side as `source`, encoded by itself with its answer; `encode` takes one and its language.

    Of a passage in windows, each window has the source's window of the same number, or its last.
    """
    from lingualift.encoding.collator import PairCollator

    if isinstance(task, TextTask):
        raise _no_pairs()
    sources = [encode(source, source.language) for source in answered_sources(ref, rows)]
    targets = [encode(row, language) for row in rows]
    encoded = []
    for row, target, source in zip(rows, targets, sources, strict=True):
        if source.truncated:
            raise too_long(f"source of example {row.id!r}", None, settings.max_length)
        last = len(source.rows) - 1
        encoded += [{**one, "source": source.rows[min(place, last)]} for place, one in enumerate(target.rows)]
    collate = PairCollator(targets[0].collate, pad=tokenizer.pad_token_id)
    loss = None if ref.head.kind == "span" else mixed_loss
    return Feed(encoded, collate, sum(target.truncated for target in targets), loss)


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
    tokenizer: Any,
    task: TextTask,
    texts: Sequence[str],
    collate: Padding,
    tokens: int,
    seed: int,
) -> Feed:
    objective = check_objective(ref, task)
    if objective == "masked":
        return Feed(masked(tokenizer, texts, tokens, seed), collate, 0, masked_loss)
    if objective == "prefix":
        return Feed(continued(tokenizer, texts, tokens), collate, 0, token_loss)
    return Feed(span_corruption(tokenizer, texts, tokens, seed), collate, 0, token_loss)


def _continued(tokenizer: Any, rows: Sequence[Example], collate: Collate, max_length: int) -> Feed:
    """For decoders: the answer follows its prompt."""
    room = max_length - len(ending(tokenizer))
    pairs = encode_pairs(tokenizer, [(row.prompt, row.answer) for row in rows], room)
    encoded = [training_row(tokenizer, pair) for pair in pairs]
    return Feed(encoded, collate, sum(pair.truncated > 0 for pair in pairs), WordLoss())


def _written(tokenizer: Any, rows: Sequence[Example], collate: Collate, max_length: int) -> Feed:
    """For encoder-decoders: the prompt is read, the answer written."""
    encoded, truncated = [], 0
    for row in rows:
        ids, cut = source_ids(tokenizer, row.prompt, max_length)
        truncated += cut
        labels = target_ids(tokenizer, row.answer)
        encoded.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return Feed(encoded, collate, truncated, token_loss)


def _answered(
    tokenizer: Any,
    head: Head,
    task: Task,
    rows: Sequence[Example],
    collate: Collate,
    max_length: int,
    *,
    fused: bool = False,
    translator: Translator | None = None,
) -> Feed:
    """For encoders: the head answers."""
    encoded: list[dict[str, Any]] = []
    truncated = 0
    for row in rows:
        if head.kind == "span":
            encoded += _windows(tokenizer, row, max_length, fused, translator)
            continue
        label = labels_of(task, row).index(row.gold[0])
        choices = head.kind == "choices"
        texts = (
            encode_choices(tokenizer, row, max_length)
            if choices
            else [encode_classes(tokenizer, row, max_length)]
        )
        sides = source_texts(tokenizer, [row], max_length, translator)[0] if fused else [{} for _ in texts]
        inputs = [{**text.inputs, **side} for text, side in zip(texts, sides, strict=True)]
        encoded.append({"inputs": inputs, "labels": label} if choices else {**inputs[0], "labels": label})
        truncated += any(text.truncated for text in texts)
    return Feed(encoded, collate, truncated, None if head.kind == "span" else class_loss)


def _windows(
    tokenizer: Any, row: Example, max_length: int, fused: bool, translator: Translator | None
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
    sides = source_windows(tokenizer, row, max_length, windows, translator) if fused else none
    return [{**span_row(window, start, end), **side} for window, side in zip(windows, sides, strict=True)]


class WordLoss:
    """Mean negative log-likelihood of the next word, over all batches of a step, as a decoder of transformers has it.

    The logits of a batch are never all there at once where the head is plain and frozen and the model does nothing
    more to its logits, as Gemma 2 does: found out on the first batch. Elsewhere the loss is the model's own.
    """

    def __init__(self) -> None:
        self._alone: bool | None = None

    def __call__(self, model: Any, batch: dict[str, Any], count: Any) -> Any:
        """The loss of a batch, whose labels (rows, tokens) are those of its last tokens."""
        import torch

        from lingualift.backbone.products import summed_loss

        labels = batch.pop("labels")
        head = _base(model).get_output_embeddings()
        plain = isinstance(head, torch.nn.Linear) and head.bias is None and not head.weight.requires_grad
        if not plain or self._alone is False:
            return self._whole(model, batch, labels, count)
        read: list[Any] = []

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
    def _whole(model: Any, batch: dict[str, Any], labels: Any, count: Any) -> Any:
        counted = {} if count is None else {"num_items_in_batch": count}
        return model(**batch, labels=labels, **counted).loss


def _base(model: Any) -> Any:
    """The backbone under DDP and an adapter."""
    return base_of(getattr(model, "module", model))


def token_loss(model: Any, batch: dict[str, Any], count: Any) -> Any:
    """Mean negative log-likelihood of the labels, over all batches of a step."""
    labels = batch.pop("labels")
    logits = model(**batch).logits
    return _mean(logits[labels != IGNORED], labels[labels != IGNORED], count)


def masked_loss(model: Any, batch: dict[str, Any], count: Any) -> Any:
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

    def part(states: Any, answers: Any) -> Any:
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


def _autocast(states: Any) -> Any:
    """The format of arithmetic that is in force: the trainer sets it for a model's own forward pass alone."""
    import torch

    kind = states.device.type
    return torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))


def mixed_loss(model: Any, batch: dict[str, Any], count: Any) -> Any:
    """The loss of a model that learns source and target together (X-Mixup), over all batches of a step."""
    return model(**batch, num_items_in_batch=count).loss


def class_loss(model: Any, batch: dict[str, Any], count: Any) -> Any:
    """Mean negative log-likelihood of the right class or choice, over all batches of a step."""
    labels = batch.pop("labels")
    logits = model(**batch).logits
    return _mean(logits.reshape(len(labels), -1), labels, count)


def _mean(logits: Any, labels: Any, count: Any) -> Any:
    import torch

    total = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
    return total / (len(labels) if count is None else count)
