"""Text generation as Gymnasium environments. Importing this package registers ``ollm_rl/TextGen-v0``."""

import gymnasium
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def register_envs() -> None:
    """Register the environments with Gymnasium, once."""
    if "ollm_rl/TextGen-v0" not in gymnasium.registry:
        gymnasium.register(
            id="ollm_rl/TextGen-v0",
            entry_point="ollm_rl.envs.text_gen:TextGenEnv",
            vector_entry_point="ollm_rl.envs.vector:TextGenVectorEnv",
        )


register_envs()
