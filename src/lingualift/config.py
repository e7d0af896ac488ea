"""The experiment file: YAML in, frozen typed records out. Every key is known, every number has its unit below it."""

from __future__ import annotations

import copy
import itertools
import math
import re
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from typing_extensions import override

from lingualift.errors import UserError, did_you_mean, setting
from lingualift.languages import Language, knowing, language, own_languages, read_languages
from lingualift.parsing import LONGEST, parse_yaml, to_yaml
from lingualift.provenance import reading


def _no_truth(value: Any) -> Any:
    """Pydantic takes `true` for 1, which YAML's `yes` and `on` are too."""
    if isinstance(value, bool):
        raise ValueError("is a truth value, not a number")
    return value


def _at_most(most: float, why: str) -> AfterValidator:
    """A bound whose reason the message says: a number beyond it is refused before anything is built by it."""

    def check(value: float) -> float:
        if value > most:
            raise ValueError(f"is more than {most:,}: {why}")
        return value

    return AfterValidator(check)


# Numbers, wherever they are set: in the experiment file, on the command line or in Python.
_Whole: TypeAlias = Annotated[int, BeforeValidator(_no_truth)]
_Real: TypeAlias = Annotated[float, BeforeValidator(_no_truth), Field(allow_inf_nan=False)]
_Positive: TypeAlias = Annotated[_Whole, Field(gt=0)]
_PositiveReal: TypeAlias = Annotated[_Real, Field(gt=0)]
Count: TypeAlias = Annotated[_Positive, _at_most(2**31 - 1, "steps and rows are counted in 32 bits")]
Batch: TypeAlias = Annotated[_Positive, _at_most(2**20, "no device holds so many at once")]
Tokens: TypeAlias = Annotated[_Positive, _at_most(2**24, "no model reads so many")]
Rank: TypeAlias = Annotated[
    _Positive, _at_most(2**14, "no layer is so wide, and no update has a rank beyond")
]
Alpha: TypeAlias = Annotated[_Positive, _at_most(2**16, "half precision overflows by a factor beyond")]
VirtualTokens: TypeAlias = Annotated[_Positive, _at_most(2**14, "they leave no room for a text")]
Beams: TypeAlias = Annotated[_Positive, _at_most(2**10, "each takes the memory of a sentence")]
Processes: TypeAlias = Annotated[_Positive, _at_most(2**10, "each is a process of this machine")]
Layer: TypeAlias = Annotated[_Whole, Field(ge=0), _at_most(2**14, "no model has so many blocks")]


def layers_in(text: str) -> range:
    """The blocks of a range such as `6-11`, or of a single one."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _known_range(value: Any) -> str:
    text = str(value)
    if not re.fullmatch(r"\d{1,5}(-\d{1,5})?", text) or not layers_in(text):
        raise ValueError(f"{text!r} is no block and no range of blocks such as 6-11")
    return text


LayerRange: TypeAlias = Annotated[str, BeforeValidator(_known_range)]
Blocks: TypeAlias = Annotated[_Whole, Field(ge=0, lt=2**16)]
Seed: TypeAlias = Annotated[_Whole, Field(ge=0, lt=2**32)]
LongSeed: TypeAlias = Annotated[_Whole, Field(ge=0, lt=2**62)]
Factor: TypeAlias = Annotated[_Real, Field(ge=-(10**6)), _at_most(10**6, "half precision overflows beyond")]
Weight: TypeAlias = Annotated[Factor, Field(ge=0)]
Epochs: TypeAlias = Annotated[_PositiveReal, _at_most(10**6, "no training ends that reads its rows so often")]
Rate: TypeAlias = Annotated[_PositiveReal, _at_most(1e36, "float32 overflows beyond")]
Norm: TypeAlias = Annotated[_Real, Field(ge=0), _at_most(1e36, "float32 overflows beyond")]
Share: TypeAlias = Annotated[_Real, Field(ge=0, lt=1)]
Split: TypeAlias = Literal["train", "validation", "test"]
Tracker: TypeAlias = Literal["tensorboard", "trackio", "wandb"]
Reading: TypeAlias = Literal["strict", "lenient"]


def _known_language(code: str) -> str:
    try:
        language(code)
    except UserError as error:
        raise ValueError(f"is no known language; {error.mend}") from None
    return code


LanguageCode: TypeAlias = Annotated[
    str, BeforeValidator(lambda code: "no" if code is False else code), AfterValidator(_known_language)
]


PromptLanguage: TypeAlias = Annotated[
    str, AfterValidator(lambda code: code if code == "target" else _known_language(code))
]


class _Record(BaseModel):
    """Every key has a docstring below it, which is what `lingualift init` writes beside the key."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=False, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def given(self) -> set[str]:
        """Names of the keys that say something else than their defaults; a written default counts as left out."""
        fields = type(self).model_fields
        return {name for name in self.model_fields_set if getattr(self, name) != fields[name].get_default()}


class Backbone(_Record):
    """The frozen model that adapters are trained on."""

    name: str = Field(min_length=1)
    "A hub id, a folder, or `miniworld` for the one that ships with lingualift."
    revision: str | None = None
    "Commit, tag or branch on the hub; a commit makes the run repeatable."
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    "Number format of the backbone's weights; adapters are trained in float32."
    quantization: Literal["nf4"] | None = None
    "Round the weights to 4-bit NF4 when they are loaded (needs bitsandbytes); `dtype` is then that of the arithmetic."
    device_map: Literal["auto"] | None = None
    "`auto` spreads the weights over all GPUs; a backbone that does not fit into them is refused."
    chat_template: bool = False
    "Ask by the tokenizer's chat template: the prompt is the user's turn, the answer the assistant's."
    trust_remote_code: bool = False
    "Run Python code that comes with the model: only for authors you trust."


class OwnLanguage(_Record):
    """A language that lingualift does not know, or, of one that it knows and NLLB lacks, a tag alone."""

    name: str | None = None
    "English name; prompts may hold it."
    script: str | None = None
    "ISO 15924 code, such as Latn; it tells where words end when answers are compared."
    nllb: str | None = None
    "NLLB's tag of a near language, for models that have no tag of this one: `ind_Latn` for Madurese."


class Languages(_Record):
    """Where labels are, and where they are wanted."""

    source: LanguageCode
    "The language that has labels."
    targets: tuple[LanguageCode, ...] = Field(min_length=1)
    "The languages to lift the task into."
    groups: dict[str, tuple[LanguageCode, ...]] = {}
    "Named sets of targets that get an average of their own in the table, e.g. `weak: [sw, ht]`."
    own: dict[str, OwnLanguage] = {}
    "Languages to add, or a TSV of them: `xyz: {name: Xyzish, script: Latn, nllb: ind_Latn}`."

    def added(self) -> tuple[Language, ...]:
        """The languages that are added, for `lingualift.languages.knowing`; raises as `own_languages`."""
        return _languages_of(self.own)

    @model_validator(mode="after")
    def _check(self) -> Languages:
        repeated = sorted({code for code in self.targets if self.targets.count(code) > 1})
        if repeated:
            raise ValueError(f"targets: {', '.join(repeated)} named twice")
        first = {language(self.source).code: self.source}
        for code in self.targets:
            same = first.setdefault(language(code).code, code)
            if same == self.source:
                raise ValueError(f"targets: {code} is the source language")
            if same != code:
                raise ValueError(f"targets: {same} and {code} are one language")
        for name, members in self.groups.items():
            if name in ("average", self.source, *self.targets):
                raise ValueError(f"groups.{name}: the table has a column of that name already")
            strangers = [code for code in members if code not in self.targets]
            if strangers or not members:
                raise ValueError(
                    f"groups.{name}: {', '.join(strangers) or 'nothing'} is not among the targets"
                )
        return self


_PLACEHOLDERS = {"language", "iso639_3", "bcp47", "nllb", "split"}


def _known_placeholders(template: str) -> str:
    try:
        places = [
            (name, form, to) for _, name, form, to in string.Formatter().parse(template) if name is not None
        ]
    except ValueError as error:
        raise ValueError(f"{template!r} is no template: {error}") from None
    for name, form, conversion in places:
        if form or conversion:
            raise ValueError(f"{template!r} is no template: `:` and `!` have no meaning in a placeholder")
        if name not in _PLACEHOLDERS:
            raise ValueError(f"{{{name}}} is not known; {did_you_mean(name, _PLACEHOLDERS)}")
    return template


Template: TypeAlias = Annotated[str, Field(min_length=1), AfterValidator(_known_placeholders)]


class _Place(_Record):
    files: Template | None = None
    "Path template of .jsonl[.gz], .csv, .parquet or .txt[.gz] (one text a line) files; from the experiment file on."
    hub: str | None = None
    "Data set id on the hub; only data sets in parquet load, scripts do not."
    revision: str | None = None
    "Full commit (40 hexadecimal digits) of the hub data set."
    config: Template | None = None
    "Configuration name of the hub data set."

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        if (self.files is None) == (self.hub is None):
            raise ValueError("name either `files` or `hub`")
        if self.hub and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError("hub: needs `revision`, the full commit of the data set (40 hexadecimal digits)")
        if self.files and (self.revision or self.config):
            raise ValueError("`revision` and `config` belong to `hub`, not to `files`")
        return self


class SplitData(_Place):
    """Where the rows of one split come from, if not from where those of the others do."""

    columns: dict[str, str] | None = None
    "What these rows call a column; as of the whole when left out."
    where: dict[str, Template] | None = None
    "Which of the rows that lie there are read; as of the whole when left out."


class Aside(_Record):
    """Rows of another split that are put aside, the same places in every language; that split is read without them."""

    of: Literal["train", "test"]
    "The split that they are taken from."
    rows: Count
    "How many; which ones follows from `sample_seed`."
    group_by: Annotated[str, Field(min_length=1)] | None = None
    "Column whose values keep rows together: `context`, where several questions stand on one text. At least `rows`."


class Data(_Place):
    """Where rows come from: files of your own, or a data set on the hub at a pinned commit.

    `{language}` (as written in the experiment), `{iso639_3}`, `{bcp47}`, `{nllb}` and `{split}` are filled in.
    """

    splits: dict[Split, str] = {}
    "What the data calls a split, where it differs: `validation: valid`."
    columns: dict[str, str] = {}
    "What the data calls a column, where it differs: `text: sentence`."
    where: dict[str, Template] = {}
    "Column of the data -> what rows have there that are read, `*` for any text: `id: '{language}-*'`."
    aligned_on: str | None = None
    "Column whose values must be equal row by row in all languages (parallel data)."
    max_rows: dict[Split, Count] = {}
    "Rows: sample so many of a split, the same ones in every language."
    sample_seed: Annotated[_Whole, Field(ge=-(2**63), lt=2**63)] = 0
    "Seed of that sample, and of rows that are put aside."
    names: dict[LanguageCode, Annotated[str, Field(min_length=1)]] = {}
    "What the data calls a language, where `{language}` is to be that: `en: english`."
    train: SplitData | None = None
    "The training rows, where they lie elsewhere."
    validation: SplitData | Aside | None = None
    "The validation rows, where they lie elsewhere; `{of: train, rows: 500}` puts rows of another split aside."
    test: SplitData | None = None
    "The test rows, where they lie elsewhere."

    @property
    def aside(self) -> Aside | None:
        """The rows that are put aside for validation."""
        return self.validation if isinstance(self.validation, Aside) else None

    def of_split(self, split: str) -> Data:
        """Where the rows of a split lie, as if all lay there; those that are put aside lie in their split."""
        own = getattr(self, self.aside.of if self.aside and split == "validation" else split)
        if own is None:
            return self
        place = {name: getattr(own, name) for name in _Place.model_fields}
        named = {name: getattr(own, name) for name in ("columns", "where") if getattr(own, name) is not None}
        return self.model_copy(update={**place, **named})


class Translation(_Record):
    """How a translation model writes."""

    beams: Beams = 4
    "Beams of the search; 1 is greedy."
    max_length: Annotated[Tokens, Field(ge=16)] = 256
    "Tokens of a sentence, at most; a longer one is cut at white space. Its translation may take twice as many."
    batch_size: Batch = 16
    "Sentences per batch."


class _Translator(_Record):
    model: Annotated[str, Field(min_length=1)] | None = None
    "The translation model (NLLB, M2M100, mBART) of what is not named below, and of answers; a hub id or a folder."
    revision: str | None = None
    "Its commit, tag or branch on the hub."
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    "Number format of its weights."


class Translated(Translation, _Translator):  # whose keys stand in this order: model, how it writes, data
    """The rows of a task in the other language: translated by a model, or data of yours that pairs by `id`."""

    into_targets: Data | None = None
    "The source language's training rows, translated into `{language}`, labels kept: what stage 2 trains on."
    into_source: Data | None = None
    "The test rows of `{language}`, translated into the source language; no label of theirs is read."

    @model_validator(mode="after")
    def _check(self) -> Translated:
        idle = self.given() - {"model", "into_targets", "into_source"}
        if idle and self.model is None:
            raise ValueError(f"{min(idle)}: is set, and no `model` translates")
        return self

    @property
    def settings(self) -> Translation:
        """How the model writes."""
        return Translation(**{name: getattr(self, name) for name in Translation.model_fields})


class TaskData(_Record):
    """A task and its labelled rows."""

    task: str
    "A registered task (`lingualift tasks`) or the path of a Python file that registers one."
    prompt: str | None = None
    "A prompt of the task (docs/tasks.md); its first one when left out."
    prompt_language: PromptLanguage | None = None
    "Code of the prompt's language, or `target`: that of the rows; English when left out."
    answers: Literal["ranked", "generated"] = "ranked"
    "How classes are asked for: by the likelihood of their words, or generated, as in the papers."
    data: Data
    translated: Translated = Translated()
    "The same rows in the other language, for methods that read translations."
    source: LanguageCode | None = None
    "The language that has labels of this task; `languages.source` when left out."
    targets: Annotated[tuple[LanguageCode, ...], Field(min_length=1)] | None = None
    "The languages to lift this task into; `languages.targets` when left out."
    tune_on: LanguageCode | None = None
    "The target language whose validation split decides for this task; `weights.tune_on` when left out."


class Reference(_Record):
    """The reference task: what the language adapters learn from unlabelled text."""

    task: str | None = None
    "A registered task; causal-lm, masked-lm, span-corruption or prefix-lm, as the backbone needs, when left out."
    data: Data
    segment_tokens: Tokens = 512
    "Tokens per packed segment of text (the paper's is 512)."


class Adapter(_Record):
    """What is trained, the same for every adapter of the experiment."""

    type: Literal["lora", "ia3", "prefix", "bottleneck"] = "lora"
    "Kind of adapter; `prefix` for encoders and encoder-decoders."
    rank: Rank = 8
    "Rank r of LoRA's factors."
    alpha: Alpha = 16
    "LoRA's update is scaled by alpha / rank."
    dropout: Share = 0.0
    "Probability that an input of LoRA is dropped in training."
    modules: tuple[str, ...] | None = None
    "Linear layers that get the adapter; when left out all of them (LoRA), or keys, values and feed-forward (IA3)."
    tokens: VirtualTokens = 20
    "Virtual tokens of a prefix."
    placement: Literal["pfeiffer", "houlsby", "parallel"] = "pfeiffer"
    "Where a bottleneck stands: after the feed-forward part, after that and attention, or beside the former."
    reduction: Annotated[_PositiveReal, Field(ge=1)] = 16
    "The backbone's width divided by the bottleneck's."
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    "The function in a bottleneck."
    leave_out: tuple[Blocks, ...] = ()
    "Blocks that get no bottleneck, from 0; those of a decoder after those of the encoder."
    init_seed: LongSeed = 112
    "Seed of the one initialisation that all adapters of a run share; the run's seed is added to it."


class GivenAdapter(_Record):
    """The configuration of an adapter that somebody has trained already, for others that are to be like it."""

    type: Literal["lora", "ia3"]
    settings: dict[str, Any]
    "Arguments of peft's configuration class; `base_model_name_or_path` and `revision` as the adapter has them."
    init_seed: LongSeed = 112
    "Seed of the one initialisation; the run's seed is added to it."


class Training(_Record):
    """One training run."""

    steps: Count | None = None
    "Optimiser steps; give either steps or epochs."
    epochs: Epochs | None = None
    "Passes over the data."
    batch_size: Batch = 16
    "Rows per optimiser step and device."
    accumulation: Batch = 1
    "Batches whose gradients are added up before a step."
    learning_rate: Rate = 2e-4
    "Peak learning rate of AdamW."
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    "How the learning rate goes on after the warm-up."
    warmup: Share = 0.05
    "Share of the steps over which the learning rate rises."
    weight_decay: Weight = 0.0
    "AdamW's weight decay."
    max_grad_norm: Norm = 1.0
    "Gradients are clipped to this norm; 0 leaves them as they are."
    max_length: Tokens = 512
    "Tokens of prompt and answer; longer prompts lose their beginning, and the log says how many."
    precision: Literal["float32", "bfloat16"] = "float32"
    "Number format of the arithmetic; bfloat16 runs under autocast."
    gradient_checkpointing: bool = False
    "Trade time for memory: recompute activations in the backward pass."
    checkpoint_steps: Count = 200
    "Steps between the checkpoints that a killed run resumes from."

    @model_validator(mode="after")
    def _check(self) -> Training:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either `steps` or `epochs`")
        return self

    def optimiser_steps(self, rows: int) -> int:
        """How many optimiser steps it takes on so many rows or segments."""
        if self.steps is not None:
            return self.steps
        return math.ceil((self.epochs or 1) * math.ceil(rows / (self.batch_size * self.accumulation)))


class TrainingRoles(_Record):
    """Settings per role; target-language fine-tuning uses those of the task."""

    task: Training
    reference: Training | None = None
    "For the reference task; needed by methods that read unlabelled text."
    translated: Training | None = None
    "For stage 2, which learns from translated rows (flare, translate-train, …); those of `task` when left out."

    @property
    def second(self) -> Training:
        """The settings of stage 2."""
        return self.translated or self.task


_NOTHING = object()


class MethodSettings(_Record):
    """A row of the table. A bare name in the file means the method with its defaults."""

    method: str
    "A method of `lingualift methods`."

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_method(cls, value: Any, handler: ModelWrapValidatorHandler[MethodSettings]) -> MethodSettings:
        """Read an entry by the record of its method, wherever any method may stand."""
        entry = {"method": value} if isinstance(value, str) else value
        if not isinstance(entry, Mapping):
            return handler(entry)
        name = entry.get("method")
        record = METHOD_SETTINGS.get(name) if isinstance(name, str) else None
        if record and cls is MethodSettings:
            return record.model_validate(entry)
        return handler(_own_keys(cls, entry))

    def variant(self, kind: str) -> str:
        """What tells apart two rows of the method, where the adapter is of a kind; empty where nothing does."""
        return ""


def _own_keys(record: type[MethodSettings], entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry without keys of other methods that say what they say when left out, as run folders have them."""
    own, others = record.model_fields, method_defaults()
    if "mean" in own and entry.get("combine") in ("sum", "mean"):  # as older files say it
        entry = {**entry, "combine": "sum", "mean": entry["combine"] == "mean"}
    kept = {key: value for key, value in entry.items() if key in own or value != others.get(key, _NOTHING)}
    for key in kept.keys() - own if "method" in entry else ():
        raise ValidationError.from_exception_data("method", [_no_key(record, entry, key)])
    return kept


def _no_key(record: type[MethodSettings], entry: Mapping[str, Any], key: str) -> InitErrorDetails:
    """What pydantic is told of a key that the method has not."""
    name = str(entry["method"])
    found = f"{name} does not use it" if key in method_defaults() else "is not a known key"
    mend = did_you_mean(str(key), record.model_fields)
    if name not in METHOD_SETTINGS and key in method_defaults():
        mend = f"of methods that have keys, {did_you_mean(name, METHOD_SETTINGS)}"
    problem = PydanticCustomError("no_key", "{found}; {mend}", {"found": found, "mend": mend})
    return {"type": problem, "loc": (str(key),), "input": entry[key]}


class XltMethod(MethodSettings):
    """Settings of `xlt`."""

    ask: Literal["vanilla", "source-ft"] = "vanilla"
    "Who is asked: the plain backbone, or the task adapter of the source language."

    @override
    def variant(self, kind: str) -> str:
        return self.ask


class MergeMethod(MethodSettings):
    """Settings that every merge has: keys in the experiment file, options of `lingualift merge`."""

    space: Literal["factors", "delta", "core"] = "factors"
    "Where LoRA is merged: the factors A and B as the authors do, the product (exact), or that in shared bases."
    rule: Literal["auto", "additive", "multiplicative", "unanchored"] = "auto"
    "How the references' difference is applied: the kind of adapter's own way, or another by name."
    modules: str | None = None
    "Regular expression of the modules to merge; the others keep the task adapter."
    module_weights: dict[str, Factor] = {}
    "Factors on the weight by regular expression of modules; the first that matches counts."
    layer_weights: dict[LayerRange, Factor] = {}
    "Factors on the weight by blocks, from 0: `{0-5: 0, 6-11: 0.5}`."
    rank: Rank | None = None
    "Rank that a merge of products is truncated to; their ranks add up when left out."
    weight: Weight | None = None
    "Fixed merge weight; tuned over `weights.grid` when left out."
    thirds: bool = False
    "Tune a weight for each third of the blocks, one after another, each on a third of the rows."

    @model_validator(mode="after")
    def _check_layers(self) -> MergeMethod:
        fixed = [name for name in ("weight", "layer_weights") if name in self.given()]
        if self.thirds and fixed:
            raise ValueError(f"thirds: tunes what `{fixed[0]}` fixes; leave one of them out")
        numbers = [number for text in self.layer_weights for number in layers_in(text)]
        repeated = [number for number in numbers if numbers.count(number) > 1]
        if repeated:
            raise ValueError(f"layer_weights: block {repeated[0]} is named twice")
        return self

    @override
    def variant(self, kind: str) -> str:
        further = self.given() - {"method", "space", "modules", "weight", "mean", "thirds"}
        parts: list[str] = [self.space] if kind == "lora" else []
        parts += self._combination()
        parts += [f"modules={self.modules}"] if self.modules else []
        parts += [
            f"{name}={_brief(getattr(self, name))}" for name in type(self).model_fields if name in further
        ]
        parts += ["thirds"] if self.thirds else []
        parts += [f"weight={self.weight:g}"] if self.weight is not None else []
        return "-".join(parts)

    def _combination(self) -> list[str]:
        return []


def _brief(value: Any) -> str:
    """A setting as names of rows show it."""
    return (
        ",".join(f"{key}:{number:g}" for key, number in value.items())
        if isinstance(value, dict)
        else f"{value}"
    )


class AdamergexMethod(MergeMethod):
    """Settings of `adamergex`."""

    cutoff: Annotated[_Real, Field(gt=0, lt=1)] | None = None
    "Virtual tokens: relative cut-off of the pseudo-inverse."


class SumMethod(MergeMethod):
    """Settings of merges that take adapters with weights."""

    mean: bool = False
    "Divide the weights by their sum: with two adapters, by 1 + weight."

    @override
    def _combination(self) -> list[str]:
        return ["mean"] if self.mean else []


class ArithmeticMethod(SumMethod):
    """Settings of `arithmetic`."""

    @override
    def _combination(self) -> list[str]:
        return ["mean" if self.mean else "sum"]


class TiesMethod(SumMethod):
    """Settings of `ties`."""

    density: Annotated[_Real, Field(gt=0, le=1)] = 0.5
    "Fraction of elements that stay."


class DareMethod(TiesMethod):
    """Settings of `dare`."""

    seed: LongSeed = 0
    "Seed of the draw of the elements that stay."


class LayerSwapMethod(MergeMethod):
    """Settings of `layer-swap`: how many blocks are whose."""

    bottom: Blocks | None = None
    "First blocks, which are the target reference's; 5 of 32 when left out, at least one."
    top: Blocks | None = None
    "Last blocks, which are too; 2 of 32 when left out."
    transition: Blocks | None = None
    "Blocks between these and the task's, which are averaged, on each side; 1 of 32 when left out."


class AnyMergeMethod(AdamergexMethod, DareMethod, LayerSwapMethod):
    """Settings of a merge method that is not of ours."""


class FlareMtMethod(MethodSettings):
    """Settings of `flare-mt`."""

    fusion: str = "add_relu"
    "How the bottleneck states of source and target meet (docs/fusing.md)."
    padding: Literal["left", "right"] = "left"
    "The side on which texts of unequal length are filled up before they meet."
    answer_source: Literal["last", "none", "generate"] = "last"
    "What the answer meets on decoders; `generate` is the source side's own answer (`flare`)."

    @override
    def variant(self, kind: str) -> str:
        return "-".join([self.fusion, *_further(self, "fusion")])


class FlareMethod(FlareMtMethod):
    """Settings of `flare`."""

    source_state: Literal["block-input", "block-output", "projection-input"] = "block-input"
    "Where the source's states are taken."


class XMixupMethod(MethodSettings):
    """Settings of `x-mixup`."""

    layer: Layer | None = None
    "The block behind which source and target are mixed, from 0; the middle one when left out."
    ratio: Annotated[_PositiveReal, Field(le=1)] = 0.5
    "How much of the mixed states is the target's own; 1 mixes nothing in."

    @override
    def variant(self, kind: str) -> str:
        return "-".join(_further(self))


def _further(settings: MethodSettings, *but: str) -> list[str]:
    """The settings that are not at their defaults, by name."""
    return [f"{name}={getattr(settings, name)}" for name in sorted(settings.given() - {"method", *but})]


METHOD_SETTINGS: dict[str, type[MethodSettings]] = {
    "xlt": XltMethod,
    "adamergex": AdamergexMethod,
    "arithmetic": ArithmeticMethod,
    "ties": TiesMethod,
    "dare": DareMethod,
    "layer-swap": LayerSwapMethod,
    "flare": FlareMethod,
    "flare-mt": FlareMtMethod,
    "x-mixup": XMixupMethod,
}
"""Method -> the record of its settings, of those that have any."""


def merge_settings(method: str, **given: Any) -> MergeMethod:
    """The settings of a merge by a method of `lingualift.merging`; one that is not of ours may have any of them.

    Raises:
        UserError: a value that a setting cannot have, or a setting that the method does not use.
    """
    record = METHOD_SETTINGS.get(method, AnyMergeMethod)
    assert issubclass(record, MergeMethod)
    try:
        return record.model_validate({"method": method, **given})
    except ValidationError as error:
        problem: dict[str, Any] = dict(error.errors(include_url=False)[0])
        name, *parts = map(str, problem["loc"])
        found = ": ".join([*parts[:1], _told(problem)])
        words = re.findall(r"'([^']+)'", problem.get("ctx", {}).get("expected", ""))
        mend = did_you_mean(str(problem["input"]), words) if words else "correct the value"
        raise UserError(setting(name), found, mend=mend) from None


def method_defaults() -> dict[str, Any]:
    """What every setting of any method is when it is left out."""
    return {
        name: field.get_default()
        for record in METHOD_SETTINGS.values()
        for name, field in record.model_fields.items()
        if name != "method"
    } | {"combine": "sum"}


class Flare(_Record):
    """What `flare` and `flare-mt` have in common; rank, alpha, dropout and layers of their LoRA are the adapter's."""

    fusion_modules: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    "Linear layers that fuse; queries and values when left out."
    source_encoder: str | None = None
    "`flare-mt`: the translation model (NLLB, M2M100) whose encoder reads the target text; a hub id or a folder."
    cache_sources: bool = False
    "`flare`: read each source of the training rows once and keep its states on disk, in bfloat16; faster, but large."


class Weights(_Record):
    """How the merge weight is chosen: on validation splits, never on a test split."""

    grid: tuple[Weight, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    "Merge weights to try; ties go to the one closest to 1."
    tune_on: LanguageCode | None = None
    "The target language whose validation split decides; it is left out of every average."
    by: Literal["score", "entropy"] = "score"
    "What decides: the score in `tune_on`, or, without labels, the least entropy of answers in each target itself."
    curves: tuple[LanguageCode, ...] = ()
    "Further targets whose validation split is scored at every weight, for the report alone: they decide nothing."

    @model_validator(mode="after")
    def _check(self) -> Weights:
        if not self.grid or len(set(self.grid)) != len(self.grid):
            raise ValueError("grid: needs at least one weight, and each once")
        if self.by == "entropy" and self.tune_on:
            raise ValueError("tune_on: entropy chooses in each target itself; leave it out")
        return self


class Scoring(_Record):
    """How answers are read off the model."""

    length_normalization: Literal["none", "tokens", "characters"] = "none"
    "Ranked answers: compare summed log-probabilities, or those per token or per character."
    batch_size: Batch = 64
    "Sequences per forward pass, at most."
    max_length: Tokens = 512
    "Tokens of prompt and answer; longer prompts lose their beginning, and the result says how many."
    max_new_tokens: Tokens | None = None
    "Tokens of a generated answer, at most; as many as its task says when left out, never more."
    unicode_normalization: Literal["none", "NFC"] = "none"
    "Compare written answers with the gold as they are, as the official scorers do, or both in Unicode's NFC."
    reading: Reading = "strict"
    "Written answers: by their format alone, or `lenient`ly, as models write them (docs/tasks.md); both are counted."
    source_language: bool = True
    "Score in the source language too, by the methods for which that means something."

    def new_tokens(self, of_task: int) -> int:
        """Longest generated answer, in tokens, of a task whose own bound is `of_task`."""
        return min(of_task, self.max_new_tokens or of_task)


_Percent: TypeAlias = Annotated[_Real, Field(ge=0, le=100)]
_Column: TypeAlias = Annotated[str, BeforeValidator(lambda code: "no" if code is False else code)]


class Published(_Record):
    """Numbers that stand in a paper; the report shows them beside those of the run, which they do not change."""

    paper: str = Field(min_length=1)
    "Where they stand: the address of the paper."
    table: Annotated[
        str, Field(min_length=1), BeforeValidator(lambda v: str(v) if type(v) in (int, float) else v)
    ]
    "Which of its tables."
    scores: Annotated[dict[str, dict[str, dict[_Column, _Percent]]], Field(min_length=1)]
    "Task -> method (`adamergex delta` where it has several rows) -> language, group or `average` -> percent."
    grid: dict[str, str] = {}
    "Where on the grid of this file they belong: axis -> name of its value; every axis."
    averaged: Annotated[tuple[LanguageCode, ...], Field(min_length=1)] | None = None
    "The languages in the paper's `average`; all targets of the task, the tuning language too, when left out."
    metric: str | None = None
    "By which metric; the task's first one when left out."
    rows: Count | None = None
    "Test rows per language in the paper."
    setup: dict[str, Any] = {}
    "Keys of this file, as `--set` has them -> their value in the paper; the report shows those that differ here."
    note: str = ""
    "What else differs, in words."


_GridName: TypeAlias = Annotated[str, Field(pattern=r"^[\w.+-]{1,40}$")]
Axis: TypeAlias = Annotated[dict[_GridName, dict[str, Any]], Field(min_length=1)]
"""Name of a value -> the keys that it sets, each as `--set` has it, and to what."""
_MOST_POINTS = 4096
_NO_POINT = {"grid", "workers", "report_to", "published"}
"""Keys that are the same at every point of a grid."""


@dataclass(frozen=True)
class Point:
    """One task of an experiment, at one point of its grid.

    Attributes:
        grid: Axis -> name of its value; empty without a grid.
        index: Number of the task among the experiment's.
        experiment: What is asked there: that task alone, in its own languages; no grid.
    """

    grid: Mapping[str, str]
    index: int
    experiment: Experiment

    @property
    def task(self) -> TaskData:
        """The task."""
        return self.experiment.tasks[0]


def grid_name(grid: Mapping[str, str]) -> str:
    """What people see of a point of a grid."""
    return ", ".join(f"{axis}={name}" for axis, name in grid.items())


class Experiment(_Record):
    """The whole experiment."""

    backbone: Backbone
    languages: Languages
    tasks: tuple[TaskData, ...] = Field(min_length=1)
    reference: Reference | None = None
    adapter: Adapter = Adapter()
    training: TrainingRoles
    methods: tuple[SerializeAsAny[MethodSettings], ...]
    weights: Weights = Weights()
    flare: Flare = Flare()
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    "One run of everything per seed; it decides the initialisation and the order of the data."
    scoring: Scoring = Scoring()
    report_to: Annotated[
        tuple[Tracker, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)
    ] = ()
    "Experiment trackers, one or several; they change no result. Files go to `logs/` of the run folder."
    workers: Processes | None = None
    "Steps that run at once on this machine; as many as it has processors, at most 4, or one per GPU, when left out."
    grid: dict[_GridName, Axis] = {}
    "Axes along which everything is run, every combination: `rank: {low: {adapter.rank: 4}, high: {adapter.rank: 64}}`."
    published: tuple[Published, ...] = ()
    "Numbers of papers, to be shown beside those of the run (docs/report.md)."

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        names = [Path(task.task).stem for task in self.tasks]  # by which results call them
        for what, values in (("tasks", names), ("seeds", list(self.seeds)), ("methods", list(self.methods))):
            repeated = [value for index, value in enumerate(values) if value in values[:index]]
            if repeated:
                raise ValueError(f"{what}: {_name_of(repeated[0])} is named twice")
        if self.weights.tune_on and self.weights.tune_on not in self.languages.targets:
            raise ValueError(f"weights.tune_on: {self.weights.tune_on} is not among the target languages")
        for code in self.weights.curves:
            if code not in self.languages.targets or code == self.weights.tune_on:
                raise ValueError(f"weights.curves: {code} is the tuning language or no target language")
        points = self.points()
        for index, entry in enumerate(self.published):
            try:
                self._check_published(entry, points)
            except ValueError as error:
                raise ValueError(f"published.{index}.{error}") from None
        return self

    @model_validator(mode="wrap")  # around all else: codes are checked within
    @classmethod
    def _in_its_languages(cls, raw: Any, handler: ModelWrapValidatorHandler[Experiment]) -> Experiment:
        with knowing(_added(raw)):
            return handler(raw)

    def _check_published(self, entry: Published, points: Sequence[Point]) -> None:
        there = {Path(one.task.task).stem: one.experiment for one in points if dict(one.grid) == entry.grid}
        if not there:
            axes = ", ".join(f"{axis}: {' or '.join(values)}" for axis, values in self.grid.items())
            raise ValueError(f"grid: names no point of the grid ({axes or 'this file has none'})")
        methods = {method.method for asked in there.values() for method in asked.methods}
        for task, of_task in entry.scores.items():
            _expect(task, there, "scores")
            languages = there[task].languages
            columns = {languages.source, *languages.targets, *languages.groups, "average"}
            for name, scores in of_task.items():
                _expect(name.split(" ")[0], methods, f"scores.{task}")
                for column in scores:
                    _expect(column, columns, f"scores.{task}.{name}")
        for key in entry.setup:
            try:
                value_at(self.at(entry.grid), key)
            except ValueError as error:
                raise ValueError(f"setup.{error}") from None

    def points(self) -> tuple[Point, ...]:
        """Every task at every point of the grid, the last axis first.

        Raises:
            ValueError: a point that is no experiment, or the same as another; its axes are named.
        """
        if math.prod(map(len, self.grid.values())) > _MOST_POINTS:
            raise ValueError(f"grid: has more than {_MOST_POINTS:,} points")
        base = self.model_dump(mode="json", exclude={"grid", "published"})
        found: list[Point] = []
        known: dict[str, str] = {}
        for names in itertools.product(*self.grid.values()):
            chosen = dict(zip(self.grid, names, strict=True))
            where = f"grid: {grid_name(chosen)}"
            there = self.at(chosen, base)
            same = known.setdefault(there.model_dump_json(exclude={"grid"}), where)
            if same != where:
                raise ValueError(f"{where} is the same experiment as {same.removeprefix('grid: ')}")
            for index in range(len(there.tasks)):
                found.append(Point(chosen, index, there._alone(index)))
        return tuple(found)

    def at(self, chosen: Mapping[str, str], base: dict[str, Any] | None = None) -> Experiment:
        """The experiment at a point of its grid, without a grid.

        Args:
            chosen: Axis -> name of its value.
            base: What `model_dump` says of it, but for the grid.

        Raises:
            ValueError: the point is no experiment.
        """
        if not chosen:
            return self
        raw = copy.deepcopy(base or self.model_dump(mode="json", exclude={"grid", "published"}))
        for axis, name in chosen.items():
            for key, value in self.grid[axis][name].items():
                where = f"grid.{axis}.{name}.{key}"
                if key.split(".")[0] in _NO_POINT:
                    raise ValueError(f"{where}: is the same at every point; write it above")
                try:
                    _put(raw, key, copy.deepcopy(value), where)  # one list may stand in several, by an alias
                except UserError as error:
                    raise ValueError(str(error)) from None
        try:
            there = Experiment.model_validate(raw)
        except ValidationError as error:
            problem = _explain(dict(error.errors(include_url=False)[0]))
            raise ValueError(f"grid: at {grid_name(chosen)}, {problem}") from None
        if there.languages.own != self.languages.own:
            raise ValueError(
                f"grid: at {grid_name(chosen)}, languages.own: is the same at every point; write it above"
            )
        return there

    def _alone(self, index: int) -> Experiment:
        """One task, in its own languages, with the averages that it has all languages of."""
        entry, whole = self.tasks[index], self.languages
        targets = entry.targets or whole.targets
        tuned = entry.tune_on or (self.weights.tune_on if self.weights.tune_on in targets else None)
        groups = {name: members for name, members in whole.groups.items() if set(members) <= set(targets)}
        try:
            with knowing(whole.added()):
                languages = Languages(
                    source=entry.source or whole.source, targets=targets, groups=groups, own=whole.own
                )
        except ValidationError as error:
            raise ValueError(f"tasks.{index}.{_told(dict(error.errors(include_url=False)[0]))}") from None
        if tuned and (tuned not in targets or self.weights.by == "entropy"):
            why = "is not among its targets" if tuned not in targets else "is set, and entropy chooses"
            raise ValueError(f"tasks.{index}.tune_on: {tuned} {why}")
        curves = tuple(code for code in self.weights.curves if code in targets and code != tuned)
        weights = self.weights.model_copy(update={"tune_on": tuned, "curves": curves})
        changed = {"tasks": (entry,), "languages": languages, "weights": weights, "grid": {}, "published": ()}
        return self.model_copy(update=changed)

    def averages(self) -> dict[str, tuple[str, ...]]:
        """Name of an average -> the languages in it, never the one that weights are tuned on."""
        sets = {"average": self.languages.targets, **self.languages.groups}
        kept = {
            name: tuple(code for code in members if code != self.weights.tune_on)
            for name, members in sets.items()
        }
        return {name: members for name, members in kept.items() if members}


_OWN = TypeAdapter(dict[str, OwnLanguage])


def _languages_of(own: Mapping[str, OwnLanguage]) -> tuple[Language, ...]:
    return own_languages({code: entry.model_dump() for code, entry in own.items()}, "languages.own")


def _added(raw: Any) -> tuple[Language, ...]:
    """The languages that a mapping of an experiment adds, which are known before its codes are looked at."""
    languages = raw.get("languages") if isinstance(raw, Mapping) else getattr(raw, "languages", None)
    own = languages.get("own") if isinstance(languages, Mapping) else getattr(languages, "own", None)
    try:
        return _languages_of(_OWN.validate_python({} if own is None else own))
    except ValidationError as error:
        problem: dict[str, Any] = dict(error.errors(include_url=False)[0])
        raise ValueError(_explain({**problem, "loc": ("languages", "own", *problem["loc"])})) from None
    except UserError as error:
        expected = f"; expected {error.expected}" if error.expected else ""
        raise ValueError(f"{error.where}: {error.found}{expected}; {error.mend}") from None


def value_at(record: BaseModel, key: str) -> Any:
    """What stands at a key of an experiment, as `--set` has it; None within what was left out.

    Raises:
        ValueError: no such key, or a section.
    """
    value: Any = record
    parts = key.split(".")
    for index, part in enumerate(parts):
        if isinstance(value, BaseModel):
            _expect(part, type(value).model_fields, ".".join(parts[:index]))
            value = getattr(value, part)
        elif isinstance(value, tuple):
            _expect(part, list(map(str, range(len(value)))), ".".join(parts[:index]))
            value = value[int(part)]
        elif isinstance(value, dict):
            value = value.get(part)
        elif value is not None:
            raise ValueError(f"{key}: is not a known key")
    if any(isinstance(one, BaseModel) for one in (value if isinstance(value, tuple) else [value])):
        raise ValueError(f"{key}: is a section; name a key within it")
    return list(value) if isinstance(value, tuple) else value


def _expect(name: str, known: Collection[str], where: str) -> None:
    if name not in known:
        key = f"{where}.{name}" if where else name
        raise ValueError(f"{key}: is not in this file; {did_you_mean(name, known)}")


def _name_of(value: object) -> object:
    return value.method if isinstance(value, MethodSettings) else value


def load_experiment(path: Path, overrides: list[str] | None = None) -> Experiment:
    """Read and check an experiment file.

    Args:
        path: The YAML file.
        overrides: `a.b=value` each, the value in YAML; a number in the path is an index of a list.

    Raises:
        UserError: unreadable file, unknown key, wrong value; the message names the key.
    """
    try:
        with reading(path, "an experiment file"), path.open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
    except UnicodeDecodeError:
        raise UserError(path, "cannot be read (not UTF-8)", "an experiment file", "check the path") from None
    try:
        raw = parse_yaml(text)
    except ValueError as error:
        raise UserError(path, str(error), mend="correct that line") from None
    if not isinstance(raw, dict):
        raise UserError(
            path, f"holds {type(raw).__name__}", "keys such as `backbone:`", "see docs/experiment.md"
        )
    for given in overrides or []:
        _set(raw, given)
    languages = raw.get("languages")
    if isinstance(languages, dict) and isinstance(languages.get("own"), str):
        languages["own"] = read_languages(path.parent / languages["own"])
    return parse_experiment(raw, where=str(path))


Record = TypeVar("Record", bound=BaseModel)
_SHOWN = 200  # characters of a value in a message


def checked(
    record: type[Record], called: Mapping[str, str] = MappingProxyType({}), /, **values: Any
) -> Record:
    """A record made from arguments of a function or a command.

    Args:
        record: Its class.
        called: Field -> the argument that it is given by, where that has another name.
        values: Its fields.

    Raises:
        UserError: names the first argument that is wrong.
    """
    try:
        return record.model_validate(values)
    except ValidationError as error:
        problem: dict[str, Any] = dict(error.errors(include_url=False)[0])
        where = record.__name__.lower()
        if problem["loc"]:
            field, *inside = map(str, problem["loc"])
            where = ".".join([setting(called.get(field, field)), *inside])
        raise UserError(where, _told(problem), mend="correct the value") from None


def files_at(template: str, called: str = "data") -> Data:
    """Rows in files of the user's, as an argument names them; raises as `checked`."""
    return checked(Data, {"files": called}, files=template)


def check_number(kind: Any, name: str, value: Any) -> None:
    """Check an argument of a function that is a number, by the type that it has in the records above.

    Raises:
        UserError: it is none, or beyond the bounds.
    """
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        problem: dict[str, Any] = dict(error.errors(include_url=False)[0])
        raise UserError(setting(name), _told(problem), mend="correct the value") from None


def _told(problem: dict[str, Any]) -> str:
    """What is wrong with a value, in pydantic's words or ours, and the value."""
    message = str(problem["msg"]).removeprefix("Value error, ")
    found = problem["input"]
    return message if isinstance(found, dict | list | tuple) else f"{message} (found {_shown(found)})"


def _shown(value: Any) -> str:
    """A value as messages show it: its beginning, where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def parse_experiment(raw: dict[str, Any], where: str = "experiment") -> Experiment:
    """Check a mapping as an experiment.

    Raises:
        UserError: the first three problems, each with its key.
    """
    try:
        return Experiment.model_validate(raw)
    except ValidationError as error:
        problems = [_explain(dict(item)) for item in error.errors(include_url=False)[:3]]
        raise UserError(
            where, "\n  ".join(["is not a valid experiment:", *problems]), mend="correct the keys named above"
        ) from None


def dump_experiment(experiment: Experiment) -> str:
    """The resolved experiment as YAML, every default written out."""
    return to_yaml(experiment.model_dump(mode="json"))


def _explain(problem: dict[str, Any]) -> str:
    """One problem of pydantic's in our words: key, what was found, what was expected."""
    location = _cut(".".join(str(part) for part in problem["loc"] if part != "[key]"))
    if problem["type"] == "extra_forbidden":
        parent = _fields_at(problem["loc"][:-1])
        return f"{location}: is not a known key; {did_you_mean(str(problem['loc'][-1]), parent)}"
    if problem["type"] == "missing":
        return f"{location}: is missing"
    return f"{location}: {_told(problem)}" if location else _told(problem)


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed at a place of the experiment file."""
    model: Any = Experiment
    for part in location:
        field = model.model_fields.get(part)  # None for a number of a list and a name of the user's
        found = re.findall(r"lingualift\.config\.(\w+)", repr(field.annotation)) if field else []
        model = globals()[found[-1]] if found else model
    return list(model.model_fields)


def _set(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    where = f"--set {_cut(override)}"
    if not separator or not key:
        raise UserError(where, "has no `=`", "key=value", "write for example --set seeds=[0,1]")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise UserError(where, str(error), mend="correct or quote the value") from None
    _put(raw, key, value, where)


def _put(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a key of a file, parts of whose path stand between points."""
    *parents, last = key.split(".")
    place: Any = raw
    for part in parents:
        place = _child(place, part, where)
    if isinstance(place, list):
        place[_index(place, last, where)] = value
    else:
        place[last] = value


def _child(place: Any, part: str, where: str) -> Any:
    child = place[_index(place, part, where)] if isinstance(place, list) else place.setdefault(part, {})
    if not isinstance(child, dict | list):
        found = f"{_shown(part)} holds {_shown(child)}"
        raise UserError(where, found, "a mapping or a list", "check the path")
    return child


def _index(place: list[Any], part: str, where: str) -> int:
    if part not in map(str, range(len(place))):
        found = f"{_shown(part)} is no index of a list of {len(place)}"
        raise UserError(where, found, mend="check the path")
    return int(part)
