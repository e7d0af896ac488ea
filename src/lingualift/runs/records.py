"""What a report reads of a run folder, as records that pydantic holds its files against; other keys are passed over."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Number = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Moment = Annotated[float, Field(ge=0, le=253_402_300_799, allow_inf_nan=False)]  # to the end of the year 9999


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class Read(_Record):
    """What a reading of generated answers makes of a row."""

    score: Number
    malformed: Count


class Row(_Record):
    """A score: of a method on a task, in a language, by a metric, for a seed."""

    method: str
    variant: str
    task: str
    language: str
    metric: str
    score: Number
    chance: Number
    n: Annotated[Count, Field(gt=0)]
    malformed: Count
    truncated: Count
    seed: Count | None
    weight: Number | None
    weight_by_block: dict[str, Number] = {}
    grid: dict[str, str] = {}
    answer_language: str | None = None
    predictions: str | None = None
    reading: str | None = None
    readings: dict[str, Read] = {}
    translator: str | None = None
    translator_parameters: Count | None = None


class Empty(_Record):
    """A cell that lacks rows."""

    method: str
    variant: str
    task: str
    language: str
    grid: dict[str, str] = {}
    reason: str


class Answer(_Record):
    """A line of `predictions/*.jsonl`."""

    id: str
    gold: Annotated[list[str], Field(min_length=1)]
    prediction: str | None


class Compared(_Record):
    """The fields of `Comparison`."""

    task: str
    metric: str
    method: str
    variant: str
    where: str
    gain: Number
    low: Number
    high: Number
    seeds: Count
    n: Count
    grid: dict[str, str] = {}


class Units(_Record):
    """Mean activations of each unit of a bottleneck."""

    source: list[Number] | None
    target: Annotated[list[Number], Field(min_length=1)]
    fused: Annotated[list[Number], Field(min_length=1)]


class Layer(_Record):
    """Mean activations in a fused layer."""

    layer: Count
    module: str
    source: Number | None
    target: Number | None
    fused: Number | None
    units: Units | None = None


class Activations(_Record):
    """The fused layers of an adapter, in an evaluation."""

    method: str
    variant: str
    task: str
    language: str
    seed: Count | None
    grid: dict[str, str] = {}
    layers: Annotated[list[Layer], Field(min_length=1)]


class Results(_Record):
    """`results.json`."""

    schema_version: Literal[1] = Field(alias="schema")
    rows: list[Row]
    comparisons: list[Compared]
    activations: list[Activations] = []
    empty: list[Empty] = []


class Tried(_Record):
    """A merge weight, and what it scored."""

    weight: Number
    score: Number
    stderr: Number | None
    blocks: str | None = None


class Sweep(_Record):
    """What the choice of a merge weight did."""

    task: str
    metric: str
    method: str
    variant: str
    language: str
    seed: Count | None
    decides: bool
    grids: list[dict[str, str]] = []
    chosen: Number
    by_block: dict[str, Number] = {}
    tried: Annotated[list[Tried], Field(min_length=1)]


class Training(_Record):
    """What a training did; `loss` holds steps and losses. Older runs have no `name`."""

    task: str
    name: str | None = None
    language: str
    rows: Count
    segments: Count
    truncated_prompts: Count
    steps: Count
    loss: list[Annotated[list[Number], Field(min_length=2, max_length=2)]] = []


class Facts(_Record):
    """What any other step did."""

    task: str | None = None


class Step(_Record):
    """A finished step."""

    key: str
    kind: str
    label: str
    inputs: dict[str, str]
    seconds: Seconds
    warnings: tuple[str, ...] = Field(strict=False)
    facts: dict[str, Any]


class Steps(_Record):
    """`steps.json`."""

    schema_version: Literal[1] = Field(alias="schema")
    steps: list[Step]


class Entry(_Record):
    """A line of `log.jsonl`."""

    time: Moment | None = None
    event: str = ""
    step: str = ""
    key: str = ""
    text: str = ""


class Backbone(_Record):
    """The backbone that an adapter belongs to."""

    fingerprint: str | None = None


class Provenance(_Record):
    """What is told of an adapter's provenance."""

    libraries: dict[str, str] = {}
    backbone: Backbone = Backbone()
    weights_sha256: str | None = None
