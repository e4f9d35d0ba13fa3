"""The one step interface over every dynamics model, its bundles and its Gymnasium faces."""
