"""Is DG more than the entropy bonus that it holds? The policy gradient with a bonus beside DG at the temperature of the
same size.

To first order DG is half the policy gradient and a bonus of ``Var(A) / (4 temperature)``: beside a whole one, and on
advantages of unit size, ``1 / (2 temperature)``.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import plotting
import records
from control_tasks import LABELS, MINATAR, MUJOCO, Config
from matplotlib.figure import Figure
from records import Array, Runs, Statistic

from sb3_delight.zoo import plots

#: figure -> its tasks
TASKS = {
    "bonus": [MINATAR[f"MinAtar/{game}-v1"] for game in ("Breakout", "Asterix", "SpaceInvaders")],
    "bonus_mujoco": [MUJOCO[f"{robot}-v5"] for robot in ("HalfCheetah", "Hopper", "Walker2d")],  # under PPO's clip
}
BONUSES = (0.01, 0.02, 0.05, 0.1, 0.2)
METRICS = {"deterministic": "likeliest actions", "sampled": "sampled actions"}


def family(config: Config) -> str:
    return config.method.split("_")[0]


def temperature(size: float) -> float:
    """At which DG holds a bonus of this size; the same function finds the bonus of a temperature."""
    return 1 / (2 * size)


def bonus(config: Config) -> float:
    return config.ent_coef if family(config) == "pg" else temperature(float(config.temperature))


def arms(known: list[Config]) -> list[Config]:
    """The policy gradient without and with each bonus, and DG with each.

    :param known: arms of the task's own figure, which are these where they have the settings: their runs are shared
    """
    plain, gated = (next(arm for arm in known if arm.method == method) for method in ("pg", "dg"))
    same = {replace(arm, method=family(arm)): arm for arm in known}
    wanted = [plain, *(replace(plain, ent_coef=size) for size in BONUSES)]
    wanted += [replace(gated, temperature=temperature(size)) for size in BONUSES]
    return [same.get(arm, arm) for arm in wanted]


def draw(runs: Runs, statistic: Statistic) -> Figure:
    """Return against the bonus, a column for each task, a row for each way to act. Prints the table."""
    envs = list(dict.fromkeys(config.env for config in runs.configs))
    figure, panels = plotting.panels(len(METRICS) * len(envs), width=4.0, height=3.4, rows=len(METRICS))
    for axes, (metric, env) in zip(panels, itertools.product(METRICS, envs), strict=True):
        mine = [config for config in runs.configs if config.env == env]
        scores: dict[tuple[str, float], Array] = defaultdict(lambda: np.zeros(0))  # of what was not run
        scores |= {(family(config), bonus(config)): runs.late(config, metric) for config in mine}
        title = f"{env.removeprefix('MinAtar/')}, {METRICS[metric]}"
        print_table(title, scores, statistic)
        for method in ("pg", "dg"):
            samples = [scores[method, size] for size in BONUSES]
            name, colour, _ = LABELS[method]
            plotting.points(axes, BONUSES, samples, name, statistic, color=colour)
        plain = scores["pg", 0.0]
        if plain.size:
            plotting.level(axes, plain, "policy gradient, no bonus", statistic, color=LABELS["pg"][1])
        axes.set(xscale="log", title=title, xlabel="entropy bonus (below: DG's temperature)", ylabel="return")
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.set_xticks(BONUSES, [f"{size:g}\n{temperature(size):g}" for size in BONUSES])
        axes.minorticks_off()
    plotting.legend_below(figure, panels[0], 3)
    return figure


def print_table(title: str, scores: Mapping[tuple[str, float], Array], statistic: Statistic) -> None:
    print(f"{title}: bonus, policy gradient, DG, probability that a run of DG is above")
    for size in BONUSES:
        pg, dg = scores["pg", size], scores["dg", size]
        words = [records.in_words(each, statistic) for each in (pg, dg)]
        if pg.size and dg.size:
            chance, low, high = plots.improvements({title: (dg[:, None], pg[:, None])})[title]
            words.append(f"{chance:.2f} [{low:.2f}, {high:.2f}]")
        print(f"    {size:<6g}" + "".join(f"{each:36}" for each in words).rstrip())
