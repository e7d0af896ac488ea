"""Training adapters on a frozen backbone: one recorded start, one trainer, the same for every role."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lingualift.adapters.card import CARD_FILE
from lingualift.backbone import (
    BackboneRef,
    attach,
    detach,
    device,
    keeps_logits,
    load_backbone,
    recompute_activations,
)
from lingualift.config import Adapter, GivenAdapter, Training
from lingualift.errors import UserError
from lingualift.provenance import (
    PROVENANCE_FILE,
    library_versions,
    read_json,
    sha256_file,
    write_json,
    write_jsonl,
    write_text,
)
from lingualift.tasks import Example
from lingualift.training.card import trained_card
from lingualift.training.collator import Collator
from lingualift.training.encoding import encode_pair, encode_texts, training_row
from lingualift.training.tracking import Tracking, reporting

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
LOGS = "logs"
LIBRARIES = ("lingualift", "torch", "transformers", "peft", "accelerate", "tokenizers")
Progress = Callable[[int, int], None]


def initialise(ref: BackboneRef, adapter: Adapter | GivenAdapter, seed: int, output: Path) -> None:
    """Draw the one initialisation that every adapter of a run starts from, and save it as an adapter folder.

    Args:
        ref: The backbone.
        adapter: Type, rank and modules, or the configuration of an adapter that exists.
        seed: Seed of the draw.
        output: An empty folder.

    Raises:
        UserError: the modules are not in the backbone.
    """
    import peft
    import torch

    model, _ = load_backbone(ref)
    torch.manual_seed(seed)
    try:
        wrapped = peft.get_peft_model(model, _peft_config(adapter))
    except ValueError as error:
        detach(model)
        raise UserError(
            "adapter.modules",
            " ".join(str(error).split())[:300],
            mend=f"name linear layers of the backbone: {', '.join(_linear_names(model))}",
        ) from None
    try:
        config = wrapped.peft_config["default"]
        config.revision = ref.revision
        if isinstance(adapter, GivenAdapter):  # adapters of one family call their backbone by one name
            config.revision = adapter.settings["revision"]
            config.base_model_name_or_path = adapter.settings["base_model_name_or_path"]
        wrapped.save_pretrained(output, save_embedding_layers=False)
    finally:
        detach(wrapped)
    _record(output, {"kind": "initialisation", "seed": seed, "backbone": _identity(ref)})


def _peft_config(adapter: Adapter | GivenAdapter) -> Any:
    import peft

    if isinstance(adapter, GivenAdapter):
        settings = {**adapter.settings, "base_model_name_or_path": None}  # peft fills it in
        return peft.PeftConfig.from_peft_type(task_type="CAUSAL_LM", **settings)
    modules = list(adapter.modules) if adapter.modules else None
    if adapter.type == "ia3":
        feedforward = [name for name in modules or [] if name in ("down_proj", "fc2", "wo", "dense_4h_to_h")]
        return peft.IA3Config(
            task_type="CAUSAL_LM",
            target_modules=modules,
            feedforward_modules=feedforward if modules else None,
        )
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=modules or "all-linear",
    )


def _linear_names(model: Any) -> list[str]:
    import torch

    head = model.get_output_embeddings()
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        }
    )


def train(
    ref: BackboneRef,
    rows: Sequence[Example] | Sequence[str],
    settings: Training,
    *,
    start: Path,
    seed: int,
    output: Path,
    work: Path,
    segment_tokens: int = 512,
    about: dict[str, Any] | None = None,
    progress: Progress = lambda done, total: None,
    tracking: Tracking = Tracking(),
) -> None:
    """Train one adapter.

    Args:
        ref: The backbone; it stays frozen.
        rows: Examples (loss on the answers only) or texts (packed into segments, loss on every token).
        settings: Steps, batch, learning rate and so on.
        start: Adapter folder to start from, written by `initialise` or an earlier training.
        seed: Order of the data, and dropout.
        output: An empty folder, filled with the adapter, `provenance.json` and `training_log.jsonl`.
        work: Folder for the checkpoints that a killed run resumes from; removed at the end.
        segment_tokens: Tokens per segment, for texts.
        about: Further facts for the provenance.
        progress: Called with steps done and steps in all.
        tracking: Experiment trackers, and where they write.

    Raises:
        UserError: the loss or a tensor became infinite or NaN; an answer leaves no room for its prompt.
    """
    model, tokenizer = load_backbone(ref)
    data, truncated = _encode(tokenizer, rows, settings, segment_tokens)
    wrapped = attach(model, start, trainable=True)
    try:
        with reporting(tracking, tracking.folder or work / LOGS):
            trainer = _trainer(wrapped, tokenizer, data, settings, seed, work, progress, tracking)
            trainer.train(resume_from_checkpoint=_last_checkpoint(work))
        _check_finite(wrapped)
        if trainer.is_world_process_zero():
            wrapped.save_pretrained(output, save_embedding_layers=False)
            write_jsonl(output / "training_log.jsonl", _finite_log(trainer.state.log_history))
            facts = {
                "kind": "trained",
                "initialisation": _initialisation(start),
                "backbone": _identity(ref),
                "settings": settings.model_dump(mode="json"),
                "seed": seed,
                "rows": len(rows),
                "segments": len(data),
                "truncated_prompts": truncated,
                "steps": trainer.state.global_step,
                **(about or {}),
            }
            _record(output, facts)
            if (work / LOGS).is_dir():
                shutil.move(work / LOGS, output / LOGS)
            shutil.rmtree(work, ignore_errors=True)
    except UserError:
        shutil.rmtree(work, ignore_errors=True)  # its checkpoints lead to the same error
        raise
    finally:
        if settings.gradient_checkpointing:
            recompute_activations(model, on=False)
        detach(wrapped)
        model.eval()


def _encode(
    tokenizer: Any, rows: Sequence[Any], settings: Training, segment_tokens: int
) -> tuple[list[Any], int]:
    """Token ids of the rows, and how many prompts had to be cut."""
    if isinstance(rows[0], str):
        return encode_texts(tokenizer, rows, segment_tokens), 0
    room = settings.max_length - 1  # for the end-of-text id
    pairs = [encode_pair(tokenizer, row.prompt, row.answer, room) for row in rows]
    return [training_row(tokenizer, pair) for pair in pairs], sum(pair.truncated > 0 for pair in pairs)


def _trainer(
    model: Any,
    tokenizer: Any,
    data: list[Any],
    settings: Training,
    seed: int,
    work: Path,
    progress: Progress,
    tracking: Tracking,
) -> Any:
    import torch
    import transformers

    if settings.gradient_checkpointing:
        recompute_activations(model.get_base_model(), on=True)
    steps = -1 if settings.steps is None else settings.steps
    arguments = transformers.TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        num_train_epochs=settings.epochs or 1.0,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=0 if steps == 1 else settings.warmup,  # below 1 it is a share of all steps
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bfloat16",
        optim="adamw_torch",
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        save_total_limit=1,
        logging_steps=10,
        seed=seed,
        use_cpu=device() == "cpu",
        dataloader_pin_memory=device() == "cuda",
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to=list(tracking.trackers),
        run_name=tracking.name or None,
        use_cache=False,  # a cache would switch the masks of packed documents off
    )

    class Watch(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress(state.global_step, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            loss = logs.get("loss")
            if loss is not None and not torch.isfinite(torch.tensor(float(loss))):
                raise _diverged(f"the loss became {loss} at step {state.global_step}")

    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=Collator(tokenizer.pad_token_id, trims_logits=keeps_logits(model)),
        callbacks=[Watch()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _last_checkpoint(work: Path) -> str | None:
    """The newest checkpoint that was written to its end (the trainer writes its state last)."""
    whole = []
    for folder in work.glob("checkpoint-*"):
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            whole.append((int(folder.name.rsplit("-", 1)[1]), folder))
        except (OSError, ValueError):
            shutil.rmtree(folder, ignore_errors=True)
    return str(max(whole)[1]) if whole else None


def _check_finite(model: Any) -> None:
    import torch

    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise _diverged(f"{name} became infinite or NaN")


def _diverged(found: str) -> UserError:
    return UserError("training", found, "finite numbers", "lower `learning_rate`, or train in float32")


def _finite_log(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    timings = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    return [{key: value for key, value in entry.items() if key not in timings} for entry in history]


def _identity(ref: BackboneRef) -> dict[str, Any]:
    return {"name": ref.name, "revision": ref.revision, "fingerprint": ref.fingerprint, "dtype": ref.dtype}


def _initialisation(start: Path) -> str:
    """What an adapter's training began with: passed on by adapters that were trained further."""
    recorded = start / PROVENANCE_FILE
    provenance = read_json(recorded) if recorded.is_file() else {}
    return str(provenance.get("initialisation") or sha256_file(start / WEIGHTS_FILE))


def _record(folder: Path, facts: dict[str, Any]) -> None:
    """Write provenance and model card; peft writes sets in their order, which differs between equal runs."""
    config = read_json(folder / CONFIG_FILE)
    for key in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    write_json(folder / CONFIG_FILE, config)
    write_text(folder / CARD_FILE, trained_card(config, facts))
    weights = {"weights_sha256": sha256_file(folder / WEIGHTS_FILE)}
    write_json(folder / PROVENANCE_FILE, {**facts, **weights, "libraries": library_versions(*LIBRARIES)})
