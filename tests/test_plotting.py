"""Pictures of comparisons: readable whatever the number of checkpoints and layers."""

import io
import itertools
import shutil
import xml.etree.ElementTree as ET
from functools import partial

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from streamavg import MissingDependencyError, OptionError, OutputError, compare
from streamavg.plotting import check_picture, draw, figure_of
from tests.builders import DIGITS, contents, run_python, write_weights

THREE = [DIGITS / f"epoch-{n}.keras" for n in (18, 19, 20)]
NAMES = {
    "short": lambda i: f"{i}",
    "long": lambda i: f"resnet50-cosine-schedule-batch-256-fold-{i % 5}-epoch-{i:03}-final",
}
BLOCKS = "layers/functional/layers/stage_{}/bottleneck_block_{}/conv2d"


@pytest.fixture(scope="module")
def digits():
    return compare(THREE)


@pytest.fixture
def compared(tmp_path):
    """Compares checkpoints of random values; one of them is far from the rest if asked for."""
    return partial(compared_in, tmp_path)


def compared_in(folder, count, layers, names="short", outlier=None):
    generator = np.random.default_rng(count)
    base = generator.normal(size=(layers, 6))
    paths = []
    for i in range(count):
        step = 5.0 if i == outlier else 0.05
        values = (base + step * generator.normal(size=base.shape)).astype("f4")
        arrays = {BLOCKS.format(k // 9, k): [row] for k, row in enumerate(values)}
        paths.append(write_weights(folder / f"{NAMES[names](i)}.weights.h5", arrays))
    return compare(paths, layer_matrices=False)


def drawn(comparison):
    """The figure, drawn, and what measures its texts."""
    figure = figure_of(comparison)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return figure, canvas.get_renderer()


def boxes(labels, renderer):
    return [label.get_window_extent(renderer) for label in labels if label.get_text()]


def overlapping(extents):
    pairs = itertools.pairwise(extents)
    return [pair for pair in pairs if pair[0].padded(-1).overlaps(pair[1].padded(-1))]


SIZES = [(2, 1), (2, 3), (3, 10), (5, 10), (5, 200), (20, 40), (64, 3)]
LARGE = [(64, 200), (150, 30)]


@pytest.fixture(
    scope="module",
    params=[*SIZES, *(pytest.param(size, marks=pytest.mark.slow) for size in LARGE)],
    ids=lambda size: f"{size[0]} of {size[1]} layers",
)
def picture(request, tmp_path_factory):
    """Figure, renderer and size of a comparison of checkpoints with long names."""
    folder = tmp_path_factory.mktemp("picture")
    return *drawn(compared_in(folder, *request.param, "long")), request.param


class TestLabels:
    def test_do_not_overlap(self, picture):
        figure, renderer, _ = picture
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                assert not overlapping(boxes(axis.get_ticklabels(), renderer))

    def test_are_all_different(self, picture):
        figure, _, (count, _) = picture
        names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert len(set(names)) == len(names) >= min(count, 60)

    def test_of_columns_and_rows_are_the_same_checkpoints(self, picture):
        axes = picture[0].axes[0]
        texts = [[t.get_text() for t in ticks] for ticks in
                 (axes.get_xticklabels(), axes.get_yticklabels())]  # fmt: skip
        assert texts[0] == texts[1]

    def test_leave_out_what_all_layers_share(self, picture):
        labels = [label.get_text() for label in picture[0].axes[2].get_xticklabels()]
        assert not any(label.startswith("layers/functional") for label in labels)

    def test_of_the_checkpoints_are_left_of_the_heatmap(self, picture):
        figure, renderer, _ = picture
        right = figure.axes[0].get_window_extent(renderer).x0
        assert all(box.x1 <= right for box in boxes(figure.axes[0].get_yticklabels(), renderer))

    def test_stay_clear_of_the_title(self, picture):
        figure, renderer, _ = picture
        titles = boxes(figure.texts, renderer)
        assert not overlapping(titles)
        top = max(axes.title.get_window_extent(renderer).y1 for axes in figure.axes)
        top = max(top, *(axes._left_title.get_window_extent(renderer).y1 for axes in figure.axes))
        assert all(box.y0 > top for box in titles)


class TestValues:
    def test_fit_into_their_cells_or_are_left_out(self, picture):
        figure, renderer, (count, layers) = picture
        for axes, columns in ((figure.axes[0], count), (figure.axes[2], layers)):
            cell = axes.get_window_extent(renderer).width / columns
            assert all(box.width < cell for box in boxes(axes.texts, renderer))

    def test_are_written_for_few_checkpoints(self, digits):
        figure, _ = drawn(digits)
        written = [text.get_text() for text in figure.axes[0].texts]
        assert written == ["5.6", "8.5", "5.6", "5.7", "8.5", "5.7"]
        assert len(figure.axes[2].texts) == 3 * 3

    def test_are_left_out_for_many(self, compared):
        figure, _ = drawn(compared(64, 50))
        assert not figure.axes[0].texts
        assert not figure.axes[2].texts

    def test_are_those_of_the_comparison(self, digits):
        figure, _ = drawn(digits)
        between, by_layer = (figure.axes[i].collections[0].get_array() for i in (0, 2))
        off_diagonal = ~np.eye(3, dtype=bool)
        expected = 100 * digits.relative_distances[off_diagonal]
        np.testing.assert_allclose(np.asarray(between)[off_diagonal], expected)
        assert np.ma.getmaskarray(between).diagonal().all()
        for column, layer in enumerate(digits.layers):
            np.testing.assert_allclose(by_layer[:, column], 100 * layer.distances_from_rest)

    def test_begin_with_the_first_checkpoint_at_the_top(self, digits):
        axes = drawn(digits)[0].axes[0]
        assert axes.yaxis_inverted()


class TestTheMessage:
    def test_is_the_answer(self, digits):
        figure, _ = drawn(digits)
        assert figure.texts[0].get_text() == digits.answer(digits.names)
        assert figure.texts[1].get_text() == "3 checkpoints, 478 values in 3 layers"

    def test_marks_the_checkpoint_that_stands_out(self, compared):
        figure, _ = drawn(compared(64, 5, "long", outlier=41))
        marked = [label for label in figure.axes[0].get_yticklabels()
                  if label.get_fontweight() == "bold"]  # fmt: skip
        assert ["epoch-041" in label.get_text() for label in marked] == [True]

    @pytest.mark.parametrize("outlier", [0, 77, 149])
    def test_marks_it_even_where_labels_are_thinned(self, compared, outlier):
        figure, renderer = drawn(compared(150, 2, outlier=outlier))
        labels = figure.axes[0].get_yticklabels()
        assert f"{outlier}.weights.h5" in [label.get_text() for label in labels]
        assert not overlapping(boxes(labels, renderer))

    def test_frames_a_checkpoint_that_stands_out_in_one_layer(self, tmp_path):
        generator = np.random.default_rng(1)
        paths = [
            write_weights(
                tmp_path / f"{i}.weights.h5",
                {"layers/large": [10 + generator.normal(size=1000).astype("f4")],
                 "layers/small": [(1 + 9 * (i == 2)) * generator.normal(size=50).astype("f4")]},
            )
            for i in range(5)
        ]  # fmt: skip
        axes = drawn(compare(paths))[0].axes[2]
        assert [patch.get_xy() for patch in axes.patches] == [(0.5, 1.5)]
        assert "framed" in axes.get_title(loc="left")

    @pytest.mark.parametrize("outlier", [None, 3])
    def test_says_whether_colours_are_logarithmic(self, compared, outlier):
        figure, _ = drawn(compared(6, 2, outlier=outlier))
        assert ("logarithmic" in figure.axes[1].get_ylabel()) == (outlier is not None)

    def test_names_units_at_the_colour_bars(self, digits):
        figure, _ = drawn(digits)
        assert [figure.axes[i].get_ylabel() for i in (1, 3)] == ["% of the norm"] * 2


class TestFiles:
    def test_png_is_a_picture(self, digits, tmp_path):
        draw(digits, tmp_path / "x.png")
        height, width, _ = imread(tmp_path / "x.png").shape
        assert width > height > 400

    def test_svg_is_a_picture(self, digits, tmp_path):
        draw(digits, tmp_path / "x.svg")
        assert ET.parse(tmp_path / "x.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"

    @pytest.mark.parametrize("suffix", ["png", "svg"])
    def test_are_the_same_for_the_same_numbers(self, digits, tmp_path, suffix):
        for name in "ab":
            draw(digits, tmp_path / f"{name}.{suffix}")
        assert len(set(contents(tmp_path).values())) == 1

    @pytest.mark.slow
    def test_of_large_comparisons_stay_small(self, compared, tmp_path):
        comparison = compared(64, 200)
        for suffix in ("png", "svg"):
            draw(comparison, tmp_path / f"x.{suffix}")
            assert (tmp_path / f"x.{suffix}").stat().st_size < 2_000_000

    @pytest.mark.parametrize("values", [[1.0, 1.0], [0.0, 0.0, 0.0]])
    def test_of_equal_checkpoints_can_be_drawn(self, tmp_path, values):
        paths = [write_weights(tmp_path / f"{i}.weights.h5", {"layers/dense": [np.float32([v])]})
                 for i, v in enumerate(values)]  # fmt: skip
        draw(compare(paths), tmp_path / "x.png")
        assert (tmp_path / "x.png").exists()

    def test_show_names_as_they_are(self, tmp_path):
        """Neither dollars nor underscores are markup."""
        names = ["run_$1$.keras", r"run^\frac{1}{2}.keras"]
        pairs = zip(THREE[:2], names, strict=True)
        paths = [shutil.copy(path, tmp_path / name) for path, name in pairs]
        comparison = compare(paths)
        draw(comparison, tmp_path / "x.svg")
        labels = [label.get_text() for label in drawn(comparison)[0].axes[0].get_yticklabels()]
        assert labels == names

    def test_of_names_in_any_script_can_be_drawn(self, tmp_path):
        names = ["числа.keras", "模型.keras"]
        paths = [shutil.copy(path, tmp_path / name)
                 for path, name in zip(THREE[:2], names, strict=True)]  # fmt: skip
        draw(compare(paths), tmp_path / "x.png")
        assert (tmp_path / "x.png").exists()

    def test_leave_the_settings_of_the_program_alone(self, tmp_path):
        done = run_python(
            "import sys, matplotlib\n"
            "from streamavg import compare\n"
            "matplotlib.rcParams['font.size'] = 33\n"
            "params = matplotlib.rcParams\n"
            "before = {k: params[k] for k in params if k != 'backend'}\n"
            "compare(sys.argv[2:], plot=sys.argv[1])\n"
            "assert {k: params[k] for k in params if k != 'backend'} == before\n"
            "assert 'matplotlib.pyplot' not in sys.modules",
            tmp_path / "x.png", *THREE,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


class TestRefusals:
    @pytest.mark.parametrize("name", ["x.pdf", "x.jpg", "x", "png", "x.png.keras"])
    def test_of_other_suffixes_name_those_that_do(self, tmp_path, name):
        with pytest.raises(OptionError, match=r"neither a \*\.png nor a \*\.svg"):
            check_picture(tmp_path / name, THREE, force=False)

    def test_accept_suffixes_in_capitals(self, digits, tmp_path):
        draw(digits, tmp_path / "X.PNG")
        assert imread(io.BytesIO((tmp_path / "X.PNG").read_bytes()), format="png").size

    def test_of_an_existing_file_keep_it(self, digits, tmp_path):
        path = tmp_path / "x.png"
        path.write_bytes(b"mine")
        with pytest.raises(OutputError, match="--force"):
            compare(THREE, plot=path)
        assert path.read_bytes() == b"mine"
        compare(THREE, plot=path, force=True)
        assert path.read_bytes() != b"mine"

    def test_of_an_input_keep_it_even_with_force(self, tmp_path):
        paths = [shutil.copy(path, tmp_path / f"{path.stem}.png") for path in THREE]
        before = contents(tmp_path)
        with pytest.raises(OutputError, match="is one of the inputs"):
            compare(paths, plot=paths[1], force=True)
        assert contents(tmp_path) == before

    def test_of_a_folder_and_of_none(self, tmp_path):
        (tmp_path / "folder.png").mkdir()
        with pytest.raises(OutputError, match="is a folder"):
            check_picture(tmp_path / "folder.png", THREE, force=True)
        with pytest.raises(OutputError, match="does not exist"):
            check_picture(tmp_path / "none" / "x.png", THREE, force=True)

    def test_come_before_anything_is_read(self, tmp_path):
        (tmp_path / "broken.keras").write_bytes(b"nothing")
        with pytest.raises(OptionError, match="neither"):
            compare([THREE[0], tmp_path / "broken.keras"], plot=tmp_path / "x.pdf")

    def test_without_matplotlib_say_how_to_install_it(self, tmp_path):
        done = run_python(
            "import sys\n"
            "sys.modules['matplotlib'] = None\n"
            "from streamavg import compare, MissingDependencyError\n"
            "try:\n"
            "    compare(sys.argv[2:], plot=sys.argv[1])\n"
            "except MissingDependencyError as error:\n"
            "    print(error)",
            tmp_path / "x.png", *THREE,
        )  # fmt: skip
        assert 'pip install "streamavg[plot]"' in done.stdout, done.stderr
        assert issubclass(MissingDependencyError, ImportError)
        assert contents(tmp_path) == {}

    def test_leave_nothing_behind(self, digits, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "x.png").touch()
        with pytest.raises(OutputError):
            draw(digits, folder / "x.png")
        assert [path.name for path in folder.iterdir()] == ["x.png"]
