"""Compact latent worlds: small states that recur, made to be imagined in."""
