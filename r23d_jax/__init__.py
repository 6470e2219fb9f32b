"""Video action recognition in JAX/Flax: R(2+3)D and the whole R(2+1)D family."""

__version__ = "0.1.0"
