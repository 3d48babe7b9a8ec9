"""The papers' tasks as Gymnasium environments. ``import sb3_delight`` registers their ids; modules load when made.

In a process that has not imported the package (``SubprocVecEnv``), name it before the id:
``sb3_delight:sb3_delight/TokenReversal-v0``.
"""

from gymnasium import register

__all__: list[str] = []

register("sb3_delight/ContextualBandit-v0", "sb3_delight.envs.bandit:ContextualBandit")
register("sb3_delight/Digits-v0", "sb3_delight.envs.digits:Digits")
register("sb3_delight/TokenReversal-v0", "sb3_delight.envs.token_reversal:TokenReversal")
