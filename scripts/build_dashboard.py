"""Builds deploy/grafana/overview.json, the dashboard that shows a server at a glance.

    python scripts/build_dashboard.py           write it
    python scripts/build_dashboard.py --check   exit 1 when the committed file differs

Panels are data (`ROWS`); everything about Grafana is below them. A test runs every query on a real Prometheus.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, SortOrder, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, VariableOption, VariableRefresh
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

OUTPUT = Path(__file__).resolve().parent.parent / "deploy" / "grafana" / "overview.json"
WHERE = 'job=~"$job",instance=~"$instance"'
PANEL_HEIGHT = 8  # grid units
PANEL_WIDTH = 8  # grid units; a row has 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL expression and what its lines are called."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One chart, or with `as_table` one table of the newest values."""

    title: str
    description: str
    unit: str  # Grafana's id, such as "s", "bytes", "percentunit"
    queries: tuple[Query, ...]
    as_table: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


def _rate(metric: str, by: str, *, matching: str = "") -> str:
    """Increase a second of a counter, summed over everything but `by`."""
    return f"sum by ({by}) (rate({metric}{{{WHERE}{matching}}}[$__rate_interval]))"


def _quantiles(
    metric: str, by: str, *, matching: str = "", shares: tuple[float, ...] = (0.5, 0.95, 0.99)
) -> tuple[Query, ...]:
    """Percentiles of a histogram, a line for each and each value of `by`."""
    buckets = _rate(f"{metric}_bucket", f"{by}, le", matching=matching)
    return tuple(
        Query(expr=f"histogram_quantile({share}, {buckets})", legend=f"p{share * 100:g} {{{{{by}}}}}")
        for share in shares
    )


def _mean(metric: str, by: str) -> str:
    """Mean of a histogram's observations."""
    return _ratio(_rate(f"{metric}_sum", by), _rate(f"{metric}_count", by))


def _ratio(above: str, below: str) -> str:
    return f"{above} / {below}"


def _now(metric: str, by: str, *, matching: str = "") -> str:
    """A gauge, summed over everything but `by`."""
    return f"sum by ({by}) ({metric}{{{WHERE}{matching}}})"


REQUESTS = Row(
    title="Requests",
    panels=(
        Panel(
            title="RPCs by method and code",
            description="RPCs that ended, a second.",
            unit="reqps",
            queries=(Query(expr=_rate("shoal_rpc_requests_total", "method, code"), legend="{{method}} {{code}}"),),
        ),
        Panel(
            title="RPC latency",
            description="Duration in the server of RPCs that ended OK. Streams count until their last message.",
            unit="s",
            queries=_quantiles("shoal_rpc_duration_seconds", "method", matching=',code="OK"'),
        ),
        Panel(
            title="Refused and failed by reason",
            description="Requests and stream items that got no answer, a second, by the reason their clients see.",
            unit="reqps",
            queries=(Query(expr=_rate("shoal_rejected_requests_total", "reason"), legend="{{reason}}"),),
        ),
        Panel(
            title="In flight, running, waiting",
            description="In flight: accepted and not answered. Running and waiting: as the engines see them.",
            unit="short",
            queries=(
                Query(expr=_now("shoal_requests_in_flight", "model"), legend="in flight {{model}}"),
                Query(expr=_now("shoal_requests_running", "model"), legend="running {{model}}"),
                Query(expr=_now("shoal_requests_waiting", "model"), legend="waiting {{model}}"),
            ),
        ),
        Panel(
            title="Time in the queue",
            description="From sending to the engine until it began.",
            unit="s",
            queries=_quantiles("shoal_queue_seconds", "model"),
        ),
        Panel(
            title="Tokenizing",
            description="Chat template and tokenizer, in the front.",
            unit="s",
            queries=_quantiles("shoal_tokenize_seconds", "model"),
        ),
    ),
)

GENERATION = Row(
    title="Generation",
    panels=(
        Panel(
            title="Time to the first token",
            description="From admission until the first new token.",
            unit="s",
            queries=_quantiles("shoal_time_to_first_token_seconds", "model"),
        ),
        Panel(
            title="Inter-token latency",
            description="Time between new tokens of one completion.",
            unit="s",
            queries=_quantiles("shoal_inter_token_seconds", "model"),
        ),
        Panel(
            title="Tokens",
            description="Tokens read and generated, a second.",
            unit="short",
            queries=(
                Query(expr=_rate("shoal_input_tokens_total", "model"), legend="in {{model}}"),
                Query(expr=_rate("shoal_output_tokens_total", "model"), legend="out {{model}}"),
            ),
        ),
        Panel(
            title="KV cache in use",
            description="Share of the blocks that hold tokens. Near 1 sequences wait or are preempted.",
            unit="percentunit",
            queries=(
                Query(
                    expr=_ratio(
                        _now("shoal_kv_blocks_used", "model, version"), _now("shoal_kv_blocks_total", "model, version")
                    ),
                    legend="{{model}}@{{version}}",
                ),
            ),
        ),
        Panel(
            title="Preempted and expired",
            description="Preempted for want of KV blocks; never run since their deadline had passed. A second.",
            unit="reqps",
            queries=(
                Query(expr=_rate("shoal_preemptions_total", "model"), legend="preempted {{model}}"),
                Query(expr=_rate("shoal_expired_total", "model"), legend="expired {{model}}"),
            ),
        ),
    ),
)

ENGINE = Row(
    title="Engines",
    panels=(
        Panel(
            title="Engine busy",
            description="Share of the time spent inside forward passes. At 1 it can do no more.",
            unit="percentunit",
            queries=(
                Query(
                    expr=_rate("shoal_engine_busy_seconds_total", "instance, engine"),
                    legend="{{instance}} engine {{engine}}",
                ),
            ),
        ),
        Panel(
            title="Sequences and tokens in a step",
            description="Means over the steps.",
            unit="short",
            queries=(
                Query(expr=_mean("shoal_batch_sequences", "model"), legend="sequences {{model}}"),
                Query(expr=_mean("shoal_batch_tokens", "model"), legend="tokens {{model}}"),
            ),
        ),
        Panel(
            title="Fill of the token budget",
            description="Tokens that were run over tokens that might have been, in the same steps.",
            unit="percentunit",
            queries=(
                Query(
                    expr=_ratio(
                        _rate("shoal_batch_tokens_sum", "model"), _rate("shoal_batch_budget_tokens_total", "model")
                    ),
                    legend="{{model}}",
                ),
            ),
        ),
        Panel(
            title="Longest wait for company",
            description="How long an idle engine keeps a lone Classify call waiting. Adapts; 0 where it does not pay.",
            unit="s",
            queries=(
                Query(
                    expr=f"max by (instance, engine, model) (shoal_batch_max_wait_seconds{{{WHERE}}})",
                    legend="{{model}} {{instance}} engine {{engine}}",
                ),
            ),
        ),
        Panel(
            title="Cost of a Classify forward",
            description="Learned: what a forward costs however few its tokens, and what a thousand tokens add.",
            unit="s",
            queries=(
                Query(
                    expr=f"max by (model) (shoal_forward_fixed_seconds{{{WHERE}}})",
                    legend="fixed {{model}}",
                ),
                Query(
                    expr=f"1000 * max by (model) (shoal_forward_token_seconds{{{WHERE}}})",
                    legend="1,000 tokens {{model}}",
                ),
            ),
        ),
        Panel(
            title="Time of a step",
            description="One forward pass with its sampling.",
            unit="s",
            queries=_quantiles("shoal_inference_seconds", "model"),
        ),
        Panel(
            title="Device utilisation",
            description="The GPU's; on a processor the engine's share of its threads.",
            unit="percentunit",
            queries=(
                Query(
                    expr=_now("shoal_device_utilisation_ratio", "instance, engine"),
                    legend="{{instance}} engine {{engine}}",
                ),
            ),
        ),
        Panel(
            title="Memory",
            description="Of the engines' devices, used and in all, and resident memory of every process.",
            unit="bytes",
            queries=(
                Query(
                    expr=_now("shoal_device_memory_bytes", "instance, engine, kind"),
                    legend="{{instance}} engine {{engine}} {{kind}}",
                ),
                Query(
                    expr=_now("shoal_process_resident_memory_bytes", "instance, process"),
                    legend="{{instance}} {{process}}",
                ),
            ),
        ),
    ),
)

VERSIONS = Row(
    title="Versions",
    panels=(
        Panel(
            title="Versions and their states",
            description="What is loaded where.",
            unit="short",
            queries=(Query(expr=f"{_now('shoal_version_state', 'instance, model, version, state')} == 1", legend=""),),
            as_table=True,
        ),
        Panel(
            title="Load time",
            description="Verification, loading, golden outputs and warm-up of the last load.",
            unit="s",
            queries=(
                Query(
                    expr=f"max by (model, version) (shoal_version_load_seconds{{{WHERE}}})",
                    legend="{{model}}@{{version}}",
                ),
            ),
        ),
        Panel(
            title="Memory of versions",
            description="Weights as served and KV cache, over all engines.",
            unit="bytes",
            queries=(
                Query(
                    expr=f"sum by (model, version) (shoal_version_memory_bytes{{{WHERE}}})",
                    legend="{{model}}@{{version}}",
                ),
            ),
        ),
        Panel(
            title="Refused versions and restarted processes",
            description="Events within the last hour.",
            unit="short",
            queries=(
                Query(
                    expr=f"sum by (model) (increase(shoal_version_rejections_total{{{WHERE}}}[1h]))",
                    legend="refused {{model}}",
                ),
                Query(
                    expr=f"sum by (instance, role) (increase(shoal_process_restarts_total{{{WHERE}}}[1h]))",
                    legend="restarts {{instance}} {{role}}",
                ),
            ),
        ),
    ),
)

TRAINING = Row(
    title="Training",
    panels=(
        Panel(
            title="Jobs by state",
            description="Training jobs that the server knows of.",
            unit="short",
            queries=(Query(expr=_now("shoal_training_jobs", "state"), legend="{{state}}"),),
        ),
        Panel(
            title="Progress",
            description="Share of the optimizer steps done by running jobs.",
            unit="percentunit",
            queries=(
                Query(expr=f"max by (instance, model) (shoal_training_progress_ratio{{{WHERE}}})", legend="{{model}}"),
            ),
        ),
        Panel(
            title="Training loss",
            description="Mean loss since the last report of running jobs.",
            unit="short",
            queries=(Query(expr=f"max by (instance, model) (shoal_training_loss{{{WHERE}}})", legend="{{model}}"),),
        ),
    ),
)

ROWS = (REQUESTS, GENERATION, ENGINE, VERSIONS, TRAINING)


def build() -> str:
    """The dashboard as JSON, with a newline at its end."""
    board = (
        dashboard.Dashboard("Shoal overview")
        .uid("shoal-overview")
        .description("Requests, generation, engines, versions and training of Shoal servers.")
        .tags(["shoal"])
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-30m", "now")
        .refresh("15s")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_label_variable("job", "Job", "label_values(shoal_rpc_requests_total, job)"))
        .with_variable(
            _label_variable("instance", "Server", 'label_values(shoal_rpc_requests_total{job=~"$job"}, instance)')
        )
    )
    ids = count(1)
    for row in ROWS:
        board.with_row(dashboard.Row(row.title).id(next(ids)))
        for panel in row.panels:
            shown = _table(panel) if panel.as_table else _chart(panel)
            board.with_panel(shown.id(next(ids)))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def _source() -> DataSourceRef:
    return DataSourceRef(type_val="prometheus", uid="${datasource}")


def _label_variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(_source())
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )


def _chart(panel: Panel) -> timeseries.Panel:
    chart = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.description)
        .datasource(_source())
        .unit(panel.unit)
        .min(0)
        .height(PANEL_HEIGHT)
        .span(PANEL_WIDTH)
        .fill_opacity(8)
        .line_width(1)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
    for index, query in enumerate(panel.queries):
        chart.with_target(_target(query, index))
    return chart


def _table(panel: Panel) -> table.Panel:
    shown = (
        table.Panel()
        .title(panel.title)
        .description(panel.description)
        .datasource(_source())
        .height(PANEL_HEIGHT)
        .span(PANEL_WIDTH)
    )
    for index, query in enumerate(panel.queries):
        shown.with_target(_target(query, index).instant().format(PromQueryFormat.TABLE))
    return shown


def _target(query: Query, index: int) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + index))


def main() -> int:
    """Write the file, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file instead of writing it")
    text = build()
    if not parser.parse_args().check:
        OUTPUT.write_text(text)
        return 0
    if OUTPUT.read_text() == text:
        return 0
    print(f"{OUTPUT} differs from what this script builds; run it and commit the result", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
