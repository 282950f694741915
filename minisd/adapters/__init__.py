"""Adapters change the network of a model. Each returns a handle that takes it off again.

In reading order: handle (what all of them return), lora, textual_inversion, hypernetwork,
controlnet, vae_file and classifier (guidance by a classifier of noisy latents).
"""
