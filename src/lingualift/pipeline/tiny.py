"""Any experiment made tiny: a random small backbone of the same class and few rows prove its file end to end."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingualift.backbone.architectures import WORDS, model_class
from lingualift.backbone.loading import skeleton
from lingualift.backbone.reference import BackboneRef, find_backbone, read_config
from lingualift.config import (
    Adapter,
    Backbone,
    Data,
    Experiment,
    Languages,
    LayerSwapMethod,
    MergeMethod,
    MethodSettings,
    Point,
    Reference,
    Scoring,
    TaskData,
    Training,
    Translated,
    XMixupMethod,
)
from lingualift.data.rows import NoRows, data_file, load_rows
from lingualift.errors import UserError
from lingualift.fusion.config import find_block
from lingualift.fusion.translator import find_translator
from lingualift.languages import knowing
from lingualift.languages import language as find_language
from lingualift.pipeline.checks import (
    check_family,
    check_methods,
    check_modules,
    check_templates,
    check_translations,
)
from lingualift.pipeline.plan import check_there, rows_read
from lingualift.provenance import open_to_all, write_jsonl, writing
from lingualift.runs.claims import discard, made, place
from lingualift.tasks import TASKS, Task, TextTask, get_task, shipped_languages, shipped_rows
from lingualift.tasks.language_modelling import REFERENCE_TASKS

PREFIX = "tiny-random-"
"""What the names of tiny backbones begin with."""

_ROWS, _LAYERS, _HEADS, _WIDTH = 8, 2, 4, 64
_SIZES = dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "word_embed_proj_dim"), _WIDTH)
_SIZES |= dict.fromkeys(("intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim"), 2 * _WIDTH)
_SIZES |= dict.fromkeys(("ffn_dim", "ffn_hidden_size", "n_inner", "hidden_dim"), 2 * _WIDTH)
_SIZES |= dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 2 * _WIDTH)
_SIZES |= dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads"), _HEADS)
_SIZES |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), _HEADS)
_SIZES |= dict.fromkeys(("num_hidden_layers", "num_layers", "num_decoder_layers"), _LAYERS)
_SIZES |= dict.fromkeys(("encoder_layers", "decoder_layers", "n_layer", "n_layers"), _LAYERS)
"""Settings of a configuration, by all the names that transformers has for them, and their values here."""


@dataclass(frozen=True)
class Tiny:
    """An experiment that was made tiny, and what its run folder needs.

    Attributes:
        experiment: The changed experiment; its paths start from the run folder.
        models: Folder in the run folder -> a random model, and the tokenizer of the one that it stands for.
        files: Path in the run folder -> rows.
        notes: What was changed, a sentence each, for people.
    """

    experiment: Experiment
    models: Mapping[str, tuple[Any, Any]]
    files: Mapping[str, Sequence[Mapping[str, Any]]]
    notes: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Write backbone and rows into the run folder, in the place of those of an earlier tiny run."""
        import transformers

        transformers.utils.logging.disable_progress_bar()
        old = {name for name in made(folder) if name.startswith(("data/", PREFIX))}
        with (
            writing(folder),
            tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".partial") as scratch,
        ):
            for name, parts in self.models.items():
                for part in parts:
                    part.save_pretrained(Path(scratch) / name)
            for name, rows in self.files.items():
                write_jsonl(Path(scratch) / name, rows)
            open_to_all(Path(scratch))
            files = {
                str(path.relative_to(scratch)): path for path in Path(scratch).rglob("*") if path.is_file()
            }
            place(folder, files)
        discard(folder, old - files.keys())


def shrink(experiment: Experiment, base: Path) -> Tiny:
    """Make an experiment tiny: the same tasks, languages, methods and adapters on a random backbone and few rows.

    Of each axis of a grid two values are left, if they still differ.

    Args:
        experiment: The settings.
        base: Folder that relative paths start from.

    Raises:
        UserError: no such backbone, or one that cannot be made small; a task or method that is not there; no rows for
            a task of the user's own.
    """
    with knowing(experiment.languages.added()):
        return _shrink_grid(experiment, base) if experiment.grid else _shrink(experiment, base)


def _shrink_grid(experiment: Experiment, base: Path) -> Tiny:
    """Make an experiment with a grid tiny; raises as `shrink`."""
    first = {axis: next(iter(values)) for axis, values in experiment.grid.items()}
    start = _shrink(experiment.at(first), base)
    parts, grid, notes = [start], {}, list(start.notes)
    for axis, values in experiment.grid.items():
        small = {name: _shrink(experiment.at({**first, axis: name}), base) for name in list(values)[:2]}
        told = {name: one.experiment.model_dump(mode="json") for name, one in small.items()}
        same = [name for name in told if name != first[axis] and told[name] == told[first[axis]]]
        keys = {key: None for name in told for key in values[name]}
        grid[axis] = {
            name: {key: _value_at(told[name], key) for key in keys} for name in told if name not in same
        }
        parts += small.values()
        left = ", ".join(name for name in values if name not in grid[axis])
        notes += [f"of the grid's {axis} without {left}"] if left else []
    return Tiny(
        start.experiment.model_copy(update={"grid": grid}),
        {name: model for part in parts for name, model in part.models.items()},
        {name: rows for part in parts for name, rows in part.files.items()},
        tuple(dict.fromkeys([*notes, *(note for part in parts for note in part.notes)])),
    )


def _value_at(told: Any, key: str) -> Any:
    """What stands at a key of a file, whose parts stand between points."""
    for part in key.split("."):
        told = told[int(part)] if isinstance(told, list) else told[part]
    return told


def _shrink(experiment: Experiment, base: Path) -> Tiny:
    """Make an experiment without a grid tiny; raises as `shrink`."""
    check_translations(experiment.points(), base)
    for point in experiment.points():
        check_methods(point)
        check_templates(point.experiment)
    ref = find_backbone(experiment.backbone, base)
    for point in experiment.points():
        check_family(point, ref)
    whole, experiment = experiment, _few_languages(experiment, base)
    for method in experiment.methods:
        if isinstance(method, XMixupMethod) and method.layer is not None:
            find_block(skeleton(ref), method.layer)  # of the whole backbone; the small one has fewer
    check_modules(experiment, ref)
    own = {entry.task for entry in experiment.tasks if not shipped_languages(_resolved(entry.task, base))}
    check_there(experiment, ref, base, own)
    rows = _Rows(experiment, ref, base)
    tasks = tuple(rows.of_task(point) for point in experiment.points())
    name, models = _tiny(ref)
    models |= rows.models
    encoder = experiment.flare.source_encoder
    if encoder is not None:
        encoder, its = _tiny_translator(find_translator(encoder, base=base).ref, rows.notes)
        models |= its
    small = experiment.model_copy(
        update={
            "methods": _low(experiment.methods),
            "backbone": Backbone(name=name, chat_template=ref.chat, trust_remote_code=ref.trust_remote_code),
            "tasks": tasks,
            "reference": rows.of_reference(experiment.reference) if experiment.reference else None,
            "adapter": _few_tokens(experiment.adapter),
            "training": experiment.training.model_copy(
                update={name: _short(settings) for name, settings in experiment.training if settings}
            ),
            "flare": experiment.flare.model_copy(update={"source_encoder": encoder}),
            "weights": experiment.weights.model_copy(update={"grid": _ends(experiment.weights.grid)}),
            "seeds": experiment.seeds[:1],
            "scoring": _brief(experiment.scoring),
            "report_to": (),
            "published": (),
            "workers": 1,
        }
    )
    notes = (
        f"{name} is random and stands for {ref.name}: these scores mean nothing",
        *rows.notes,
        *_fewer(whole, experiment),
        *_changes(experiment, small),
    )
    return Tiny(small, models, rows.files, notes)


def _tiny(ref: BackboneRef) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """The name of a small model, and it with its tokenizer by that name; raises as `tiny_model`."""
    model, tokenizer = tiny_model(ref)
    name = f"{PREFIX}{type(model).__name__}-{ref.fingerprint[:8]}"
    return name, {name: (model, tokenizer)}


def _tiny_translator(ref: BackboneRef, notes: list[str]) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """As `_tiny`, of a translation model; noted."""
    name, models = _tiny(ref)
    note = f"{name} is random and stands for {ref.name}"
    notes += [] if note in notes else [note]
    return name, models


def tiny_model(ref: BackboneRef) -> tuple[Any, Any]:
    """A small model of the same class with random weights, always the same ones, and the backbone's own tokenizer.

    An encoder without a head for words stays without one.

    Raises:
        UserError: configuration or tokenizer cannot be read; no small model can be made of it.
    """
    import torch
    import transformers

    config = read_config(ref)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            ref.source, revision=ref.revision, trust_remote_code=ref.trust_remote_code
        )
        small = type(config).from_dict(_smaller(config.to_dict()))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = model_class(ref.family, WORDS).from_config(
                small, dtype=torch.float32, trust_remote_code=ref.trust_remote_code
            )
    except Exception as error:  # of a class that transformers makes of a configuration that it never saw
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"backbone {ref.name!r}",
            f"no small model can be made like it ({reason})",
            "a language model of transformers",
            "name a backbone of another class, or run without --tiny",
        ) from error
    return model.base_model if ref.lacks_words else model, tokenizer


def _smaller(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration's values, its widths, heads and layers made small; all else stays, the vocabulary too."""
    heads, layers, width = (
        next((values[name] for name, size in _SIZES.items() if size == small and values.get(name)), small)
        for small in (_HEADS, _LAYERS, _WIDTH)
    )
    changed = {name: _SIZES[name] if name in _SIZES and value else value for name, value in values.items()}
    for name in ("head_dim", "d_kv"):
        if values.get(name):  # heads that are together as wide as the model, or not, stay so
            changed[name] = _WIDTH // _HEADS if heads * values[name] == width else _WIDTH // _HEADS // 2
    groups = values.get("num_key_value_heads")
    if groups:
        changed["num_key_value_heads"] = max(n for n in (1, 2, 4) if n <= max(1, _HEADS * groups // heads))
    for name, value in values.items():
        if isinstance(value, list) and len(value) == layers > _LAYERS:  # one entry per layer
            kinds = list(dict.fromkeys(value)) if name == "layer_types" else value
            changed[name] = [*kinds, *value][:_LAYERS]
    for name in ("quantization_config", "torch_dtype", "_name_or_path", "transformers_version"):
        changed.pop(name, None)
    return {**changed, "dtype": "float32"}


def _few_languages(experiment: Experiment, base: Path) -> Experiment:
    """Of shipped tasks three targets: the one that decides, and two more, those first whose rows ship."""
    languages, weights = experiment.languages, experiment.weights
    tasks, shared = [], {*weights.curves, weights.tune_on, *languages.own}
    for point in experiment.points():
        entry, asked = point.task, point.experiment
        targets = asked.languages.targets
        known = {find_language(code).code for code in shipped_languages(_resolved(entry.task, base))}
        last = sorted(targets, key=lambda code: find_language(code).code not in known)
        kept = {*asked.weights.curves, asked.weights.tune_on, *languages.own}
        kept |= {*[code for code in last if code not in kept][: 2 if known else None]}
        few = tuple(code for code in targets if code in kept)
        shared |= set() if entry.targets else kept
        tasks.append(entry.model_copy(update={"targets": few}) if entry.targets else entry)
    if all(entry.targets for entry in tasks):
        shared |= {*languages.targets}
    targets = tuple(code for code in languages.targets if code in shared)
    groups = {name: members for name, members in languages.groups.items() if {*members} <= {*targets}}
    fewer = languages.model_copy(update={"targets": targets, "groups": groups})
    return experiment.model_copy(update={"languages": fewer, "tasks": tuple(tasks)})


def _fewer(experiment: Experiment, small: Experiment) -> Iterator[str]:
    """Which targets were left out, in words."""
    for before, after in zip(experiment.points(), small.points(), strict=True):
        asked, left = (point.experiment.languages.targets for point in (before, after))
        if len(left) < len(asked):
            yield f"{Path(before.task.task).stem}: into {', '.join(left)} alone, of {len(asked)} targets"


def _short(training: Training) -> Training:
    """Two small steps; all else as it is."""
    few = {"steps": 2, "epochs": None, "batch_size": min(4, training.batch_size)}
    return training.model_copy(update={**few, "accumulation": min(2, training.accumulation)})


def _brief(scoring: Scoring) -> Scoring:
    """Short answers: a random model does not stop by itself."""
    return scoring.model_copy(
        update={"batch_size": min(_ROWS, scoring.batch_size), "max_new_tokens": scoring.new_tokens(8)}
    )


def _low(methods: tuple[MethodSettings, ...]) -> tuple[MethodSettings, ...]:
    """Methods that name blocks which a small backbone has; what is the same then, once."""
    found: list[MethodSettings] = []
    for method in methods:
        if isinstance(method, XMixupMethod) and method.layer is not None:
            method = method.model_copy(update={"layer": min(method.layer, _LAYERS - 1)})
        if isinstance(method, MergeMethod) and method.layer_weights:
            factors = dict(zip(map(str, range(_LAYERS)), method.layer_weights.values(), strict=False))
            method = method.model_copy(update={"layer_weights": factors})
        if isinstance(method, LayerSwapMethod):
            asked = {name: getattr(method, name) for name in ("bottom", "top", "transition")}
            most = {"bottom": 1, "top": 1, "transition": 0}
            fewer = {name: min(count, most[name]) for name, count in asked.items() if count is not None}
            method = method.model_copy(update=fewer)
        found += [method] if method not in found else []
    return tuple(found)


def _few_tokens(adapter: Adapter) -> Adapter:
    """A prefix that a narrow model has room for: its matrix must be wider than it is long."""
    return adapter.model_copy(update={"tokens": min(8, adapter.tokens)})


def _ends(grid: tuple[float, ...]) -> tuple[float, ...]:
    """The smallest and the largest weight."""
    return tuple(dict.fromkeys((min(grid), max(grid))))


def _changes(experiment: Experiment, small: Experiment) -> Iterator[str]:
    """What else was changed, in words."""
    weights = " and ".join(f"{weight:g}" for weight in small.weights.grid)
    yield (
        f"trainings have 2 steps; seed {small.seeds[0]} alone; weights {weights}; generated answers have up to "
        f"{small.scoring.max_new_tokens} tokens"
    )
    dropped = {
        "backbone.quantization": experiment.backbone.quantization,
        "backbone.device_map": experiment.backbone.device_map,
        "report_to": experiment.report_to,
    }
    if any(dropped.values()):
        yield f"left out, so not proven: {', '.join(name for name, value in dropped.items() if value)}"
    if small.methods != experiment.methods:
        yield f"blocks that methods name are among the first {_LAYERS}"
    if small.adapter.tokens < experiment.adapter.tokens and experiment.adapter.type == "prefix":
        yield f"prefixes have {small.adapter.tokens} tokens"


class _Rows:
    """The rows of a tiny experiment.

    Attributes:
        files: Path in the run folder -> rows.
        notes: Which rows they are.
        models: Small translation models that translate them, as of `Tiny`.
    """

    def __init__(self, experiment: Experiment, ref: BackboneRef, base: Path) -> None:
        self.files: dict[str, list[dict[str, Any]]] = {}
        self.notes: list[str] = []
        self.models: dict[str, tuple[Any, Any]] = {}
        self._base, self._objective = base, ref.objective
        asked = [point.experiment.languages for point in experiment.points()]
        self._languages = tuple(dict.fromkeys(code for one in asked for code in (one.source, *one.targets)))
        self._read = [
            (part.dataset.data, part.language, part.split)
            for part in rows_read(experiment, ref, base)
            if not part.dataset.made
        ]

    def of_task(self, point: Point) -> TaskData:
        """The entry of a labelled task with rows of the run folder."""
        entry, languages = point.task, point.experiment.languages
        task = _resolved(entry.task, self._base)
        name = Path(task).stem
        data = self._labelled(task, name, entry.data)
        translated = self._translated(task, name, entry.translated, languages)
        return entry.model_copy(update={"task": task, "data": data, "translated": translated})

    def _translated(self, task: str, name: str, asked: Translated, languages: Languages) -> Translated:
        """Pairs of the run folder's own rows: those of one language stand for translations of those of the other."""
        source, targets = languages.source, languages.targets
        chosen: dict[str, Any] = {}
        by_hand = {"into_targets"} if asked.model and _is_span(task) else set()
        if asked.model:
            chosen |= self._translator(asked)
        if by_hand and asked.into_targets is None:
            self.notes.append(
                f"{name}: rows of the other language stand for translations of training rows, since no answer would "
                "be found again in what a random model writes"
            )
        for key, split in (("into_targets", "train"), ("into_source", "test")):
            if getattr(asked, key) is None and key not in by_hand:
                continue
            chosen[key] = Data(files=_template(f"{name}-{key}"))
            for target in targets:
                here, there = (source, target) if key == "into_targets" else (target, source)
                rows = self._shown(name, here, split)
                told = itertools.cycle(self._shown(name, there, split) or rows)
                paired = [
                    {**other, "id": row.get("id", line)}
                    for line, (row, other) in enumerate(zip(rows, told, strict=False), 1)
                ]
                if paired:
                    self._put(f"{name}-{key}", target, split, paired)
        return Translated(**chosen)

    def _translator(self, asked: Translated) -> dict[str, Any]:
        """The keys of a small model in the place of the one that translates."""
        entry = Backbone(name=str(asked.model), revision=asked.revision, dtype=asked.dtype)
        name, models = _tiny_translator(find_backbone(entry, self._base), self.notes)
        self.models |= models
        return {"model": name, "beams": 1, "max_length": 16, "batch_size": asked.batch_size}

    def _shown(self, name: str, language: str, split: str) -> list[dict[str, Any]]:
        """Rows of the run folder in a language, of the split or another one; none if it has none."""
        files = (
            self.files.get(_template(name).format(language=language, split=one))
            for one in (split, "train", "test")
        )
        return next((rows for rows in files if rows), [])

    def of_reference(self, entry: Reference) -> Reference:
        """The entry of the reference task with text, or labelled rows, of the run folder."""
        task = _resolved(entry.task or REFERENCE_TASKS[self._objective], self._base)
        found = get_task(task)
        if isinstance(found, TextTask):
            data = self._texts(found.columns[0], entry.data)
        else:
            data = self._labelled(task, f"reference-{Path(task).stem}", entry.data, apart=True)
        return entry.model_copy(
            update={"task": task, "data": data, "segment_tokens": min(32, entry.segment_tokens)}
        )

    def _labelled(self, task: str, name: str, data: Data, *, apart: bool = False) -> Data:
        if not shipped_languages(task):
            return self._own(task, name, data)
        own = _shipped(task)
        first = next(iter(own))
        missing = []
        for language, split in self._splits(data):
            rows = own.get(find_language(language).code)
            if rows is None:
                missing.append(language)
            self._put(
                name, language, split, rows or (self._apart(own[first], language) if apart else own[first])
            )
        self.notes.append(
            f"{name}: the {_ROWS} rows that ship serve as every split" + _stand_in(first, missing)
        )
        return Data(files=_template(name))

    def _own(self, task: str, name: str, data: Data) -> Data:
        """The first rows of the user's own files, their columns under the names that the task has for them."""
        asked = get_task(task)
        columns = asked.columns if isinstance(asked, TextTask) else (*asked.columns, asked.gold_column)
        for language, split in self._splits(data):
            renamed = {**{column: column for column in columns}, **data.of_split(split).columns}
            try:
                found = load_rows(data, language, split, self._base, columns)
            except NoRows:
                continue  # planned as those of the real run: an empty cell, or refused
            rows = [found.row(index) for index in list(found.chosen)[:_ROWS]]
            self._put(
                name,
                language,
                split,
                [{**row, **{column: row.get(their) for column, their in renamed.items()}} for row in rows],
            )
        self.notes.append(f"{name}: the first {_ROWS} rows of each of your splits")
        return Data(files=_template(name), aligned_on=data.aligned_on)

    def _texts(self, column: str, data: Data) -> Data:
        """Texts of shipped rows, else the first of the user's own, else those of another language."""
        shipped = _shipped_texts()
        first = find_language(self._languages[0]).code
        first = first if first in shipped else next(iter(shipped))
        own, missing = [], []
        for language, split in self._splits(data):
            texts = shipped.get(find_language(language).code)
            if texts is None and self._is_here(data, language, split):
                found = load_rows(data, language, split, self._base, (column,))
                their = data.of_split(split).columns.get(column, column)
                texts = [found.row(index)[their] for index in list(found.chosen)[: 4 * _ROWS]]
                own.append(language)
            elif texts is None:
                texts = self._apart(shipped[first], language)
                missing.append(language)
            self._put("text", language, split, [{column: text} for text in texts])
        yours = f"; the first {4 * _ROWS} texts of yours in {_listed(own)}" if own else ""
        self.notes.append(f"text: that of the rows that ship{yours}" + _stand_in(first, missing))
        return Data(files=_template("text"))

    def _is_here(self, data: Data, language: str, split: str) -> bool:
        """Whether the user's own text is a file of this machine."""
        if data.of_split(split).files is None:
            return False
        try:
            return data_file(data, language, split, self._base).is_file()
        except UserError:
            return False

    def _splits(self, data: Data) -> Iterator[tuple[str, str]]:
        """Language and split of the rows that the experiment reads of some data."""
        yield from dict.fromkeys((language, split) for other, language, split in self._read if other is data)

    def _apart(self, rows: list[Any], language: str) -> list[Any]:
        """The rows but for two, other ones for each language: references that learn the same would cancel out."""
        place = self._languages.index(language)
        pairs = list(itertools.combinations(range(len(rows)), 2))
        left_out = pairs[place % len(pairs)]
        return [row for index, row in enumerate(rows) if index not in left_out]

    def _put(self, name: str, language: str, split: str, rows: list[dict[str, Any]]) -> None:
        self.files[_template(name).format(language=language, split=split)] = rows


def _template(name: str) -> str:
    return f"data/{name}/{{language}}/{{split}}.jsonl"


def _is_span(task: str) -> bool:
    """Whether the answers of a task are parts of a passage."""
    found = get_task(task)
    return isinstance(found, Task) and found.encoder_head == "span"


def _resolved(task: str, base: Path) -> str:
    """A task's name; the whole path of one that is a file."""
    return str((base / task).resolve()) if task.endswith(".py") else task


def _shipped(task: str) -> dict[str, list[dict[str, Any]]]:
    """BCP-47 code -> the rows of a task that ship."""
    return {find_language(code).code: shipped_rows(task, code) for code in shipped_languages(task)}


def _shipped_texts() -> dict[str, list[str]]:
    """BCP-47 code -> the texts of all rows that ship."""
    texts: dict[str, list[str]] = {}
    for name, task in TASKS.items():
        for code, rows in _shipped(name).items():
            assert isinstance(task, Task)
            found = (row[column] for row in rows for column in task.columns if column != "id")
            texts.setdefault(code, []).extend(text for text in found if isinstance(text, str) and " " in text)
    return texts


def _stand_in(first: str, languages: Sequence[str]) -> str:
    return f"; {first} stands in for {_listed(languages)}" if languages else ""


def _listed(languages: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(languages))
