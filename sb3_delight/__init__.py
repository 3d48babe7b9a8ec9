"""Delight-gated policy gradients for stable-baselines3."""

from importlib import import_module, util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_delight.dg import DG
    from sb3_delight.kondo_dg import KondoDG
    from sb3_delight.policy_gradient import PolicyGradient

__all__ = ["DG", "KondoDG", "PolicyGradient", "__version__"]

__version__ = "0.1.0"

HOMES = {"DG": "dg", "KondoDG": "kondo_dg", "PolicyGradient": "policy_gradient"}

if util.find_spec("gymnasium"):
    from sb3_delight import envs as envs  # registers their Gymnasium ids


if not TYPE_CHECKING:  # for which it would be an attribute of any name, misspelt ones too

    def __getattr__(name: str) -> Any:
        """The algorithms, once they are asked for: `objectives` and `returns` need nothing but torch."""
        if name not in HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The algorithms too, though not imported yet: for completion and ``help()``."""
    return sorted({*globals(), *__all__})
