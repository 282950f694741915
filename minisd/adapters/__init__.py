"""Adapters change the networks of a model. Each comes with a handle that removes the adapter again.

The modules in reading order: handle (what all adapters return), lora, textual_inversion,
hypernetwork, controlnet, vae_file and classifier (guidance by a classifier of noisy latents).
"""
