"""Several threads at once: each gets what it gets alone. The long run is tests.tools.threads."""

import threading
import warnings

import pytest
import torch

import minisd
from minisd.guidance import guided_denoiser, run_network, unconditional_rows
from minisd.schedule import Level
from minisd.trace import trace
from tests.tools.threads import all_jobs, differences, together

NAMES = ("embeddings with words", "loads", "pictures")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    return all_jobs(tmp_path_factory.mktemp("threads"), (80, 8, 12))


@pytest.mark.parametrize("name", NAMES)
def test_all_together_equals_each_alone(jobs, name):
    assert differences(jobs[name]) == 0


def test_drawing_and_loading_at_once(jobs):
    """Networks are built on the meta device: in the thread that loads alone."""
    mixed = [job for name in NAMES for job in jobs[name][:4]]
    assert differences(mixed) == 0


def test_a_thread_that_fails_is_heard():
    def broken():
        raise ValueError("of a thread")

    with pytest.raises(ValueError, match="of a thread"):
        together([broken] * 4)


def test_no_thread_sees_what_another_noted_on_a_context():
    """One denoiser asks without a prompt, the other with one, about the same tensor."""
    context, level, seen = torch.zeros(2, 3, 4), Level(500.0, 1.0), []
    x, ready = torch.zeros(2, 4, 8, 8), threading.Barrier(2)

    def network(x, t, context):
        ready.wait(timeout=10)  # both have noted theirs
        seen.append(unconditional_rows(context))
        return x

    scales = (0, 1)
    denoisers = [guided_denoiser(network, "eps", context, context, scale) for scale in scales]
    threads = [threading.Thread(target=each, args=(x, level)) for each in denoisers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [0, 2] and not hasattr(context, "unconditional")
    assert run_network(lambda x, t, context: x, x, level, context) is not None


def test_what_the_page_says_is_shared_is_shared():
    """docs/api.md, "In several threads": a trace hears every thread's calls."""
    sd = minisd.load("mini")
    with trace(sd, "unet.conv_out") as heard:
        other = threading.Thread(target=lambda: sd.txt2img("a cat", steps=2))
        other.start()
        other.join()
    assert len(heard["unet.conv_out"]) == 2


def test_settings_of_the_process_stay_as_they_were(jobs):
    def settings():
        return (
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.random.get_rng_state().tolist(),
            list(warnings.filters),
        )

    before = settings()
    together(jobs["loads"][:4] + jobs["pictures"][:4])
    assert settings() == before
