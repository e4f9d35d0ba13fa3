"""Where the heads were before other families had them too: what configs and bundles of that time name."""

from vwm.nn.outcomes import OutcomeHeads, Outcomes

__all__ = ["OutcomeHeads", "Outcomes"]
