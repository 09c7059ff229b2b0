"""``bafogpt cloud plan`` and ``cloud cost``: the projected cost of a job, and the cost of runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from bafogpt.cli.console.access import run_store
from bafogpt.cli.console.options import BucketOption, JobArgument, JobFlags
from bafogpt.cli.console.output import Output

if TYPE_CHECKING:
    from bafogpt.launch.forecast import Forecast
    from bafogpt.launch.quote import ExchangeRate
    from bafogpt.reports.cost import RunCost

PLAN_COLUMNS = ["cloud", "region", "machine", "buy", "$/hour", "tokens/s", "hours", "total $", "total R"]
COST_COLUMNS = ["name", "state", "gpus", "infra", "hours", "$/hour", "spent $", "spent R", "at end $", "at end R"]


@dataclass(frozen=True, kw_only=True)
class PlanFlags(JobFlags):
    """What a plan assumes."""

    spot: Annotated[
        bool | None, typer.Option("--spot/--on-demand", help="Show only spot or only on-demand offers. Default: both.")
    ] = None
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="N", min=1, help="Train on N tokens instead of the job's number.")
    ] = None
    tokens_per_s: Annotated[
        float | None,
        typer.Option(
            "--tokens-per-s",
            metavar="N",
            help="Assume N tokens per second in all, instead of a measured or projected speed.",
        ),
    ] = None
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Use the prices on this machine and ignore earlier runs; make no requests."),
    ] = False


def plan(job: JobArgument, flags: PlanFlags, out: Output) -> None:
    """Estimate the time and cost of JOB on every machine on offer, on demand and spot, in dollars and rand."""
    from bafogpt.core import settings
    from bafogpt.launch import forecast as forecasts

    forecast = forecasts.of_job(
        job,
        settings.load({"bucket": flags.bucket}),
        gpus=flags.gpus,
        infra=flags.infra,
        spot=flags.spot,
        tokens=flags.tokens,
        tokens_per_s=flags.tokens_per_s,
        assignments=flags.assignments or (),
        offline=flags.offline,
        log=out.say,
    )
    if out.json:
        out.result({"job": job, **forecast.to_dict()})
        return
    _explain(forecast, out)
    out.rows(_plan_rows(forecast), columns=PLAN_COLUMNS, id="cloud")
    if forecast.warning is None:
        best = forecast.estimates[0]
        hint = f"bafogpt cloud launch {job} --gpus {forecast.gpu}:{forecast.gpus} --infra {best.offer.cloud}"
        out.say(f"launch the first: {hint}{' --spot' if best.offer.spot else ''}")


def _explain(forecast: Forecast, out: Output) -> None:
    """Where the figures of the table come from."""
    nodes = f" on each of {forecast.nodes} machines" if forecast.nodes > 1 else ""
    out.say(f"{forecast.tokens:,} tokens on {forecast.gpu}:{forecast.gpus}{nodes}")
    if forecast.speed is None:
        out.say("speed: unknown for this model and GPU; give one with --tokens-per-s")
    else:
        mfu = "" if forecast.speed.mfu is None else f" = MFU {100 * forecast.speed.mfu:.1f} %"
        out.say(f"speed: {forecast.speed.tokens_per_s:,.0f} tokens/s{mfu} ({forecast.speed.description})")
    _explain_projection(forecast, out)
    if forecast.warning is not None:
        out.say(f"warning: {forecast.warning}")
    out.say(f"prices: {forecast.prices.describe()}")
    out.say(f"rand: {forecast.rate.describe()}")


def _explain_projection(forecast: Forecast, out: Output) -> None:
    """The projected step, its assumptions, and the projected best values."""
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
        return  # the warning has the remedy; another recipe would not help
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
    out: Output,
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Name of a run. Default: every run.")] = None,
    bucket: BucketOption = None,
) -> None:
    """Show the cost of runs so far, and their projected cost at the end."""
    from bafogpt.core import settings
    from bafogpt.launch.quote import ExchangeRate
    from bafogpt.reports import cost as costs

    rate = ExchangeRate.of(settings.load())
    store = run_store(bucket)
    found = [costs.of_run(store, run)] if run else costs.of_all(store)
    total = costs.total(found)
    if out.json:
        records = [{**each.to_dict(), "zar": rate.rand(each.usd)} for each in found]
        out.result({"runs": records, "total": total, "rate": rate.to_dict()})
    elif not found:
        out.say(f"no runs in {store.bucket.url}")
    else:
        out.rows([_cost_row(each, rate) for each in found], columns=COST_COLUMNS, id="name")
        out.say(f"total: {total.usd:,.2f} $ (R{rate.rand(total.usd):,.2f}) for {total.hours:,.1f} machine hours")
        out.say(f"rand: {rate.describe()}")
        out.say("counted from the supervisor's start to its end; boot and autostop come on top")


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
