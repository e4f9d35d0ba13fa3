"""The version of vwm, which bundles and reports state."""

VERSION = "0.1.0"
