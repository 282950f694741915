"""How networks are trained. Read the modules in this order:

vae          the autoencoder's loss
diffusion    the noise predictor's loss: the most important lines of this package
loop         train(), the loop that every training shares
adapters     LoRA, textual inversion, hypernetwork, ControlNet
wider_unet   a U-Net with more input channels, for inpainting and depth
classifier   the classifier of noisy latents
depth        the small depth estimator

The loop uses muon (the optimizer), run_folder (state and log), threads and distributed.
The datasets of the mini are in minisd/mini.
"""
