"""The commands of the learning recipes."""

from pathlib import Path
from typing import Annotated

import typer

from .console import emit, make_folder, progress_bar, table
from .errors import CelosiaError
from .options import Batch, Config, Json, Weights

__all__ = ["app"]

app = typer.Typer()


@app.command()
def recipes(as_json: Json = False) -> None:
    """The learning recipes."""
    from ..models import recipes as library

    rows = [{"name": name, "summary": library.summary(name)} for name in library.names()]
    if as_json:
        return emit({"recipes": rows})
    return table(("recipe", ""), [tuple(row.values()) for row in rows])


@app.command()
def train(
    recipe: Annotated[str, typer.Argument()],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for weights, checkpoint and metrics.", show_default="out/RECIPE")] = None,
    smoke: Annotated[bool, typer.Option(help="A few steps on the bundled sample.")] = False,
    resume: Annotated[bool, typer.Option(help="Take up an interrupted run.")] = False,
    seed: Annotated[int | None, typer.Option(help="Another seed than the recipe's.")] = None,
    as_json: Json = False,
) -> None:
    """Train a recipe."""
    found = _recipe(recipe)
    folder = output or Path("out") / recipe
    make_folder(folder)
    with progress_bar(f"train {recipe}") as progress:
        result = found.train(folder, smoke=smoke, resume=resume, seed=seed, progress=progress)
    if as_json:
        return emit(result)
    return print(f"{folder}: " + ", ".join(f"{name} {value:.4g}" for name, value in result["figures"].items()))


@app.command("eval")
def evaluate(
    recipe: Annotated[str, typer.Argument()],
    device: Annotated[str, typer.Option(help="float (the module itself), golden, cycle or rtl.")] = "float",
    weights: Weights = None,
    config: Config = None,
    batch: Batch = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first test images.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a trained recipe on its test data, and check its targets. Exit code 1 if one is missed."""
    from .evaluate import evaluate_recipe

    with progress_bar(f"eval {recipe}") as progress:
        report = evaluate_recipe(_recipe(recipe), device, weights=weights, config=config, batch=batch, limit=limit, progress=progress)
    if as_json:
        emit(report)
    else:
        print(", ".join(f"{name} {value:.4g}" for name, value in report["figures"].items()) + f" on {report['device']}")
        for target in report["targets"]:
            print(f"{'reached' if target['reached'] else 'MISSED'}: {target['figure']} {target['value']:.4f}, wanted {target['minimum']:.4f} ({target['source']})")
    raise typer.Exit(0 if all(target["reached"] for target in report["targets"]) else 1)


@app.command()
def verify(
    recipe: Annotated[str | None, typer.Argument()] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every recipe.")] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe's oracles: equality with trusted libraries. Exit code 1 if one does not hold."""
    from ..models import recipes as library

    if everything == (recipe is not None):
        raise CelosiaError("verify: name a recipe or give --all")
    rows = [{"recipe": name, "oracle": oracle, "holds": holds, "compared": compared}
            for name in (library.names() if everything else [recipe]) for oracle, holds, compared in _recipe(name).verify()]
    if as_json:
        emit({"oracles": rows})
    else:
        table(("recipe", "oracle", "", ""), [(row["recipe"], row["oracle"], "holds" if row["holds"] else "FAILS", row["compared"]) for row in rows])
    raise typer.Exit(0 if all(row["holds"] for row in rows) else 1)


def _recipe(name):
    from ..models import recipes as library

    if name not in library.names():
        raise CelosiaError(f"recipe {name!r} is not known; choose {', '.join(library.names())}")
    return library.get(name)
