"""The version of vwm, which is stored in bundles and reports."""

VERSION = "0.1.0"
