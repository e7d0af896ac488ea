"""Training a head for words, for encoders whose checkpoint has none (`lingualift.backbone.words`)."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lingualift.adapters.card import CARD_FILE, words_card
from lingualift.attachment import detach
from lingualift.backbone.architectures import WORDS
from lingualift.backbone.loading import check_positions, load_backbone
from lingualift.backbone.reference import BackboneRef
from lingualift.backbone.words import HEAD_FILE, draw_words, head_alone, own_weights, save_words
from lingualift.config import Training
from lingualift.encoding.collator import Padding
from lingualift.errors import UserError, setting
from lingualift.languages import own_facts
from lingualift.provenance import (
    PROVENANCE_FILE,
    library_versions,
    read_json,
    sha256_file,
    write_json,
    write_jsonl,
    write_text,
)
from lingualift.training.data import TrainingData, masked_loss
from lingualift.training.objectives import Noised, masked
from lingualift.training.trainer import LIBRARIES, TRAINING_LOG_FILE, Job, Progress, finite_log, trained

LEARNING_RATE = 1e-3
"""Peak, of a head that begins from a draw; that of references is for adapters that begin from no change."""


def expect(model: Any, segments: Iterable[Sequence[int]]) -> None:
    """Set the bias of a head for words to how often each token occurs, so that what is left to learn is context.

    AdamW moves a weight by about the learning rate in a step, and the logarithms of frequencies lie some ten apart.

    Args:
        model: A masked language model whose head has one bias for each token; without one nothing is changed.
        segments: Token ids of the text that is learnt.
    """
    import torch

    size = model.get_input_embeddings().weight.shape[0]
    counts = torch.ones(size, dtype=torch.float64)  # one more of each: none is impossible
    for ids in segments:
        counts += torch.bincount(torch.tensor(ids), minlength=size)
    with torch.no_grad():
        for weight in own_weights(model).values():
            if weight.shape == (size,):
                logs = (counts / counts.sum()).log()
                weight.copy_(logs - logs.mean())


def settings_of(reference: Training, languages: int) -> Training:
    """How a head is trained, where references are trained by `reference`: it reads of each language as much as they.

    The backward pass ends in the head: a step of e5-small's takes about six tenths of a reference's.
    """
    steps = None if reference.steps is None else reference.steps * languages
    changed = {"learning_rate": LEARNING_RATE, "steps": steps, "gradient_checkpointing": False}
    return reference.model_copy(update=changed)


def words_rows(tokenizer: Any, texts: Mapping[str, Sequence[str]], tokens: int, seed: int) -> Noised:
    """Segments of the texts of several languages, none of which holds two; tokens are masked as by `masked`."""
    each = [masked(tokenizer, some, tokens, seed) for some in texts.values()]
    return Noised([ids for one in each for ids in one.segments], each[0].noise, seed)


def train_words(
    ref: BackboneRef,
    texts: Mapping[str, Sequence[str]],
    settings: Training,
    *,
    seed: int,
    output: Path,
    work: Path,
    segment_tokens: int = 512,
    about: Mapping[str, Any] | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Train a head for words on a frozen encoder whose checkpoint has none.

    Args:
        ref: The backbone.
        texts: Language -> its texts.
        settings: Steps, batch, learning rate and so on; `lingualift.training.words.settings_of` derives them.
        seed: Draw of the head, order of the text, masks.
        output: An empty folder, filled with the head, `provenance.json`, `training_log.jsonl` and a card.
        work: Folder for the checkpoints that a killed run resumes from; removed at the end.
        segment_tokens: Tokens per segment.
        about: Further facts for the provenance.
        progress: Called with steps done and steps in all.

    Raises:
        UserError: the backbone has a head of its own, or is no encoder; the loss or a weight became infinite or NaN.
    """
    ref = ref.answering(WORDS).with_words(None)
    if not ref.lacks_words:
        found = "has a head for words of its own, or needs none"
        raise UserError(f"backbone {ref.name!r}", found, "an encoder without one", "use it as it is")
    wide = replace(ref, dtype="float32")  # in which a head is trained, whatever the backbone is held in
    model, tokenizer = load_backbone(wide)
    rows = words_rows(tokenizer, texts, segment_tokens, seed)
    data = TrainingData(rows, Padding(tokenizer.pad_token_id), 0, masked_loss)
    check_positions(model.bound, setting("segment_tokens"), max(data.lengths))

    def begin() -> Any:
        alone = head_alone(model)
        draw_words(model, seed)
        expect(model, rows.segments)
        return alone

    job = Job(wide, data, settings, begin, seed, work, progress)
    with trained(job) as (_, trainer):
        if trainer.is_world_process_zero():
            write_jsonl(output / TRAINING_LOG_FILE, finite_log(trainer.state.log_history))
            facts = {
                "languages": list(texts),
                **own_facts(*texts),
                "rows": sum(map(len, texts.values())),
                "segments": len(rows),
                "settings": settings.model_dump(mode="json"),
                "steps": trainer.state.global_step,
                **(about or {}),
            }
            _write_words(ref, model, output, seed, facts)
            write_text(output / CARD_FILE, words_card(read_json(output / PROVENANCE_FILE)))
            shutil.rmtree(work, ignore_errors=True)


def initialise_words(ref: BackboneRef, seed: int, output: Path) -> None:
    """Draw a head for words and write it untrained into an empty folder: enough to measure a training by."""
    ref = ref.answering(WORDS).with_words(None)
    model, _ = load_backbone(ref)
    alone = head_alone(model)
    try:
        draw_words(model, seed)
        _write_words(ref, model, output, seed, {"languages": [], "steps": 0})
    finally:
        detach(alone)


def _write_words(ref: BackboneRef, model: Any, output: Path, seed: int, facts: Mapping[str, Any]) -> None:
    """Write the head for words of a model, and its provenance."""
    save_words(model, output)
    made = {"kind": "words-head", "backbone": ref.record(), "seed": seed, **facts}
    weights = {"weights_sha256": sha256_file(output / HEAD_FILE)}
    write_json(output / PROVENANCE_FILE, {**made, **weights, "libraries": library_versions(*LIBRARIES)})
