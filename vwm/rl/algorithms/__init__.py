"""Dreamer, PlaNet, Dyna-Q, PETS, MBPO, SAC, TD-MPC2, MuZero, PPO, World Models, imagination."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
