"""Training adapters on a frozen backbone: one recorded start, one trainer, the same for every role."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from lingualift.adapters import open_adapter
from lingualift.adapters.card import CARD_FILE, shown, trained_card
from lingualift.adapters.config import FUSED
from lingualift.attachment import answering, attach, check_adapter, detach, wrap
from lingualift.backbone.architectures import (
    draw_head,
    head_modules,
    ia3_modules,
    is_feedforward,
    linear_names,
    pattern_of,
    prefix_shape,
)
from lingualift.backbone.loading import check_positions, load_backbone, recompute_activations, skeleton
from lingualift.backbone.reference import BackboneRef
from lingualift.config import Adapter, GivenAdapter, Tracker, Training
from lingualift.encoding.limits import check_kept
from lingualift.encoding.parallel import is_fused, translator_on
from lingualift.encoding.text import language_tag
from lingualift.errors import UserError, did_you_mean, setting
from lingualift.languages import own_facts
from lingualift.processes import clear_memory, device, out_of_memory
from lingualift.provenance import (
    PROVENANCE_FILE,
    library_versions,
    read_json,
    sha256_file,
    sha256_folder,
    write_json,
    write_jsonl,
    write_text,
)
from lingualift.tasks import Example, Task, TextTask
from lingualift.tasks.base import labels_of
from lingualift.training.data import TrainingData, training_data
from lingualift.training.objectives import Noised

_LOG = logging.getLogger("lingualift.training")
_LOGS_ENV = "TENSORBOARD_LOGGING_DIR"  # where transformers' Trainer is told where trackers write
WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
TRAINING_LOG_FILE, LOGS = "training_log.jsonl", "logs"
STATES = "source-states"
LIBRARIES = ("lingualift", "torch", "transformers", "peft", "accelerate", "tokenizers")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Tracking:
    """Where a training reports its loss, beside its own log.

    Attributes:
        trackers: Names of trackers of transformers' Trainer.
        name: What the training is called there: task, language, seed.
        folder: Where trackers that write files put theirs; `logs` in the adapter's own folder when left out.
    """

    trackers: tuple[str, ...] = ()
    name: str = ""
    folder: Path | None = None


def check_trackers(trackers: Sequence[str]) -> None:
    """Check that trackers are known and installed.

    Raises:
        UserError: with the command that installs it.
    """
    for name in trackers:
        if name not in get_args(Tracker):
            mend = did_you_mean(name, get_args(Tracker))
            raise UserError("report_to", f"{name!r} is no tracker known here", mend=mend)
        if importlib.util.find_spec(name) is None:
            raise UserError(
                "report_to", f"{name} is not installed", mend=f"pip install {name}, or leave it out"
            )


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
    import torch

    model, _ = load_backbone(ref)
    torch.manual_seed(seed)
    wrapped = _new_adapter(ref, model, adapter)
    try:
        config = wrapped.peft_config["default"]
        if isinstance(adapter, GivenAdapter):  # adapters of one family call their backbone by one name
            config.revision = adapter.settings["revision"]
            config.base_model_name_or_path = adapter.settings["base_model_name_or_path"]
        wrapped.save_pretrained(output, save_embedding_layers=False)
    finally:
        detach(wrapped)
    _record(output, {"kind": "initialisation", "seed": seed, "backbone": ref.record()})


def initialise_fused(
    ref: BackboneRef, config: Any, first_stage: Path, seed: int, output: Path, base: Path = Path()
) -> None:
    """Draw an adapter that reads a source side beside its first stage, and save both as one adapter folder.

    An encoder's head begins from the first stage's trained one, and is trained further with the adapter.

    Args:
        ref: The backbone, with the head that answers the task (`BackboneRef.answering`).
        config: A `FlareConfig` or `MixupConfig`; which modules make the head is filled in, and which source encoder it
            names.
        first_stage: Folder of the LoRA adapter trained on the task in the source language, which stays frozen.
        seed: Seed of the draw.
        output: An empty folder.
        base: Folder that a relative path of a source encoder starts from.

    Raises:
        UserError: no plain LoRA adapter of this backbone, one without the head that is needed, or with one that is
            not; modules that are not in the backbone; a source encoder that is no translation model.
    """
    import torch

    from lingualift.fusion import MODELS
    from lingualift.fusion.translator import named

    check_adapter(ref, first_stage)
    config, translator = named(config, base)
    model, _ = load_backbone(ref)
    heads = None if ref.head.kind == "words" else sorted(set(head_modules(model)))
    if heads and not _has_head(first_stage):
        found = "has no head, which the adapter's would begin from"
        raise UserError(first_stage, found, "an adapter trained on the task", "name the task adapter")
    torch.manual_seed(seed)
    config = replace(config, modules_to_save=heads)
    read_by = {} if translator is None else {"source_encoder": translator.encoder}
    wrapped = MODELS[type(config)](model, config, first_stage=first_stage, **read_by)
    try:
        wrapped.save_pretrained(output)
    finally:
        detach(wrapped)
    weights = sha256_file(first_stage / WEIGHTS_FILE)
    facts = {"kind": "initialisation", "seed": seed, "first_stage": weights, "backbone": ref.record()}
    _record(output, facts)


def read_beside(start: Path | None) -> dict[str, Any]:
    """What an adapter reads beside rows, as `training_data` takes it; nothing of one that reads rows alone."""
    if start is None or (kind := open_adapter(start).kind) not in FUSED:
        return {}
    if not read_json(start / CONFIG_FILE).get("source_encoder"):
        return {"fused": kind}
    from lingualift.fusion import FlareConfig
    from lingualift.fusion.translator import translator_of

    return {"fused": kind, "translator": translator_of(FlareConfig.from_folder(start))}


def _beside_language(wrapped: Any, rows: Sequence[Any]) -> dict[str, str]:
    """The language that an adapter learnt to read beside rows; nothing where it reads no source side, or makes it."""
    if not is_fused(wrapped) or translator_on(wrapped):
        return {}
    return {"beside_language": rows[0].source.language}


def _own_languages(language: str, beside: str | None, tokenizers: Iterable[Any]) -> dict[str, Any]:
    """What a user says of languages of their own, and the tags of the rows' one where texts are tagged."""
    tags = {language_tag(one, language)[0] for one in tokenizers if hasattr(one, "src_lang")}
    tagged = {"tags": sorted(tags)} if tags and own_facts(language) else {}
    return {**own_facts(language, beside), **tagged}


def _labels(task: Task | TextTask, rows: Sequence[Any]) -> list[str]:
    """The classes of a task, in the order of the head's outputs."""
    return [] if isinstance(task, TextTask) else list(labels_of(task, rows[0]))


def _new_adapter(ref: BackboneRef, model: Any, adapter: Adapter | GivenAdapter) -> Any:
    """The model with a fresh adapter on it."""
    try:
        return wrap(ref, model, _peft_config(ref, model, adapter))
    except ValueError as error:
        raise UserError(
            "adapter.modules",
            " ".join(str(error).split())[:300],
            mend=f"name linear layers of the backbone: {', '.join(linear_names(model))}",
        ) from None


def _peft_config(ref: BackboneRef, model: Any, adapter: Adapter | GivenAdapter) -> Any:
    import peft

    named = {"base_model_name_or_path": ref.source, "revision": ref.revision}
    if isinstance(adapter, GivenAdapter):
        return peft.PeftConfig.from_peft_type(**{**adapter.settings, **named})
    if adapter.type == "prefix":
        shape = prefix_shape(model, ref.family)
        return peft.PrefixTuningConfig(
            num_virtual_tokens=adapter.tokens,
            num_transformer_submodules=2 if ref.family == "encoder-decoder" else 1,
            **shape,
            **named,
        )
    if adapter.type == "bottleneck":
        from lingualift.bottlenecks import BottleneckConfig

        return BottleneckConfig(
            placement=adapter.placement,
            size=max(1, int(model.config.get_text_config().hidden_size // adapter.reduction)),
            activation=adapter.activation,
            leave_out=list(adapter.leave_out),
            base_model_name_or_path=ref.source,
            revision=ref.revision,
        )
    if adapter.type == "ia3":
        modules, feedforward = ia3_modules(model)
        if adapter.modules:
            modules = list(adapter.modules)
            feedforward = [name for name in modules if is_feedforward(name)]
        return peft.IA3Config(
            target_modules=pattern_of(model, ref.family, modules),
            feedforward_modules=pattern_of(model, ref.family, feedforward) if feedforward else [],
            **named,
        )
    return peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=pattern_of(model, ref.family, adapter.modules or linear_names(model)),
        **named,
    )


def count_parameters(ref: BackboneRef, adapter: Adapter) -> tuple[int, int]:
    """Numbers in the backbone and in an adapter on it, from the backbone's config alone.

    Raises:
        UserError: no such config, or the modules are not in the backbone.
    """
    import torch

    model = skeleton(ref)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with torch.device("meta"):
        wrapped = _new_adapter(ref, model, adapter)
    return parameters, sum(p.numel() for p in wrapped.parameters() if p.requires_grad)


def adapted_modules(ref: BackboneRef, adapter: Adapter) -> list[str]:
    """Paths of the modules that get an adapter, from the backbone's config alone; raises as `count_parameters`."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    with torch.device("meta"):
        model = _new_adapter(ref, skeleton(ref), adapter).get_base_model()
    return [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def train(
    ref: BackboneRef,
    task: Task | TextTask,
    rows: Sequence[Example] | Sequence[str],
    settings: Training,
    *,
    start: Path,
    seed: int,
    output: Path,
    work: Path,
    language: str,
    segment_tokens: int = 512,
    about: dict[str, Any] | None = None,
    progress: Progress = lambda done, total: None,
    tracking: Tracking = Tracking(),
    cache_sources: bool = False,
) -> None:
    """Train one adapter.

    Args:
        ref: The backbone; it stays frozen, but for the head that an encoder answers with.
        task: Says how an encoder answers, and what is learnt from texts.
        rows: Examples (loss on the answers only) or texts (in segments).
        settings: Steps, batch, learning rate and so on.
        start: Adapter folder to start from, written by `initialise` or an earlier training.
        seed: Order of the data, and dropout.
        output: An empty folder, filled with the adapter, `provenance.json` and `training_log.jsonl`.
        work: Folder for the checkpoints that a killed run resumes from; removed at the end.
        language: Code of the rows' language.
        segment_tokens: Tokens per segment, for texts.
        about: Further facts for the provenance.
        progress: Called with steps done and steps in all.
        tracking: Experiment trackers, and where they write.
        cache_sources: Whether a FLARE adapter's source states are kept in `work`, where rows come round again; how
            large that is, the log says first. A source encoder's always are.

    Raises:
        UserError: the loss or a tensor became infinite or NaN; an answer leaves no room for its prompt.
    """
    ref = answering(ref, task, rows)
    model, tokenizer = load_backbone(ref)
    data = training_data(
        ref,
        model,
        tokenizer,
        task,
        rows,
        settings,
        language=language,
        segment_tokens=segment_tokens,
        seed=seed,
        **read_beside(start),
    )
    where = setting("segment_tokens" if isinstance(task, TextTask) else "max_length")
    prefix = read_json(start / CONFIG_FILE).get("num_virtual_tokens") or 0
    check_positions(model.bound, where, max(data.lengths), prefix)

    def begin() -> Any:
        wrapped = attach(ref, start, trainable=True)
        if not _has_head(start):
            draw_head(wrapped, model.fresh_weights, seed)
        return wrapped

    job = Job(ref, data, settings, begin, seed, work, progress, tracking, cache_sources)
    with trained(job) as (wrapped, trainer):
        if trainer.is_world_process_zero():
            wrapped.save_pretrained(output, save_embedding_layers=False)
            write_jsonl(output / TRAINING_LOG_FILE, finite_log(trainer.state.log_history))
            facts = _facts(job, task, rows, start, wrapped, trainer)
            readers = (tokenizer, getattr(translator_on(wrapped), "tokenizer", None))
            own = _own_languages(language, facts.get("beside_language"), readers)
            _record(output, {**facts, **own, **(about or {})})
            if (work / LOGS).is_dir():
                shutil.move(work / LOGS, output / LOGS)
            shutil.rmtree(work, ignore_errors=True)


def _facts(
    job: Job, task: Task | TextTask, rows: Sequence[Any], start: Path, wrapped: Any, trainer: Any
) -> dict[str, Any]:
    """The provenance of a trained adapter."""
    return {
        "kind": "trained",
        "initialisation": _initialisation(start),
        "backbone": job.ref.record(),
        **({} if isinstance(task, TextTask) else {"chat_template": job.ref.chat}),
        **({"labels": _labels(task, rows)} if job.ref.head.labels else {}),
        **_beside_language(wrapped, rows),
        **_made_here(job.ref, task, start),
        "settings": job.settings.model_dump(mode="json"),
        "rows_at_once": trainer.args.per_device_train_batch_size,
        "seed": job.seed,
        "rows": len(rows),
        "segments": len(job.data.rows),
        "truncated_prompts": job.data.truncated,
        "steps": trainer.state.global_step,
    }


def _made_here(ref: BackboneRef, task: Task | TextTask, start: Path) -> dict[str, Any]:
    """What an adapter's provenance says of parts that the checkpoint lacks; the log tells of a pooling layer, once.

    Returns:
        `words_head`: the facts of the head for words that was read by, which is no part of the adapter. `drawn`: the
        parts of the adapter's own head that were drawn from the seed.
    """
    if isinstance(task, TextTask):
        return {} if ref.words is None else {"words_head": _words_facts(ref.words)}
    model, _ = load_backbone(ref)
    fresh = {part for name in model.fresh_weights for part in name.split(".")}
    drawn = [name for name in head_modules(model) if name in fresh]
    if "pooler" in drawn and not _has_head(start):
        _LOG.warning(
            "%s has no pooling layer: it is drawn from the seed and trained with the head", shown(ref.name)
        )
    return {"drawn": drawn} if drawn else {}


def _words_facts(folder: Path) -> dict[str, Any]:
    facts = read_json(folder / PROVENANCE_FILE)
    return {name: facts[name] for name in ("weights_sha256", "languages", "seed", "steps")}


@dataclass(frozen=True)
class Job:
    """What a training needs; see `train`.

    Attributes:
        begin: Puts on the backbone what is trained, as it begins.
    """

    ref: BackboneRef
    data: TrainingData
    settings: Training
    begin: Callable[[], Any]
    seed: int
    work: Path
    progress: Progress
    tracking: Tracking = Tracking()
    cache_sources: bool = False


@contextlib.contextmanager
def trained(job: Job) -> Iterator[tuple[Any, Any]]:
    """Train to the end, and leave the resident backbone as it was; yields the trained model and the trainer.

    Raises:
        UserError: the loss or a tensor became infinite or NaN; checkpoints, which lead there again, are removed.
    """
    try:
        with _reporting(job.tracking, job.tracking.folder or job.work / LOGS):
            wrapped, trainer = _fit(job)
        try:
            _check_finite(wrapped)
            yield wrapped, trainer
        finally:
            detach(wrapped)
    except UserError:
        shutil.rmtree(job.work, ignore_errors=True)
        raise


def _fit(job: Job) -> tuple[Any, Any]:
    """Train to the end; where memory runs out, go on from the last checkpoint with fewer rows at once.

    A step keeps its rows, and so its gradient up to rounding: what a batch loses, accumulation gains.

    Returns:
        The model with the trained adapter on it, and the trainer.
    """
    at_once = job.settings.batch_size
    while True:
        wrapped = job.begin()
        try:
            trainer = _trainer(_with_states(job, wrapped), wrapped, at_once)
            trainer.train(resume_from_checkpoint=_last_checkpoint(job.work))
            return wrapped, trainer
        except BaseException as error:  # an interrupt too: a notebook goes on with the resident backbone
            detach(wrapped)
            if not out_of_memory(error):
                raise
        at_once = _fewer(at_once)  # out of the handler, whose traceback holds on to tensors
        clear_memory()


def _has_head(start: Path) -> bool:
    """Whether an adapter has a trained head, which is trained further."""
    return bool(read_json(start / CONFIG_FILE).get("modules_to_save"))


def _with_states(job: Job, wrapped: Any) -> Job:
    """The job with the source states of all rows on disk, where rows come round more than once.

    They do not change in training. Without a source encoder they are those of every fused block, and too large to be
    kept unasked.

    Raises:
        UserError: they will not fit; or as `check_kept`.
    """
    settings, data = job.settings, job.data
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    drawn = (settings.steps or 0) * settings.batch_size * settings.accumulation * processes
    again = drawn > len(data.rows) if settings.steps else (settings.epochs or 1) > 1
    if not again or not (job.cache_sources or translator_on(wrapped)):
        return job
    if not translator_on(wrapped):
        check_kept(job.ref, load_backbone(job.ref)[1])
    from lingualift.encoding.collator import PairCollator, numbered

    rows, sources = numbered(data.rows)
    wrapped.cache_sources(sources, job.work / STATES, tell=_LOG.info)
    collate = PairCollator(data.collate.targets, pad=data.collate.pad, cached=True)  # type: ignore[attr-defined]
    return replace(job, data=replace(data, rows=rows, collate=collate))


def _fewer(at_once: int) -> int:
    """The next smaller number of rows that divides this one, at most half of it.

    Raises:
        UserError: it is one already, or other processes train along and would not follow.
    """
    mend = (
        "lower `max_length` or `batch_size`, set `gradient_checkpointing: true`, or take a smaller backbone"
    )
    if at_once == 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("training", f"ran out of memory with {at_once} rows at once", mend=mend)
    fewer = next(count for count in range(at_once // 2, 0, -1) if at_once % count == 0)
    _LOG.warning(
        "out of memory with %d rows at once: goes on with %d and accumulates their gradients", at_once, fewer
    )
    return fewer


def _arguments(job: Job, at_once: int) -> Any:
    """The settings of a training by transformers' names."""
    import transformers

    settings = job.settings
    steps = -1 if settings.steps is None else settings.steps
    return transformers.TrainingArguments(
        output_dir=str(job.work),
        max_steps=steps,
        num_train_epochs=settings.epochs or 1.0,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=settings.accumulation * (settings.batch_size // at_once),
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=0 if steps == 1 else settings.warmup,  # below 1 it is a share of all steps
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bfloat16",
        optim="adamw_torch",
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        save_total_limit=2,  # the older one goes when the newer one is sealed too
        logging_steps=10,
        seed=job.seed,
        use_cpu=device() == "cpu",
        dataloader_pin_memory=device() == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to=list(job.tracking.trackers),
        run_name=job.tracking.name or None,
        use_cache=False,  # a cache would switch the masks of packed documents off
    )


def _trainer(job: Job, model: Any, at_once: int) -> Any:
    import torch
    import transformers
    from transformers.trainer_pt_utils import LengthGroupedSampler

    settings, work = job.settings, job.work
    if settings.gradient_checkpointing:
        recompute_activations(model.get_base_model())

    class Watch(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            job.progress(state.global_step, state.max_steps)
            if (
                state.global_step >= state.max_steps
            ):  # transformers goes a step further from a last checkpoint
                control.should_save = False

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                _seal(work, state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            loss = logs.get("loss")
            if loss is not None and not torch.isfinite(torch.tensor(float(loss))):
                raise _diverged(f"the loss became {loss} at step {state.global_step}")

    class ByLength(LengthGroupedSampler):  # type: ignore[misc]
        """Rows of like length together, in an order that follows from seed and epoch: a resumed epoch has it too."""

        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch
            if isinstance(job.data.rows, Noised):
                job.data.rows.set_epoch(epoch)

        def __iter__(self) -> Iterator[int]:
            self.generator = torch.Generator().manual_seed((job.seed << 20) + self.epoch)
            return iter(super().__iter__())

    class Trainer(transformers.Trainer):  # type: ignore[misc]
        operations: int | None = None  # per token; transformers counts the weights anew at every step

        def floating_point_ops(self, inputs: Any) -> int:
            tokens = int(inputs["input_ids"].numel())
            if self.operations is None:
                self.operations = int(super().floating_point_ops(inputs)) // tokens
            return self.operations * tokens

        def _get_train_sampler(self, train_dataset: Any = None) -> ByLength:
            return ByLength(settings.batch_size * settings.accumulation, lengths=job.data.lengths)

        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            if job.data.loss is None:
                return super().compute_loss(model, inputs, *rest, **more)
            count = more.get("num_items_in_batch")
            loss = job.data.loss(model, inputs, count)
            return loss if count is None else loss * self.accelerator.num_processes  # DDP divides by it

    trainer = Trainer(
        model=model,
        args=_arguments(job, at_once),
        train_dataset=job.data.rows,
        data_collator=job.data.collate,
        compute_loss_func=job.data.loss,  # by which transformers counts the labels of a step
        callbacks=[Watch()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _seal(work: Path, step: int) -> None:
    """Write down the hash of a checkpoint's files, once all of them are there."""
    write_json(work / f"seal-{step}.json", {"files": sha256_folder(work / f"checkpoint-{step}")})


def _last_checkpoint(work: Path) -> str | None:
    """The newest checkpoint that was written to its end and is as it was written; others are removed."""
    whole = []
    for folder in work.glob("checkpoint-*"):
        step = int(folder.name.rsplit("-", 1)[1])
        try:
            sealed = read_json(work / f"seal-{step}.json")["files"] == sha256_folder(folder)
        except (UserError, KeyError, TypeError):
            sealed = False
        if sealed:
            whole.append((step, folder))
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return str(max(whole)[1]) if whole else None


def _check_finite(model: Any) -> None:
    import torch

    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise _diverged(f"{name} became infinite or NaN")


def _diverged(found: str) -> UserError:
    return UserError("training", found, "finite numbers", "lower `learning_rate`, or train in float32")


def finite_log(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a Trainer logged, but for how long it took."""
    timings = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    return [{key: value for key, value in entry.items() if key not in timings} for entry in history]


def _initialisation(start: Path) -> str:
    """What an adapter's training began with: passed on by adapters that were trained further."""
    provenance = open_adapter(start).provenance or {}
    return str(provenance.get("initialisation") or sha256_file(start / WEIGHTS_FILE))


def _record(folder: Path, facts: dict[str, Any]) -> None:
    """Write provenance and model card; peft writes sets in their order, which differs between equal runs."""
    config = read_json(folder / CONFIG_FILE)
    for key in ("target_modules", "feedforward_modules", "modules_to_save"):
        if isinstance(config.get(key), list):
            config[key] = sorted(set(config[key]))  # of which peft lists some twice
    write_json(folder / CONFIG_FILE, config)
    write_text(folder / CARD_FILE, trained_card(config, facts))
    weights = {"weights_sha256": sha256_file(folder / WEIGHTS_FILE)}
    write_json(folder / PROVENANCE_FILE, {**facts, **weights, "libraries": library_versions(*LIBRARIES)})


@contextlib.contextmanager
def _reporting(tracking: Tracking, folder: Path) -> Iterator[None]:
    """Let the Trainer that is made and run in the block write below `folder`; each training is a run of its own."""
    before = os.environ.get(_LOGS_ENV)
    os.environ[_LOGS_ENV] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(_LOGS_ENV)
        if before is not None:
            os.environ[_LOGS_ENV] = before
        if "wandb" in tracking.trackers:  # it would go on with the same run in this process's next training
            importlib.import_module("wandb").finish()
