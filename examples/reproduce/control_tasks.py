"""What ``control.py`` runs: the fields of a run, the tasks, and how figures show the methods."""

from dataclasses import dataclass, replace

import plotting


@dataclass(frozen=True)
class Config:
    """One run. Methods of other packages have settings of their own, see :func:`published`."""

    env: str = "HalfCheetah-v5"
    method: str = "dg"
    updates: int = 1_000_000  # environment steps
    evaluations: int = 20
    n_envs: int = 8  # x n_steps = 256 rows an update, learning rate, temperature: those of temperature.py
    n_steps: int = 32
    batch_size: int | None = None
    n_epochs: int = 1
    extra_critic_epochs: int = 0
    learning_rate: float | str = 1e-3
    gamma: float = 0.99
    ent_coef: float = 0.0
    temperature: float | str = 10.0
    surprisal_clip: float | None = 10.0
    advantage_scaling: str = "scale"  # or "standardize", which also centres
    normalize_env: bool = True  # VecNormalize
    clipped: bool = False  # by PPO's ratio
    reuse: int = 0  # rollouts
    reference: float | None = None  # surprisal less that of an action so many standard deviations off the mean
    per_dimension: bool = False  # surprisal and gate
    clip_apart: bool = False  # the gradients of actor and critic, each to max_grad_norm
    width: int = 64  # of two hidden layers
    relu: bool = False
    log_std_init: float = 0.0
    use_sde: bool = False
    cnn: bool = False  # training.MINATAR_POLICY


FRESH_SEED = 10  #: the first of those by which results are judged: those below have chosen settings
MUJOCO = {
    task.env: task
    for task in (
        Config("HalfCheetah-v5"),
        Config("Hopper-v5"),
        Config("Walker2d-v5"),
        Config("Ant-v5"),
        Config("Swimmer-v5", gamma=0.9999),  # gamma: RL-Zoo's for PPO, here and below
        Config("InvertedDoublePendulum-v5", gamma=0.98),
        Config("Reacher-v5", gamma=0.9),
    )
}
# As gates.py, which found them at one seed outside of its sweep.
BREAKOUT = Config("MinAtar/Breakout-v1", updates=2_000_000, n_envs=32, n_steps=8, learning_rate=3e-3, cnn=True)
MINATAR = {
    env: replace(BREAKOUT, env=env, normalize_env=False)
    for env in (f"MinAtar/{game}-v1" for game in ("Breakout", "SpaceInvaders", "Asterix", "Freeway"))
}

LABELS = {
    "ppo": ("PPO, RL-Zoo", plotting.COLOURS["ppo"], "-"),
    "a2c": ("A2C, Tianshou", plotting.COLOURS["half_pg"], "-"),
    "trpo": ("TRPO, RL-Zoo", plotting.COLOURS["pmpo"], "-"),
    "pg": plotting.solid("pg"),
    "pg_entropy": ("policy gradient, entropy bonus", plotting.COLOURS["pg"], "--"),
    "pg_more_entropy": ("policy gradient, entropy bonus .05", plotting.COLOURS["pg"], ":"),
    "pg_clip": ("policy gradient, 4 passes", plotting.COLOURS["pg"], "-."),
    "half_pg": (plotting.NAMES["half_pg"], plotting.COLOURS["pg"], (0, (1, 4))),
    "half_pg_entropy": (
        "half the policy gradient, entropy bonus .025",
        plotting.COLOURS["pg"],
        (0, (3, 1, 1, 1, 1, 1)),
    ),
    "scaled_po": plotting.solid("scaled_po"),
    "dg": plotting.solid("dg"),
    "dg_warm": ("DG, temperature 50", plotting.COLOURS["dg"], "-."),
    "dg_entropy": ("DG, entropy bonus", plotting.COLOURS["dg"], "--"),
    "dg_cool": ("DG, temperature 1", plotting.COLOURS["dg"], (0, (1, 4))),
    "dg_clip": ("DG, 4 passes", plotting.COLOURS["dg"], ":"),
    "kondo_soft": ("Kondo, temperature 10", plotting.COLOURS["kondo"], "-."),
    "kondo_price": ("Kondo, price 0", plotting.COLOURS["kondo"], "-"),
    "kondo_3": ("Kondo, rate .3", plotting.COLOURS["kondo"], "--"),
    "kondo_1": ("Kondo, rate .1", plotting.COLOURS["kondo"], ":"),
    "random_5": ("random rows, rate .5", plotting.COLOURS["random"], "-."),
    "random_5_entropy": ("random rows, rate .5, entropy bonus .025", plotting.COLOURS["random"], (0, (1, 4))),
    "random_3": ("random rows, rate .3", plotting.COLOURS["random"], "--"),
    "random_1": ("random rows, rate .1", plotting.COLOURS["random"], ":"),
    "pg_once": ("policy gradient, one pass", plotting.COLOURS["pg"], ":"),
    "dg_once": ("DG, one pass", plotting.COLOURS["dg"], ":"),
}
#: of those that have no settings for MinAtar
ATARI_LABELS = {"ppo": "PPO, RL-Zoo on Atari", "a2c": "A2C, RL-Zoo on Atari", "trpo": "TRPO, rollouts as that PPO's"}
