"""Adapters change the networks of a model. For each adapter, there is a handle that removes it.
The modules in reading order: handle (what all adapters return), lora, textual_inversion,
hypernetwork, controlnet, vae_file and classifier (guidance by a classifier of noisy latents).
"""
