"""Probabilistic ensembles as a family: see ``WorldFamily``."""

from __future__ import annotations

from vwm.core.family import WorldFamily


class PETSFamily(WorldFamily):
    """An ensemble of networks that predict the next vector, which an agent trains and exports."""

    name = "pets"
    title = "PETS"
    simulator_class = "vwm.models.pets.PETSSimulator"
    report = "compounding_error"
