"""Which learning rate on Ant, where that of the other tasks is too high: the same three for each method.

At .0003 the policy of a million steps grows so narrow that the clip no longer holds its steps: returns rise, and fall
again. These runs have seeds of their own; what the chosen rate is worth, others say.
"""

from dataclasses import replace

import plotting
import records
from control_tasks import FRESH_SEED, LABELS, MUJOCO, Config
from matplotlib.figure import Figure
from records import Runs

TASK = MUJOCO["Ant-v5"]
RATES = (3e-5, 1e-4, 3e-4)
METHODS = ("pg", "pg_entropy", "dg")
LINES = {"pg": "--", "pg_entropy": ":", "dg": "-"}
METRICS = {"deterministic": "mean actions", "sampled": "sampled actions"}


def arms(known: list[Config]) -> list[Config]:
    """Every method at every rate.

    :param known: arms of the task's own figure
    """
    of_method = {arm.method: arm for arm in known}
    return [replace(of_method[method], learning_rate=rate) for rate in RATES for method in METHODS]


def draw(runs: Runs) -> Figure:
    """Curves, a panel for each way to act, and late returns against the rate. Prints these."""
    runs = runs.below(FRESH_SEED)
    figure, panels = plotting.panels(2 * len(METRICS), width=4.2, height=3.6)
    colours = dict(zip(RATES, plotting.shades(len(RATES)), strict=True))
    for place, (metric, acting) in enumerate(METRICS.items()):
        curves, late = panels[place], panels[len(METRICS) + place]
        for config in runs.configs:
            style = {"color": colours[float(config.learning_rate)], "linestyle": LINES[config.method]}
            steps, values = runs.get(config, metric)
            if values.size:
                label = f"{LABELS[config.method][0]}, {config.learning_rate:g}"
                plotting.band(curves, steps / 1e6, values, label, shaded=False, **style)
        print(f"{TASK.env}, {acting}: mean of the last three evaluations")
        for method in METHODS:
            mine = [config for config in runs.configs if config.method == method]
            scores = [runs.late(config, metric) for config in mine]
            for config, values in zip(mine, scores, strict=True):
                print(f"    {LABELS[method][0]:32} {config.learning_rate:<8g} {records.in_words(values)}")
            rates = [float(config.learning_rate) for config in mine]
            name, colour, line = LABELS[method]
            plotting.points(late, rates, scores, name, color=colour, linestyle=line)
        curves.set(title=f"{TASK.env}, {acting}", xlabel="million environment steps", ylabel="return")
        late.set(xscale="log", title=f"late in training, {acting}", xlabel="learning rate", ylabel="return")
        plotting.legend(late)
    plotting.legend_below(figure, panels[0], len(RATES))
    return figure
