"""The W&B project's saved view, as code: quality, cost and head budgets of all evaluations side by side.

Needs the extra `dashboard` (wandb-workspaces). The names of the metrics are those of `evals.run.tracking.summarize`.
"""

from __future__ import annotations

NAME = "Score against budget"


def make_dashboard(entity: str | None, project: str, save: bool) -> str:
    """Save the view and return its address; or (save=False, which needs no key) its content as JSON.

    Raises ImportError without the extra, RuntimeError if W&B refuses.
    """
    try:
        import wandb
        from wandb_workspaces import workspaces
        from wandb_workspaces.reports import v2
    except ImportError as e:
        raise ImportError("the dashboard needs wandb-workspaces: pip install -e '.[dashboard]'") from e

    def metric(name: str) -> v2.SummaryMetric:
        # Bare strings would be taken for something else, silently.
        return v2.SummaryMetric(name)

    budget, method = v2.Config("budget"), v2.Config("method")
    sections = [
        workspaces.Section(
            name="Quality",
            is_open=True,
            panels=[
                v2.ScatterPlot(title="Score by budget", x=budget, y=metric("score/mean")),
                v2.ScatterPlot(title="Score by cache share", x=metric("cost/cache_share"), y=metric("score/mean")),
                v2.BarPlot(title="Score by method", metrics=[metric("score/mean")], groupby=method),
                v2.WeavePanelSummaryTable(table_name="predictions"),
            ],
        ),
        workspaces.Section(
            name="Cost",
            panels=[
                v2.BarPlot(title="Cache bytes", metrics=[metric("cost/cache_bytes")], groupby=method),
                v2.BarPlot(title="Time to first token", metrics=[metric("cost/ttft_s")], groupby=method),
                v2.BarPlot(title="Time per token", metrics=[metric("cost/tpot_s")], groupby=method),
                v2.BarPlot(title="Peak memory", metrics=[metric("cost/peak_bytes")], groupby=method),
            ],
        ),
        workspaces.Section(name="Heads", panels=[v2.MediaBrowser(media_keys=["heads/kept_share"])]),
        workspaces.Section(name="Progress", panels=[v2.LinePlot(title="Running score", y=["running/score"])]),
    ]
    shown = workspaces.RunsetSettings(groupby=[workspaces.Config("method")], filters="Config('job') = 'evaluate'")
    try:
        # Without an entity the address cannot be made; W&B's own default needs a key, the printed view does not.
        owner = entity or (wandb.Api().default_entity if save else None) or "-"
        view = workspaces.Workspace(entity=owner, project=project, name=NAME, sections=sections, runset_settings=shown)
        if not save:
            return view._to_model().model_dump_json(by_alias=True)
        view.save()
    except (wandb.errors.Error, wandb.errors.CommError) as e:
        raise RuntimeError(f"W&B: {' '.join(str(e).split())}") from e
    return view.url
