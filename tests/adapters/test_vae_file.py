"""VAE files: another autoencoder takes the place of the model's own, and leaves it again."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from minisd.adapters.vae_file import swap_vae
from minisd.checkpoints import names
from minisd.checkpoints.load import load_vae
from minisd.checkpoints.write import save_vae
from tests.helpers.reference_networks import randomise
from tests.helpers.side_by_side import relative_error

END_TO_END = 1e-4  # float32, largest error over the reference's spread


@pytest.mark.parametrize("layout", ["original", "prefixed", "diffusers"])
def test_a_vae_file_replaces_the_autoencoder(pair_of, tmp_path, layout):
    ours, theirs = pair_of
    other = type(theirs.vae)(**theirs.vae.config)
    randomise(other, gain=1.0, seed=9)
    path = tmp_path / "vae.safetensors"
    state = other.state_dict()
    if layout != "diffusers":
        table = names.flat_rows(names.vae_rows(ours.config.vae))
        state = names.to_official(names.from_official(state, table, "diffusers"), table, "original")
        state |= {"loss.logvar": torch.ones(1)}
    if layout == "prefixed":
        state = {f"first_stage_model.{key}": tensor for key, tensor in state.items()}
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    z = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    before = ours.vae
    with swap_vae(ours, path), torch.no_grad():
        expected = other.decode(z / 0.18215).sample
        assert relative_error(ours.decode(z), expected) < END_TO_END
    assert ours.vae is before


def test_swapped_autoencoders_go_in_any_order(sd, tmp_path):
    original = sd.vae
    save_vae(tmp_path / "vae.safetensors", original)
    first = swap_vae(sd, tmp_path / "vae.safetensors")
    second = swap_vae(sd, tmp_path / "vae.safetensors")
    top = sd.vae
    first.remove()
    assert sd.vae is top
    second.remove()
    assert sd.vae is original


def test_an_autoencoder_of_another_size_is_refused(sd, tmp_path):
    save_vae(tmp_path / "vae.safetensors", sd.vae)
    smaller = replace(sd.config.vae, channels=(32, 32, 64))
    with pytest.raises(ValueError, match=r"of another shape .*made for another model"):
        load_vae(tmp_path / "vae.safetensors", smaller)
    save_file({"a": torch.ones(1)}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="is not a VAE file"):
        swap_vae(sd, tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "vae.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match="the download was cut off"):
        swap_vae(sd, tmp_path / "cut.safetensors")
