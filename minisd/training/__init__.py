"""How networks are trained. Read in this order:

vae          the autoencoder's loss
diffusion    the noise predictor's loss, the most important lines here
loop         one training step, and what happens around it
adapters     LoRA, textual inversion, hypernetwork, ControlNet
wider_unet   more input channels, for inpainting and depth
classifier   the classifier of noisy latents
depth        the small depth estimator

muon (the optimizer), run_folder (state and log), minutes (steps that fit into some minutes),
interrupt, threads and distributed serve the loop. What the mini is trained on is in minisd/mini.
"""
