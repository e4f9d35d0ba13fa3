"""The one step interface over every dynamics model, its bundles, and its Gymnasium, TorchRL and SB3 faces."""
