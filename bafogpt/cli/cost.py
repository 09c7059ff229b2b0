"""``bafogpt cloud plan`` and ``cloud cost``: what a job will cost, and what runs have cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bafogpt.cli.console.options import (
    BucketOption,
    GpusOption,
    InfraOption,
    JobArgument,
    JsonOption,
    QuietOption,
    SetOption,
)
from bafogpt.cli.console.output import Output

if TYPE_CHECKING:
    from bafogpt.launch.forecast import Forecast
    from bafogpt.launch.quote import ExchangeRate
    from bafogpt.reports.cost import RunCost

PLAN_COLUMNS = ["cloud", "region", "machine", "buy", "$/hour", "tokens/s", "hours", "total $", "total R"]
COST_COLUMNS = ["name", "state", "gpus", "infra", "hours", "$/hour", "spent $", "spent R", "at end $", "at end R"]

SpotOption = Annotated[
    bool | None, typer.Option("--spot/--on-demand", help="Only this kind of offer. Default: both, side by side.")
]
TokensOption = Annotated[
    int | None, typer.Option("--tokens", metavar="N", min=1, help="Tokens to train on, in place of the job's.")
]
SpeedOption = Annotated[
    float | None,
    typer.Option("--tokens-per-s", metavar="N", help="Price this speed, in place of a measured or projected one."),
]
OfflineOption = Annotated[
    bool, typer.Option("--offline", help="Ask nobody: neither SkyPilot for new prices nor the bucket for earlier runs.")
]


def plan(
    job: JobArgument,
    gpus: GpusOption = None,
    infra: InfraOption = None,
    spot: SpotOption = None,
    tokens: TokensOption = None,
    tokens_per_s: SpeedOption = None,
    set_: SetOption = None,
    bucket: BucketOption = None,
    offline: OfflineOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what JOB would take and cost, wherever its GPUs are offered: on demand and spot, in dollars and rand."""
    from bafogpt.core import settings
    from bafogpt.launch import forecast as forecasts

    out = Output.of(json=json, quiet=quiet)
    config = settings.load({"bucket": bucket})
    forecast = forecasts.of_job(
        job,
        config,
        gpus=gpus,
        infra=infra,
        spot=spot,
        tokens=tokens,
        tokens_per_s=tokens_per_s,
        assignments=set_ or (),
        offline=offline,
        log=out.say,
    )
    if json:
        out.result({"job": job, **forecast.to_dict()})
        return
    _explain(forecast, out)
    out.rows(_plan_rows(forecast), columns=PLAN_COLUMNS, id="cloud")
    if forecast.warning is None:
        best = forecast.estimates[0]
        hint = f"bafogpt cloud launch {job} --gpus {forecast.gpu}:{forecast.gpus} --infra {best.offer.cloud}"
        out.say(f"launch the first: {hint}{' --spot' if best.offer.spot else ''}")


def _explain(forecast: Forecast, out: Output) -> None:
    """What the table's figures rest on; not a figure without its source."""
    nodes = f" on each of {forecast.nodes} machines" if forecast.nodes > 1 else ""
    out.say(f"{forecast.tokens:,} tokens on {forecast.gpu}:{forecast.gpus}{nodes}")
    if forecast.speed is None:
        out.say("speed: not known for this model and GPU; give one with --tokens-per-s")
    else:
        mfu = "" if forecast.speed.mfu is None else f" = MFU {100 * forecast.speed.mfu:.1f} %"
        out.say(f"speed: {forecast.speed.tokens_per_s:,.0f} tokens/s{mfu} ({forecast.speed.description})")
    _explain_projection(forecast, out)
    if forecast.warning is not None:
        out.say(f"warning: {forecast.warning}")
    out.say(f"prices: {forecast.prices.describe()}")
    out.say(f"rand: {forecast.rate.describe()}")


def _explain_projection(forecast: Forecast, out: Output) -> None:
    """The step that the figures are projected from, its assumptions, and the values that are projected to be best."""
    projection = forecast.projection
    if projection is None:
        return
    now, best = projection.recipe, projection.recommended
    if forecast.speed is not None and forecast.speed.basis == "projected":
        slow = projection.pessimistic.time
        out.say(f"projected, not measured: {now.time.describe()}")
        out.say(f"  this job: {now.describe(projection.gpu)}")
        for each in projection.assumptions.values():
            out.say(f"  {each}")
        hours = forecast.tokens / slow.tokens_per_s / 3600
        out.say(f"  pessimistic is {slow.tokens_per_s:,.0f} tokens/s = MFU {100 * slow.mfu:.1f} %, {hours:.1f} h")
    if projection.refused is not None:
        return  # the warning has the change to make; another recipe would not help
    if best is None:
        out.say("recommended: another card; no micro-batch of this job fits this one with 2 GB to spare")
    elif not now.fits or best.time.total < 0.97 * now.time.total:
        values = " ".join(f"--set {each}" for each in best.assignments)
        out.say(
            f"recommended: {values} ({best.describe(projection.gpu)}, {best.time.tokens_per_s:,.0f} tokens/s projected)"
        )


def _plan_rows(forecast: Forecast) -> list[dict[str, str]]:
    speed = forecast.speed
    return [
        {
            "cloud": each.offer.cloud,
            "region": each.offer.region,
            "machine": each.offer.machine,
            "buy": "spot" if each.offer.spot else "on demand",
            "$/hour": f"{each.usd_per_hour:.2f}",
            "tokens/s": "" if speed is None else f"{speed.tokens_per_s:,.0f}",
            "hours": _figure(each.hours, 1),
            "total $": _figure(each.usd),
            "total R": _figure(each.zar),
        }
        for each in forecast.estimates
    ]


def cost(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run's name; left out: every run.")] = None,
    bucket: BucketOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what runs have cost so far and will have cost at their end, from the bucket's records."""
    from bafogpt.core import settings
    from bafogpt.launch.quote import ExchangeRate
    from bafogpt.reports import cost as costs
    from bafogpt.runs.store import RunStore
    from bafogpt.storage.bucket import Bucket

    out = Output.of(json=json, quiet=quiet)
    config = settings.load({"bucket": bucket})
    rate = ExchangeRate.of(config)
    store = RunStore(Bucket.open(config.bucket, config))
    found = [costs.of_run(store, run)] if run else costs.of_all(store)
    whole = costs.total(found)
    if json:
        records = [{**each.to_dict(), "zar": rate.rand(each.usd)} for each in found]
        out.result({"runs": records, "total": whole, "rate": rate.to_dict()})
        return
    if not found:
        out.say(f"no runs in {store.bucket.url}")
        return
    out.rows([_cost_row(each, rate) for each in found], columns=COST_COLUMNS, id="name")
    out.say(f"in all: {whole.usd:,.2f} $ (R{rate.rand(whole.usd):,.2f}) for {whole.hours:,.1f} machine hours")
    out.say(f"rand: {rate.describe()}")
    out.say("counted is what the supervisors saw; a machine's boot and its last idle minutes come on top")


def _cost_row(each: RunCost, rate: ExchangeRate) -> dict[str, str]:
    return {
        "name": each.name,
        "state": each.state,
        "gpus": each.gpus,
        "infra": each.infra,
        "hours": _figure(each.hours),
        "$/hour": _figure(each.usd_per_hour),
        "spent $": _figure(each.usd),
        "spent R": _figure(rate.rand(each.usd)),
        "at end $": _figure(each.usd_projected),
        "at end R": _figure(rate.rand(each.usd_projected)),
    }


def _figure(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def register(app: typer.Typer) -> None:
    """Put the commands of this module under ``bafogpt cloud``."""
    app.command("plan")(plan)
    app.command("cost")(cost)
