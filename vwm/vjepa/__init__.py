"""Joint-embedding prediction: masked space-time pretraining, frozen features, and worlds in representation space."""
