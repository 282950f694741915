"""VAE files: an autoencoder with a better decoder replaces the model's own."""

from pathlib import Path

from minisd.adapters.handle import Handle, ListEntry
from minisd.checkpoints.load import load_vae
from minisd.pipeline import StableDiffusion
from minisd.vae import VAE


class SwappedVAE(Handle):
    """Gives a model another autoencoder. remove() puts the previous autoencoder back."""

    def __init__(self, sd: StableDiffusion, vae: VAE):
        super().__init__([ListEntry(sd.swaps, self)])
        self.sd, self.before, self.vae = sd, sd.vae, vae
        sd.vae = vae

    def remove(self) -> None:
        """Put the previous autoencoder back.

        An autoencoder that was swapped in later stays until its own handle is removed.
        """
        if not self.hooks:
            return
        later = self.sd.swaps[self.sd.swaps.index(self) + 1 :]
        following = later[0] if later else None
        if isinstance(following, SwappedVAE) and following.before is self.vae:
            following.before = self.before
        elif self.sd.vae is self.vae:
            self.sd.vae = self.before
        super().remove()
        del self.before, self.vae  # a removed handle must not keep them in memory


def swap_vae(sd: StableDiffusion, path: str | Path) -> SwappedVAE:
    """Replace the model's autoencoder by the autoencoder in a file.

    The new autoencoder stays until the returned handle is removed.

    path: a file in the layout of the original or of diffusers, or a folder of diffusers. The
        autoencoder in the file must have the sizes of the model's own autoencoder

    The scale of the latents is read from the config.json next to the file. If there is no
    config.json, the model's own scale is used.

    Raises ValueError if the file is not a VAE file, or if the file has a setting that minisd's VAE
    does not support. In these cases, the model stays as it is.
    """
    dtype = sd.vae.decoder.conv_in.weight.dtype
    return SwappedVAE(sd, load_vae(path, sd.config.vae, sd.device, dtype))
