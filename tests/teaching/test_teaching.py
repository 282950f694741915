"""The tools of the lessons: figures, questions, and the normal form of notebooks."""

import base64
import io
import itertools

import matplotlib
import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from docs.make import contact_sheet, notebooks
from minisd import teaching
from minisd.checkpoints.registry import OFFICIAL
from minisd.config import UNetConfig
from minisd.files.pictures import to_pil
from minisd.teaching import plot, self_test
from minisd.teaching.picture_grid import paste_grid
from minisd.teaching.plot import canvas, charts, diagram, flow
from minisd.teaching.plot import picture_figures as pictures
from minisd.teaching.predict import Guess, buttons, predict
from minisd.trace import trace
from minisd.unet import UNet


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def in_notebook(monkeypatch):
    """Pretend that a kernel runs, and collect everything that it would show."""
    shown = []
    monkeypatch.setattr(canvas, "in_notebook", lambda: True)
    monkeypatch.setattr(canvas, "display", shown.append)
    return shown


def shot(figure):
    return np.asarray(canvas.as_image(figure)).astype(int)


# ---- the package ------------------------------------------------------------------------------


def test_quick_and_headless_follow_the_environment(monkeypatch):
    for variable, asked in {
        "MINISD_QUICK": teaching.is_quick,
        "MINISD_HEADLESS": teaching.is_headless,
    }.items():
        monkeypatch.delenv(variable, raising=False)
        assert not asked()
        monkeypatch.setenv(variable, "0")
        assert not asked()
        monkeypatch.setenv(variable, "1")
        assert asked()


def test_official_names_the_first_model_that_is_here(tmp_path, monkeypatch):
    monkeypatch.setenv("MINISD_WEIGHTS", str(tmp_path))
    assert teaching.official("sd15", "sd21") is None
    (tmp_path / "sd21").mkdir()
    (tmp_path / "sd21" / OFFICIAL["sd21"].file).touch()
    assert teaching.official("sd15", "sd21") == "sd21"


# ---- questions --------------------------------------------------------------------------------

SENTENCES = {"a": "Too few.", "b": "Just so.", "c": "Too many."}


def guess():
    return Guess("How many?", {"a": "one", "b": "two", "c": "three"})


def test_a_right_guess_hears_only_why():
    asked = guess()
    asked.choose("b")
    assert asked.verdict("b", **SENTENCES) == "You were right: **b) two.** Just so."


def test_a_wrong_guess_hears_what_is_wrong_with_it_and_what_is_right():
    asked = guess()
    asked.choose("c")
    words = asked.verdict("b", **SENTENCES)
    assert "You said **c) three.** Too many." in words and "**b) two.** Just so." in words
    assert "Too few." not in words


def test_without_a_guess_every_option_is_explained():
    words = guess().verdict("b", **SENTENCES)
    assert words.startswith("The answer is **b) two.**")
    assert all(sentence in words for sentence in SENTENCES.values())


def test_a_question_must_be_answerable():
    with pytest.raises(ValueError, match="two options"):
        predict("How many?", a="one")
    with pytest.raises(ValueError, match="no option 'd'"):
        guess().choose("d")
    with pytest.raises(ValueError, match="needs a sentence"):
        guess().verdict("b", a="Too few.", b="Just so.")
    with pytest.raises(ValueError, match="the answer must be an option"):
        guess().verdict("d", **SENTENCES)


def test_predict_prints_outside_a_notebook_and_keeps_the_answer(capsys):
    asked = predict("How many?", a="one", b="two")
    assert "How many?" in capsys.readouterr().out
    asked.choose("a")
    asked.reveal("b", a="Too few.", b="Just so.")
    assert "You said a) one. Too few." in capsys.readouterr().out


def test_the_buttons_keep_the_choice():
    asked = guess()
    _, radio = buttons(asked, pytest.importorskip("ipywidgets")).children
    assert radio.value is None and asked.chosen is None
    radio.value = "c"
    assert asked.chosen == "c"


# ---- showing ----------------------------------------------------------------------------------


def test_a_figure_needs_words(capsys):
    figure = plot.bars({"cat": 0.9, "dog": 0.1})
    with pytest.raises(ValueError, match="alt"):
        plot.show(figure, " ")
    plot.show(figure, "Two bars.")
    assert capsys.readouterr().out == "Two bars.\n"


def test_show_puts_picture_and_words_into_the_notebook(in_notebook):
    plot.show(plot.bars({"cat": 0.9, "dog": 0.1}), "Two bars.")
    bundle, metadata = in_notebook[0]._repr_mimebundle_()
    assert bundle["text/plain"] == metadata["image/png"]["alt"] == "Two bars."
    assert bundle["image/png"].startswith("iVBOR")  # a PNG's first bytes, in base64


def test_a_person_in_jupyter_gets_the_description_as_alt(in_notebook, monkeypatch):
    figure, alt = plot.bars({"cat": 0.9, "dog": 0.1}), 'Two bars, "cat" and "dog".'
    monkeypatch.setenv("MINISD_HEADLESS", "0")
    plot.show(figure, alt)
    html = in_notebook[0]._repr_mimebundle_()[0]["text/html"]
    assert html.startswith('<img alt="Two bars, &quot;cat&quot; and &quot;dog&quot;." src="data:')
    monkeypatch.setenv("MINISD_HEADLESS", "1")
    assert "text/html" not in in_notebook[0]._repr_mimebundle_()[0]


def test_the_projector_doubles_every_figure(generator):
    image = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    usual = shot(plot.pictures(image, ["a cat"]))
    try:
        plot.projector()
        doubled = shot(plot.pictures(image, ["a cat"]))
    finally:
        plot.projector(1)
    assert doubled.shape[:2] == (2 * usual.shape[0], 2 * usual.shape[1])
    assert (doubled[40:, 8:-8][::2, ::2] == usual[20:, 4:-4]).all()


def test_source_shows_the_code_as_it_stands(capsys):
    plot.source(charts.principal_components)
    out = capsys.readouterr().out
    assert out.startswith("```python\n# minisd/teaching/plot/charts.py\ndef principal_components(")
    assert "torch.linalg.svd" in out
    plot.source(Guess.choose)
    assert "\ndef choose(" in capsys.readouterr().out  # the code of a method loses its indentation


def test_the_style_stays_inside():
    before = dict(matplotlib.rcParams)
    plot.lines({"a": [1, 2], "b": [2, 1]}, log="y")
    assert dict(matplotlib.rcParams) == before


def contrast(colour):
    """The contrast ratio of a colour with white (WCAG 2, relative luminance)."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)


def test_the_first_colours_are_distinct_to_the_colour_blind_and_on_white():
    assert len(set(canvas.COLOURS)) == 8
    assert all(contrast(colour) > 2 for colour in canvas.COLOURS[:7])
    # In the eyes of deuteranopes (Viénot, Brettel & Mollon 1999), the first five are different
    matrix = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    rgb = [[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in canvas.COLOURS[:5]]
    seen = (np.array(rgb) ** 2.2) @ matrix.T
    for one, other in itertools.combinations(seen, 2):
        assert np.abs(one - other).max() > 0.08


# ---- pictures ---------------------------------------------------------------------------------


def test_a_grid_says_where_each_picture_is():
    sizes, colours = [(4, 3), (4, 5), (2, 2)], ["red", "lime", "blue"]
    images = [Image.new("RGB", *both) for both in zip(sizes, colours, strict=True)]
    sheet, places = paste_grid(images, columns=2, gap=2, above=7, below=1)
    assert places == [(0, 7), (6, 7), (0, 22)]
    assert sheet.size == (12, 27)  # each row is as tall as its tallest picture
    for image, (left, top) in zip(images, places, strict=True):
        box = (left, top, left + image.width, top + image.height)
        assert sheet.crop(box).getcolors() == image.getcolors()
    counted = {colour: count for count, colour in sheet.getcolors()}
    assert counted[255, 255, 255] == 12 * 27 - (12 + 20 + 4)


def squares(image, times):
    """Each pixel of a picture as a square: h w 3, whole numbers from 0 to 255."""
    pixels = np.asarray(to_pil(image[None])[0]).astype(int)
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def same_as_shown(figure, image, left, top, times):
    """Whether the PNG file of a figure holds this picture, each of its numbers within one level."""
    got = np.asarray(Image.open(io.BytesIO(canvas.png(figure))).convert("RGB")).astype(int)
    want = squares(image, times)
    part = got[top : top + want.shape[0], left : left + want.shape[1]]
    return np.abs(part - want).max() <= 1


@pytest.mark.parametrize(
    "shape, options, step, times",
    [
        ((2, 3, 40, 40), {"size": 40}, 46, 1),
        ((7, 3, 64, 64), {}, 70, 1),  # never below the mini's own 64 pixels
        ((3, 3, 64, 64), {}, 134, 2),
        ((3, 3, 48, 96), {}, 102, 1),
        ((4, 3, 8, 8), {}, 126, 15),  # a latent is as large as a picture
    ],
)
def test_pictures_show_exactly_the_tensor(generator, shape, options, step, times):
    images = torch.randn(*shape, generator=generator)
    figure = plot.pictures(images, **options)
    for i, image in enumerate(images):
        assert same_as_shown(figure, image, 3 + step * i, 0, times), i


def test_tables_show_exactly_the_tensor(generator):
    rows = torch.randn(2, 5, 3, 64, 64, generator=generator)
    figure = plot.table({"one": rows[0], "two": rows[1]}, list("abcde"))
    margin = int(3 * pictures.LETTER_WIDTH) + 2 * pictures.GAP
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            assert same_as_shown(figure, image, margin + 70 * c, 17 + 70 * r, 1), (r, c)


def test_channels_and_attention_show_exactly_the_tensor(generator):
    picture = torch.randn(3, 64, 64, generator=generator)
    latent = torch.randn(4, 16, 16, generator=generator)
    figure = plot.channels(latent, picture=picture)
    assert same_as_shown(figure, picture, 3, 17, 1)
    peak = latent.abs().max()
    colours = matplotlib.colormaps["RdBu_r"]((latent / (2 * peak) + 0.5).numpy())[..., :3]
    for c, channel in enumerate(torch.as_tensor(colours) * 2 - 1):
        channel = channel.permute(2, 0, 1)
        assert same_as_shown(figure, channel, 3 + 70 * (c + 1), 17, 4), c  # as large as the picture
    seen = plot.attention(picture, [torch.rand(8, 8, generator=generator)], ["cat"])
    assert same_as_shown(seen, picture, 3, 17, 2)


def test_a_slider_shows_exactly_the_tensor(generator, in_notebook, monkeypatch):
    images = torch.randn(3, 1, 3, 64, 64, generator=generator)
    monkeypatch.setenv("MINISD_HEADLESS", "1")
    plot.slider(lambda i: plot.pictures(images[i]), "i", [0, 1, 2], "Three pictures.")
    got = np.asarray(Image.open(io.BytesIO(in_notebook[0].content))).astype(int)
    for i, image in enumerate(images):
        assert np.abs(got[134 * i : 134 * i + 128, 3:131] - squares(image[0], 2)).max() <= 1


def test_rows_break_after_the_columns():
    images = torch.zeros(5, 3, 64, 64)
    assert shot(plot.pictures(images, columns=3, size=64)).shape[:2] == (140, 210)
    assert shot(plot.pictures(images, list("abcde"), columns=3, size=64)).shape[0] == 140 + 2 * 17
    with pytest.raises(ValueError, match="7 pictures of 64 pixels fit in a row, got 8 columns"):
        plot.pictures(torch.zeros(8, 3, 64, 64), columns=8)


@pytest.mark.parametrize("count", [1, 2, 5, 8, 12])
def test_no_row_is_wider_than_512_pixels(count):
    images = torch.zeros(count, 3, 64, 64)
    names = [f"t = {i}" for i in range(count)]
    assert shot(plot.pictures(images, names)).shape[1] <= canvas.WIDTH
    rows = {"euler\nancestral": images, "a long name of a row": images}
    assert shot(plot.table(rows, names)).shape[1] <= canvas.WIDTH


def test_every_kind_of_picture_is_understood():
    grey = torch.linspace(-1, 1, 16).reshape(4, 4)
    assert pictures.as_pil(grey).getpixel((3, 3)) == (255, 255, 255)
    assert pictures.as_pil(torch.zeros(1, 3, 4, 6)).size == (6, 4)
    assert pictures.as_pil(Image.new("L", (6, 4), 9)).getpixel((0, 0)) == (9, 9, 9)
    for wrong in (torch.zeros(2, 3, 4, 4), torch.zeros(4, 8, 8)):
        with pytest.raises(ValueError, match="a picture must have the shape"):
            pictures.as_pil(wrong)
    with pytest.raises(ValueError, match="2 pictures need 2 titles"):
        plot.pictures(torch.zeros(2, 3, 4, 4), ["one"])


def test_channels_show_signs_and_zero():
    latent = torch.zeros(1, 4, 8, 8)
    latent[0, 0], latent[0, 1] = 2.0, -2.0
    got = shot(plot.channels(latent))
    middles = [got[70, 3 + 60 + (512 // 4) * i] for i in range(4)]
    red, blue, *white = middles
    assert red[0] > red[2] + 50 and blue[2] > blue[0] + 50
    assert all(abs(each - 247).max() < 6 for each in white)


def test_attention_is_brightest_where_the_map_is():
    weights = torch.zeros(8, 8)
    weights[2, 5] = 1
    light = np.asarray(pictures.overlay(torch.ones(3, 64, 64), weights)).sum(axis=2)
    down, across = np.unravel_index(light.argmax(), light.shape)
    assert (down // 8, across // 8) == (2, 5)


def test_together_a_weak_word_stays_dark():
    maps = torch.stack([torch.full((8, 8), 1.0), torch.full((8, 8), 0.1)])
    apart = shot(plot.attention(torch.ones(3, 64, 64), maps, ["cat", "on"]))
    together = shot(plot.attention(torch.ones(3, 64, 64), maps, ["cat", "on"], together=True))
    spot = (slice(80, 100), slice(-100, -60))  # inside the last picture
    assert together[spot].mean() < apart[spot].mean() - 40


def value_figure(value):
    return plot.pictures(torch.full((1, 3, 64, 64), float(value)), [str(value)])


def test_a_slider_falls_back_to_three_figures(in_notebook, monkeypatch):
    monkeypatch.setenv("MINISD_HEADLESS", "1")
    plot.slider(value_figure, "shade", [-1, -0.5, 0, 0.5, 1], "Three shades.")
    assert in_notebook[0].alt == "Three shades."
    got = np.asarray(Image.open(io.BytesIO(in_notebook[0].content)).convert("L"))
    third = got.shape[0] // 3
    assert [int(got[third * i + third // 2, 80]) for i in range(3)] == [0, 128, 255]


def test_a_live_slider_draws_what_is_chosen(in_notebook, monkeypatch):
    widgets = pytest.importorskip("ipywidgets")
    monkeypatch.setenv("MINISD_HEADLESS", "0")
    plot.slider(value_figure, "shade", [-1, 0, 1], "Three shades.")
    choice, screen = in_notebook[0].children
    assert isinstance(choice, widgets.SelectionSlider)
    before = screen.value
    choice.value = 1
    assert screen.value != before
    html = canvas.Shown(canvas.png(value_figure(1)), "Three shades.").as_html()
    assert screen.value == html  # as large as a figure without a slider


# ---- charts -----------------------------------------------------------------------------------


def test_lines_hold_the_numbers_and_name_their_ends():
    figure = plot.lines({"one": ([5, 10], [3.0, 1.0]), "two": ([5, 10], [2.0, 1.0])}, marks=True)
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), [[5, 2], [10, 1]])
    assert [text.get_text() for text in axes.texts] == ["one", "two"]
    assert list(axes.get_xticks()) == [5, 10]
    heights = [text.get_position()[1] for text in axes.texts]
    assert (
        abs(heights[0] - heights[1]) * axes.bbox.height >= 15
    )  # the curves end at one place, but their names do not overlap
    colours = [line.get_color() for line in axes.lines]
    assert [text.get_color() for text in axes.texts] == colours


def test_bars_hold_the_numbers():
    (axes,) = plot.bars({"cat": 0.9, "dog": 0.1}).axes
    assert [bar.get_width() for bar in axes.patches] == [0.9, 0.1]
    assert [text.get_text() for text in axes.texts] == ["0.90", "0.10"]
    (axes,) = plot.bars({"seed 0": [0.9, 0.1], "seed 1": [0.2, 0.8]}, parts=["cat", "dog"]).axes
    assert [bar.get_x() for bar in axes.patches] == [0, 0, 0.9, 0.2]


def test_a_scatter_holds_the_points_and_has_one_scale():
    figure = plot.scatter({"near": ([1, 2], [3, 4]), "far": ([8.0], [9.0])}, "cat", "dog")
    (axes,) = figure.axes
    points = [one.get_offsets().tolist() for one in axes.collections]
    assert points == [[[1, 3], [2, 4]], [[8, 9]]]
    assert axes.get_xlim() == axes.get_ylim() and axes.get_xlim()[0] == 0


def test_the_time_axis_has_round_times_and_ends_clean():
    times = [999, 600, 300, 100, -1]
    (axes,) = flow.flow(torch.zeros(5, 3), times).axes
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert names == ["999", "250", "500", "750", "clean"]
    at = dict(zip(names, axes.get_xticks(), strict=True))
    assert at["999"] == 0 and at["clean"] == 4 and at["250"] == pytest.approx(2.25)


def test_clouds_may_lie_in_wide_panels():
    figure = flow.groups({"points": (torch.rand(9, 2), None)}, columns=1, reach=(2, 1))
    (axes,) = figure.axes
    assert axes.get_xlim() == (-2, 2) and axes.get_ylim() == (-1, 1)


def test_a_signed_heat_map_has_its_middle_at_zero():
    figure = plot.heat(torch.tensor([[-1.0, 3.0]]), ["row"], ["a", "b"], signed=True)
    image = figure.axes[0].images[0]
    assert image.get_clim() == (-3, 3)
    assert [text.get_text() for text in figure.axes[0].texts] == ["-1.00", "3.00"]
    assert not plot.heat(torch.rand(20, 20)).axes[0].texts  # there is no room for numbers


def test_flattened_keeps_distances_of_flat_points(generator):
    flat = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(9, 9, generator=generator, dtype=torch.float64))
    spread_out = flat @ turn[:2]
    torch.testing.assert_close(
        torch.cdist(
            charts.principal_components(spread_out), charts.principal_components(spread_out)
        ),
        torch.cdist(flat, flat),
    )
    torch.testing.assert_close(
        charts.principal_components(spread_out), charts.principal_components(spread_out + 5)
    )


def test_the_name_of_a_difference_stands_at_the_middle_of_its_arrow():
    one, other = torch.tensor([3.0, 0]), torch.tensor([3.0, 4])
    (axes,) = plot.vectors({"one": one, "other": other, "difference": (one, other)}).axes
    places = {words.get_text(): tuple(words.xy) for words in axes.texts}
    assert places["other"] == (3, 4)
    assert places["difference"] == (3, 2)


def test_words_of_a_map_do_not_lie_on_each_other():
    vectors = torch.tensor([[0.0, 0, 0], [0.001, 0, 0], [5, 3, 1], [5, -3, 1]])
    (axes,) = plot.embedding_map(vectors, ["cat", "kitty", "apple", "red"]).axes
    offsets = [text.xyann for text in axes.texts[:2]]
    assert abs(offsets[0][1] - offsets[1][1]) >= 13


def test_the_plane_keeps_lengths_and_angles(generator):
    uncond, cond = torch.randn(2, 1, 4, 8, 8, generator=generator, dtype=torch.float64)
    arrows = {"u": uncond, "c": cond, "g": (uncond, uncond + 3 * (cond - uncond))}
    ends = charts.project_arrows(arrows)
    for name, whole in {"u": uncond, "c": cond, "g": 3 * (cond - uncond)}.items():
        tail, head = ends[name]
        assert np.linalg.norm(head - tail) == pytest.approx(whole.norm().item())
    products = [ends["u"][1] @ ends["c"][1], (uncond * cond).sum().item()]
    assert products[0] == pytest.approx(products[1])


def test_arrows_in_the_plane_stay_as_they_are():
    ends = charts.project_arrows({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 1.0])})
    np.testing.assert_array_equal(ends["a"], [[0, 0], [1, 2]])


# ---- diagrams ---------------------------------------------------------------------------------


def test_the_unet_is_drawn_from_its_modules_and_shapes():
    config = UNetConfig(
        channels=(8, 16, 24),
        attention=(True, True, False),
        res_blocks=2,
        heads=2,
        norm_groups=4,
        context_dim=6,
    )
    network = UNet(config)
    with trace(network) as t:
        network(torch.zeros(1, 4, 16, 16), torch.zeros(1), torch.zeros(1, 5, 6))
    figure = diagram.unet(network, t, prefix="")
    words = [text.get_text() for text in figure.axes[0].texts]
    assert "conv_in\n1 8 16 16" in words and "conv_out\n1 4 16 16" in words
    assert "down.1: 2 x\n(ResBlock, attention)\n1 16 8 8" in words
    assert "down.2: 2 x\nResBlock\n1 24 4 4" in words
    assert "up.0: 3 x\nResBlock\n1 24 4 4" in words
    assert "up.2: 3 x\n(ResBlock, attention)\n1 8 16 16" in words
    assert "downsample\n1 8 8 8" in words and "upsample\n1 16 16 16" in words
    # mid reads both inputs; so does each level, but the lowest one has no attention
    assert words.count("t") == 7 and words.count("context") == 5 and words.count("x") == 1
    assert words.count("1 skip") == 3 and words.count("2 skips") == 3


def test_each_box_of_the_way_up_gets_as_many_skips_as_its_blocks_read():
    config = UNetConfig(
        channels=(8, 16),
        attention=(True, True),
        res_blocks=3,
        heads=2,
        norm_groups=4,
        context_dim=6,
    )
    network = UNet(config)
    with trace(network) as t:
        network(torch.zeros(1, 4, 6, 6), torch.zeros(1), torch.zeros(1, 5, 6))
    _, arrows = diagram.unet_boxes(network, t, "")
    skips = [(tail, head, int(words[0][0])) for tail, head, *words in arrows if words]
    assert skips[:2] == [("in", "up.1", 1), ("down.0", "up.1", 3)]
    assert ("down.0.downsample", "up.0", 1) in skips
    for i, up in enumerate(network.up):
        assert sum(count for _, head, count in skips if head == f"up.{i}") == len(up.skip)


def test_an_arrow_to_nowhere_is_an_error():
    with pytest.raises(KeyError):
        plot.boxes({"a": plot.Box(50, 50, "a")}, [("a", "b")], 100)


def test_rows_of_the_same_letters_end_at_the_same_place_and_new_pieces_stand_out():
    rows = {"characters": ["c", "a", "t</w>"], "merge 0": ["ca", "t</w>"], "twice": ["ca\n1"]}
    (axes,) = plot.bricks(rows, {"merge 0": [0]}).axes
    boxes = axes.patches
    ends = [box.get_x() + box.get_width() for box in boxes]
    assert ends[2] == pytest.approx(ends[4])
    assert boxes[3].get_edgecolor() != boxes[4].get_edgecolor()
    assert boxes[5].get_width() == pytest.approx(boxes[3].get_width())  # the longest line counts
    assert {text.get_text() for text in axes.texts} >= {"merge 0", "ca", "t</w>"}


# ---- the self-test -----------------------------------------------------------------------------


def test_the_self_test_says_where_to_start():
    right = "".join(question.answer for question in self_test.SELF_TEST)
    assert self_test.advice(right).startswith("7 of 7 are right. Start with lesson 01")
    assert "part 7, *Sums of Gaussians*: lesson 01 needs it" in self_test.advice(right[:-1] + "?")
    late = self_test.advice(right[:5] + "?" + right[6:])
    assert "part 6, *Softmax*" in late and "Lesson 01 needs none of them" in late
    assert self_test.advice("?" * 7).count("- part") == 7
    with pytest.raises(ValueError, match="write 7 letters"):
        self_test.advice("abc")


# ---- notebooks --------------------------------------------------------------------------------


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def notebook_with(*outputs):
    return new_notebook(cells=[new_markdown_cell("# A"), new_code_cell("1", outputs=list(outputs))])


def test_normal_merges_prints_and_drops_what_only_one_run_has():
    made = notebook_with(
        stream("a\n"),
        stream("b\n"),
        new_output("display_data", data={notebooks.WIDGET: {}, "text/plain": "Box()"}),
        new_output("display_data", data={"image/png": "AB\nCD\n"}, metadata={"needs": "x"}),
    )
    made.cells[1].metadata = {"tags": ["peaks"], "execution": {"iopub.execute_input": "2026"}}
    made.cells[1].execution_count = 17
    made.metadata = {"widgets": {"state": {}}}
    got = notebooks.normalize(made)
    printed, picture = got.cells[1].outputs
    assert printed.text == "a\nb\n" and picture.data["image/png"] == "ABCD"
    assert got.cells[1].metadata == {"tags": ["peaks"]} and got.cells[1].execution_count == 1
    assert "widgets" not in got.metadata and picture.metadata == {}
    nbformat.validate(got)
    assert notebooks.blemishes(got) == []
    assert nbformat.writes(notebooks.normalize(got)) == nbformat.writes(got)


def test_ids_follow_from_the_text_and_are_unique():
    cells = [new_code_cell(text) for text in ("1", "2", "1")]
    one, two = (notebooks.normalize(new_notebook(cells=cells)) for _ in range(2))
    ids = [cell.id for cell in one.cells]
    assert ids == [cell.id for cell in two.cells] and len(set(ids)) == 3
    cells[1].source = "3"
    changed = notebooks.normalize(new_notebook(cells=cells))
    same = [cell.id == old for cell, old in zip(changed.cells, ids, strict=True)]
    assert same == [True, False, True]


@pytest.mark.parametrize(
    "text, what",
    [
        ("<object at 0x7f3a2c1d>", "an address"),
        ("saved to /home/me/x.png", "a path"),
        (r"saved to C:\x.png", "a path"),
        ("took 3.2 s, 15 ms", "a time"),
        ("<Figure size 640x480 with 1 Axes>", "a figure without words"),
        ("0.123456", "more than four decimals"),
    ],
)
def test_blemishes_are_found(text, what):
    found = notebooks.blemishes(notebooks.normalize(notebook_with(stream(text))))
    assert len(found) == 1 and what in found[0]


def test_warnings_and_errors_are_blemishes():
    got = notebooks.normalize(notebook_with(stream("UserWarning", "stderr")))
    assert any("a warning" in each for each in notebooks.blemishes(got))
    error = new_output("error", ename="ValueError", evalue="no", traceback=[])
    assert notebooks.blemishes(notebooks.normalize(notebook_with(error)))


def test_named_constants_may_have_all_their_digits():
    clean = notebooks.normalize(notebook_with(stream("scale 0.18215, beta 0.00085, mean 0.1234")))
    assert notebooks.blemishes(clean) == []


def test_an_edited_notebook_is_not_in_the_normal_form():
    made = notebooks.normalize(notebook_with(stream("a")))
    made.cells[1].source = "2"
    assert "not in the normal form" in notebooks.blemishes(made)[0]


def test_execute_runs_in_a_fresh_kernel_that_is_headless():
    code = "from minisd.teaching import is_headless, plot\nassert is_headless()\n"
    code += "plot.say('**A**')\nx = 1"
    made = new_notebook(cells=[new_code_cell(code), new_code_cell("print(x)")])
    done = notebooks.normalize(notebooks.execute(made))
    assert done.cells[0].outputs[0].data["text/markdown"] == "**A**"
    assert done.cells[1].outputs[0].text == "1\n"
    assert not made.cells[1].outputs  # the notebook that was passed in is unchanged


def test_written_files_are_the_same_on_every_system(tmp_path):
    path = tmp_path / "00_a.ipynb"
    made = notebooks.normalize(notebook_with(stream("é\n")))
    notebooks.write(made, path)
    content = path.read_bytes()
    assert b"\r" not in content and content.endswith(b"}\n") and "é".encode() in content
    assert nbformat.writes(notebooks.read(path)) == nbformat.writes(made)


def test_notebooks_are_chosen_by_how_they_begin(tmp_path):
    for name in ("0b_primer", "00_tour", "01_schedule"):
        (tmp_path / f"{name}.ipynb").touch()
    names = [path.stem for path in notebooks.select_paths([], tmp_path)]
    assert names == ["00_tour", "0b_primer", "01_schedule"]
    assert [path.stem for path in notebooks.select_paths(["0b"], tmp_path)] == ["0b_primer"]
    with pytest.raises(ValueError, match="begins with '42'"):
        notebooks.select_paths(["42"], tmp_path)


# ---- contact sheets ---------------------------------------------------------------------------


def test_a_contact_sheet_shows_every_figure_once(tmp_path):
    shades = ["red", "green", "blue", "yellow", "black"]
    cells = []
    for number, shade in enumerate(shades):
        content = io.BytesIO()
        Image.new("RGB", (960 if number == 0 else 300, 100), shade).save(content, format="png")
        data = {"image/png": base64.b64encode(content.getvalue()).decode(), "text/plain": shade}
        cell = new_code_cell("show()", outputs=[new_output("display_data", data)])
        cell.metadata["tags"] = [shade]
        cells.append(cell)
    found = contact_sheet.figures(new_notebook(cells=[new_markdown_cell("text"), *cells]))
    assert [name for name, _ in found] == [f"{i + 1} {shade}" for i, shade in enumerate(shades)]
    whole = contact_sheet.sheet(found)
    counted = dict((colour, count) for count, colour in whole.getcolors(1 << 24))
    assert counted[255, 0, 0] == 480 * 50  # resized to the width of a page
    assert counted[0, 0, 255] == 300 * 100
