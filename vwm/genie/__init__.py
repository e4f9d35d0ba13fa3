"""Genie (arXiv 2402.15391): actions learned from unlabelled video, and a masked dynamics transformer."""
