"""Evaluation: metrics, rollouts, effect of actions, probes, surprise, planning, reports."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
