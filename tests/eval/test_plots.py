"""Plots contain the given values."""

import numpy as np

from vwm.eval.plots import plot_learning_curves


def test_learning_curves_average_runs_at_steps_where_all_were_evaluated() -> None:
    runs = [{100.0: 1.0, 200.0: 5.0, 250.0: 6.0}, {100.0: 3.0, 200.0: 7.0, 300.0: 9.0}]
    axes = plot_learning_curves({"ours": runs, "unfinished": [{}]}, random=0.5, title="a game").axes[0]
    first, second, mean, *_ = axes.lines
    assert [first.get_xydata().tolist(), second.get_xydata().tolist()] == [[list(p) for p in r.items()] for r in runs]
    assert mean.get_xydata().tolist() == [[100.0, 2.0], [200.0, 6.0]]
    assert set(np.unique(axes.lines[-1].get_ydata())) == {0.5}
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["ours (2)", "unfinished (1)", "random actions"]
