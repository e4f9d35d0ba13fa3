"""The one step interface over every dynamics model, its bundles, and its faces: Gymnasium, TorchRL, Stable-Baselines3."""
