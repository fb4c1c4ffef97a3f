"""Text generation as Gymnasium environments. Importing this package registers ``ollm_rl/TextGen-v0``."""

import gymnasium


def register_envs() -> None:
    """Register the environments with Gymnasium, once."""
    if "ollm_rl/TextGen-v0" not in gymnasium.registry:
        gymnasium.register(
            id="ollm_rl/TextGen-v0",
            entry_point="ollm_rl.envs.text_gen:TextGenEnv",
            vector_entry_point="ollm_rl.envs.vector:TextGenVectorEnv",
        )


register_envs()
