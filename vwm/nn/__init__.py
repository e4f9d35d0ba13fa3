"""Blocks that every model shares: factored space-time attention with its cache, RoPE, quantizers, masks."""
