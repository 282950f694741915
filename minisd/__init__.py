"""Stable Diffusion, written by hand in plain PyTorch."""
