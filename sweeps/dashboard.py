"""Builds the W&B workspace of a sweep as code: python sweeps/dashboard.py ENTITY PROJECT [SWEEP]."""

import argparse
import os
import sys
from collections.abc import Sequence


def workspace(entity: str, project: str, group: str):  # type: ignore[no-untyped-def]  # noqa: ANN201 - of an optional package
    """Return the workspace: dual rounds, frontier, table and samples, of one sweep if `group` is not empty, else of all."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    limit, cost = wr.Config("constraint.c_limit"), wr.SummaryMetric("eval/cdpo/cost_mean")
    dual = [
        wr.LinePlot(title="lambda by round", x="dual/round", y=["dual/lambda"]),
        wr.LinePlot(title="E[cost] by round", x="dual/round", y=["dual/expected_cost"]),
        wr.LinePlot(title="E[cost] - C_limit by round: 0 is the goal", x="dual/round", y=["dual/violation"]),
        wr.ScatterPlot(title="lambda against C_limit", x=limit, y=wr.SummaryMetric("dual/lambda")),
    ]
    frontier = [
        wr.ScatterPlot(title="Reward against cost", x=cost, y=wr.SummaryMetric("eval/cdpo/reward_mean"), running_ymax=True),
        wr.ScatterPlot(title="Tail against cost", x=cost, y=wr.SummaryMetric("eval/cdpo/cost_cvar_90")),
    ]
    sections = [
        ws.Section(name="The dual", panels=dual, is_open=True),
        ws.Section(name="Frontier", panels=frontier, is_open=True),
        ws.Section(name="Table", panels=[wr.WeavePanelSummaryTable(table_name="final/table")], is_open=True),
        ws.Section(name="Samples", panels=[wr.WeavePanelSummaryTable(table_name="final/samples")]),
    ]
    name = f"constrained DPO: {group or 'all sweeps'}"
    settings = ws.RunsetSettings(filters=[ws.Metric("Group") == group] if group else [])
    return ws.Workspace(entity=entity, project=project, name=name, sections=sections, runset_settings=settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Save the workspace and print its address; return 0, or 2 if wandb-workspaces is not installed."""
    parser = argparse.ArgumentParser(prog="python sweeps/dashboard.py", description=__doc__)
    parser.add_argument("entity", metavar="ENTITY", help="your W&B user or team")
    parser.add_argument("project", metavar="PROJECT", help="logger.project of the runs")
    parser.add_argument("sweep", metavar="SWEEP", nargs="?", default="", help="logger.group of the runs; else all of them")
    options = parser.parse_args(arguments)
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        saved = workspace(options.entity, options.project, options.sweep)
    except ImportError:
        print("error: wandb-workspaces is not installed; try: pip install -e '.[dashboard]'", file=sys.stderr)
        return 2
    saved.save()
    print(saved.url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
