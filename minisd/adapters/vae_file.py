"""VAE files: another autoencoder in place of the model's own, for its better decoder."""

from pathlib import Path

from minisd.adapters.handle import Handle
from minisd.checkpoints.load import load_vae
from minisd.pipeline import StableDiffusion
from minisd.vae import VAE


class SwappedVAE(Handle):
    """The model has another autoencoder until remove()."""

    def __init__(self, sd: StableDiffusion, vae: VAE):
        super().__init__([])
        self.sd, self.before, self.removed = sd, sd.vae, False
        vae.brought_by = self
        sd.vae = vae

    def remove(self) -> None:
        """Put back the one from before, and where that is to go as well, the one before it.

        An autoencoder that was swapped in later stays until its own handle is removed.
        """
        self.removed = True
        while (handle := getattr(self.sd.vae, "brought_by", None)) and handle.removed:
            self.sd.vae = handle.before


def swap_vae(sd: StableDiffusion, path: str | Path) -> SwappedVAE:
    """Encode and decode with the autoencoder of a VAE file, until the handle is removed.

    path: a file in the original's layout or diffusers', or diffusers' folder, of the sizes of the
        model's own
    Latents have the scale that the config.json next to it says, else the model's own.
    Raises ValueError, and leaves the model as it is, for any other file and for a setting that
    minisd's VAE does not have.
    """
    return SwappedVAE(sd, load_vae(path, sd.config.vae, sd.device, sd.dtype))
