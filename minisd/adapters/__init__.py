"""Adapters change the network of a model. Each adapter returns a handle that removes it again.

The modules in reading order: handle (what all adapters return), lora, textual_inversion,
hypernetwork, controlnet, vae_file and classifier (guidance by a classifier of noisy latents).
"""
