"""The papers' tasks, and MinAtar, as Gymnasium environments.

``import sb3_delight`` registers their ids; modules load when an environment is made.

In a process that has not imported the package (``SubprocVecEnv``), name it before the id:
``sb3_delight:sb3_delight/TokenReversal-v0``.
"""

from gymnasium import register, registry

__all__ = ["MINATAR_GAMES"]

MINATAR_GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")

register("sb3_delight/ContextualBandit-v0", "sb3_delight.envs.bandit:ContextualBandit")
register("sb3_delight/Digits-v0", "sb3_delight.envs.digits:Digits")
register("sb3_delight/TokenReversal-v0", "sb3_delight.envs.token_reversal:TokenReversal")


def _register_minatar() -> None:
    for game in MINATAR_GAMES:
        for version, minimal in ((0, False), (1, True)):
            name = f"MinAtar/{game.title().replace('_', '')}-v{version}"
            if name not in registry:  # the package may have registered it: minatar.gym.register_envs
                arguments = {"game": game, "use_minimal_action_set": minimal}
                register(name, "sb3_delight.envs.minatar:make", kwargs=arguments)


_register_minatar()
