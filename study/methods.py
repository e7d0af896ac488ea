"""Methods that only the study asks about, registered beside those of the package."""

from __future__ import annotations

from dataclasses import fields, replace

from lingualift.config import METHOD_SETTINGS, AdamergexMethod, FlareMethod, MergeMethod
from lingualift.pipeline.methods import METHODS, Cell, TransferMethod
from lingualift.pipeline.steps import Initialise, InitialiseFused, Merge, Train

ADAMERGEX = "https://arxiv.org/abs/2402.18913"
OWN_START = 10_000
"""What is added to the seed of the draw for references that do not share the task adapter's initialisation."""


class OwnStart(Cell):
    """A cell whose reference adapters share an initialisation among themselves, and not with the task adapter."""

    def reference_adapter(self, language: str) -> Train:
        """As the cell's own, from another draw."""
        trained = super().reference_adapter(language)
        assert isinstance(trained.start, Initialise)
        adapter = trained.start.adapter
        other = adapter.model_copy(update={"init_seed": adapter.init_seed + OWN_START})
        return replace(trained, start=replace(trained.start, adapter=other))


def merged_as(kind: type[Cell], cell: Cell) -> Merge:
    """AdaMergeX in a cell, taken as a cell of another kind."""
    values = {field.name: getattr(cell, field.name) for field in fields(Cell)}
    given = cell.method.model_dump(include=MergeMethod.model_fields.keys() - {"method"})
    values["method"] = AdamergexMethod(method="adamergex", **given)
    return kind(**values).merged(subtract_source=True)


def own_start(cell: Cell) -> Merge:
    """AdaMergeX with references that begin from an initialisation of their own."""
    return merged_as(OwnStart, cell)


class FlareOnMerged(FlareMethod, MergeMethod):
    """Settings of both."""


def flare_on_merged(cell: Cell) -> Train:
    """FLARE beside the merged adapter (AdaMergeX) in place of the task adapter."""
    trained = METHODS["flare"].adapter(cell)
    assert isinstance(trained, Train)
    assert isinstance(trained.start, InitialiseFused)
    return replace(trained, start=replace(trained.start, first=merged_as(Cell, cell)))


def register() -> None:
    """Add them to the package's methods; again does nothing."""
    if "adamergex-own-start" in METHODS:
        return
    facts = {"paper_name": "(study)", "source": ADAMERGEX, "needs_reference": True}
    METHODS.register("adamergex-own-start")(TransferMethod(own_start, own_start.__doc__ or "", **facts))
    METHOD_SETTINGS["adamergex-own-start"] = AdamergexMethod
    fused = replace(METHODS["flare"], adapter=flare_on_merged, summary=flare_on_merged.__doc__ or "", **facts)
    METHODS.register("flare-on-merged")(fused)
    METHOD_SETTINGS["flare-on-merged"] = FlareOnMerged
