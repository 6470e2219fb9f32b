"""The defaults of every field, for a command that names all the others, as the one in a model card does.

    python launch.py --config=configs/defaults.py --config.model.family=r3d --config.model.depth=18

Hardware: that of the network. Result: none of its own.
"""

from r23d_jax.config import Config, ConfigError


def get_config(arg: str = "") -> Config:
    """A config without a change; there are no variants."""
    if arg:
        raise ConfigError(f"configs/defaults.py:{arg}: has no variants")
    return Config()
