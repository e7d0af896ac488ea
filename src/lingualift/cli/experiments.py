"""Commands on experiment files, and on the store of their finished steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lingualift.cli.app import StoreFolder, TaskName, app, next_step
from lingualift.errors import UserError
from lingualift.terminal import Terminal, say

if TYPE_CHECKING:
    from lingualift.pipeline import Run

store_app = typer.Typer(
    no_args_is_help=True, help="Look after finished steps: what there is, whether it is whole, what can go."
)
app.add_typer(store_app, name="store")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path(
        "lingualift-demo"
    ),
    seeds: Annotated[int, typer.Option(help="Seeds of adapters.")] = 3,
) -> None:
    """Everything on bundled data, offline, in a few minutes."""
    from lingualift.cli.app import watching
    from lingualift.commands.demo import SHOWN, run_demo

    with watching(Terminal(stderr=True)) as watch:
        finished = run_demo(output, seeds=seeds, watch=watch)
    _show(finished)
    Terminal().print(f"\n{SHOWN}")
    next_step(f"open {finished.page}, then edit {output / 'demo.yaml'} into an experiment of your own")


@app.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="The experiment file.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run folder; runs/<file name> when left out.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. seeds=[0,1].")
    ] = None,
    store: StoreFolder = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the results of another experiment in the run folder.")
    ] = False,
    tiny: Annotated[
        bool,
        typer.Option(
            "--tiny",
            help="Prove the file on a random small backbone of the same class and a few rows; store and results in "
            "runs/<file name>-tiny.",
        ),
    ] = False,
) -> None:
    """Run an experiment; steps that are finished already are not done again."""
    from lingualift.cli.app import watching
    from lingualift.pipeline import run as run_experiment

    with watching(Terminal(stderr=True)) as watch:
        finished = run_experiment(
            experiment,
            output=output,
            overrides=overrides,
            store=store,
            replace=replace,
            tiny=tiny,
            watch=watch,
        )
    _show(finished)
    for note in finished.notes:
        say(f"{'tiny' if tiny else 'note'}: {note}")
    if tiny:
        next_step(f"lingualift check {experiment}")
        return
    next_step(f"open {finished.page}; the lifted adapters are in {finished.folder / 'adapters'}")


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are joined on one page.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder to write; that of the run when left out, of a single one."
        ),
    ] = None,
) -> None:
    """Write report.html and table.md of a finished run anew, or of several on one page, from their folders alone."""
    from lingualift.report import write_report

    next_step(f"open {write_report(*runs, output=output)}")


@app.command()
def init(task: TaskName = "mini-sentiment") -> None:
    """Write a commented experiment file to standard output: `lingualift init --task T > experiment.yaml`."""
    from lingualift.commands.template import experiment_template

    say(experiment_template(task), end="")
    next_step("put your backbone, languages and files into it, then lingualift check experiment.yaml")


@app.command()
def check(
    experiment: Annotated[Path, typer.Argument(help="The experiment file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows that the backbone reads, per language and task.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Look before the money is spent: spelling, labels, overlap with test items, headroom; trains nothing."""
    import json

    from lingualift.checking import check as check_experiment
    from lingualift.cli.checking import show
    from lingualift.terminal import counting

    with counting(Terminal(stderr=True), f"check {experiment}") as progress:
        checked = check_experiment(experiment, overrides=overrides, rows=rows, progress=progress)
    if as_json:
        say(json.dumps(checked.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        show(checked, Terminal())
    if checked.errors:
        first, more = checked.errors[0], len(checked.errors) - 1
        found = f"{first.where}: {first.found}" + (f" (and {more} more errors above)" if more else "")
        raise UserError(experiment, found, first.expected, first.mend)
    next_step(f"lingualift plan {experiment}")


@app.command()
def plan(
    experiment: Annotated[Path, typer.Argument(help="The experiment file.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run folder to plan for.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")
    ] = None,
    store: StoreFolder = None,
    calibrate: Annotated[
        bool, typer.Option(help="Measure a few steps, to tell times; loads the backbone.")
    ] = True,
    machine: Annotated[
        str | None,
        typer.Option("--for", metavar="GPU", help="Estimate for a GPU that is not here, e.g. h100 or l4."),
    ] = None,
) -> None:
    """Check an experiment and its data, list its steps and what they will cost; trains nothing."""
    from lingualift.cli.tables import show_plan
    from lingualift.languages import tag_notes
    from lingualift.pipeline import plan_of
    from lingualift.pipeline.cost import check_fits, estimate
    from lingualift.pipeline.machines import MACHINES
    from lingualift.terminal import saying

    gpu = MACHINES[machine] if machine else None
    planned, steps = plan_of(experiment, output=output, overrides=overrides, store=store)
    for note in tag_notes(planned.experiment.languages.added()):
        say(f"note: {note}", err=True)
    with saying(Terminal(stderr=True)) as now:
        found = estimate(
            planned,
            steps,
            calibrate=calibrate,
            machine=gpu,
            tell=lambda step: now(f"measuring: {step.label()}"),
        )
    show_plan(planned.steps, found, Terminal(), planned.empty)
    check_fits(found)
    next_step(f"lingualift run {experiment}")


StoreArgument = Annotated[
    Path, typer.Argument(envvar="LINGUALIFT_STORE", help="The store: `store` beside a run folder.")
]


@store_app.command("list")
def store_list(folder: StoreArgument = Path("runs/store")) -> None:
    """Show every finished step, and what unfinished ones left."""
    from lingualift.cli.tables import show_store
    from lingualift.pipeline.store import Store

    show_store(list(Store(folder).entries()), Terminal())
    next_step(f"lingualift store prune {folder} --dry-run")


@store_app.command("verify")
def store_verify(folder: StoreArgument = Path("runs/store")) -> None:
    """Compare every file with the hash that was recorded when it was written; exit code 2 if one differs."""
    from lingualift.pipeline.store import Store

    entries = list(Store(folder).entries())
    mends = {
        "altered": f"run the experiment again: they are made anew; or lingualift store prune {folder}",
        "unreadable": f"let their owner run: chmod -R g+rX {folder}",
    }
    for state, mend in mends.items():
        those = [entry for entry in entries if entry.state == state]
        for entry in those:
            say(f"{entry.path}: {entry.problem}")
        if those:
            raise UserError(folder, f"{len(those)} of {len(entries)} entries are {state}", "none", mend)
    say(f"{len(entries)} entries, all as they were written.")


@store_app.command("prune")
def store_prune(
    folder: StoreArgument = Path("runs/store"),
    keep: Annotated[
        list[Path] | None,
        typer.Option(help="Experiment file whose steps stay; all that no such file needs goes. Repeatable."),
    ] = None,
    unused_for: Annotated[
        float | None, typer.Option(help="Days: what no run needed for so long goes, checkpoints too.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
) -> None:
    """Remove what no run will read again: scratch of killed runs, altered steps, steps of older versions."""
    from lingualift.pipeline import plan_of
    from lingualift.pipeline.store import Store
    from lingualift.terminal import readable

    needed = None
    if keep:
        plans = [plan_of(path, store=folder)[0] for path in keep]
        needed = frozenset(step.key[:20] for plan in plans for step in plan.steps)
    seconds = None if unused_for is None else unused_for * 86400
    done = Store(folder).prune(needed=needed, unused_for=seconds, dry_run=dry_run)
    for entry, why in done.gone:
        say(f"{entry.path}  {readable(entry.size)}  {why}")
    verb = "would free" if dry_run else "freed"
    say(
        f"{verb} {readable(sum(entry.size for entry, _ in done.gone))}; {done.kept} entries stay"
        + (f", {done.needed} of them because a run that is going on needs them." if done.needed else ".")
    )


def _show(finished: Run) -> None:
    from lingualift.cli.tables import show
    from lingualift.report.tables import Layout
    from lingualift.runs.folder import at_points, task_at

    compared = [replace(one, task=task_at(one.task, one.grid)) for one in finished.comparisons]
    layouts = Layout.of(finished.experiment, at_points(finished.empty))
    show(at_points(finished.rows), compared, layouts, Terminal())
