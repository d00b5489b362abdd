"""Data that a user names: files of arrays, and functions."""

import numpy as np
import pytest

from streamavg.errors import CorruptFileError, OptionError, UnsupportedFeatureError
from streamavg.evaluation.datasets import ArrayData, open_data

X = np.arange(20.0).reshape(10, 2)
Y = np.arange(10)


def opened(text, **options):
    return open_data(text, option="--val", **options)


def test_a_file_gives_its_arrays_batch_by_batch_in_order(npz):
    data = opened(npz(x=X, y=Y), batch_size=4)
    batches = list(data.batches())
    assert [batch.size for batch in batches] == [4, 4, 2]
    assert data.batch_count == 3
    np.testing.assert_array_equal(np.concatenate([batch.x for batch in batches]), X)
    np.testing.assert_array_equal(np.concatenate([batch.y for batch in batches]), Y)
    assert batches[0].sample_weight is None


def test_a_split_of_a_file_has_its_own_arrays(npz):
    path = npz(x_test=X, y_test=Y, x_train=X[:3], y_train=Y[:3], sample_weight_test=Y)
    (batch,) = opened(f"{path}:test").batches()
    np.testing.assert_array_equal(batch.x, X)
    np.testing.assert_array_equal(batch.sample_weight, Y)


def test_several_inputs_are_counted(npz):
    (batch,) = opened(npz(x_0=X, x_1=X + 1, y=Y)).batches()
    np.testing.assert_array_equal(batch.x[1], X + 1)
    assert batch.size == 10


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": X, "y": Y}, "has no array 'x'; it has images, y"),
        ({"x_train": X, "y_train": Y}, r"Name a split, such as .*data.npz:train"),
        ({"x": X}, "has no array 'y'"),
    ],
)
def test_a_file_without_the_arrays_says_what_it_has(npz, arrays, message):
    with pytest.raises(UnsupportedFeatureError, match=message):
        opened(npz(**arrays))


def test_pickled_objects_are_never_opened(npz):
    with pytest.raises(UnsupportedFeatureError, match="pickled objects, which are never opened"):
        opened(npz(x=np.array([{}], dtype=object), y=Y))


def test_arrays_of_other_lengths_are_refused(npz):
    with pytest.raises(OptionError, match=r"\[9, 10\] examples"):
        opened(npz(x=X, y=Y[:9]))


def test_no_examples_are_refused():
    with pytest.raises(OptionError, match=r"\[0\] examples"):
        ArrayData("data", X[:0], Y[:0], None, 4)


def test_what_is_no_npz_file_is_told(tmp_path):
    path = tmp_path / "data.npz"
    path.write_bytes(b"no zip")
    with pytest.raises((CorruptFileError, UnsupportedFeatureError), match=r"data\.npz"):
        opened(str(path))
    with pytest.raises(OptionError, match="No such file"):
        opened(str(tmp_path / "missing.npz"))


def test_a_batch_has_an_example_at_least(npz):
    with pytest.raises(OptionError, match="--batch-size 0"):
        opened(npz(x=X, y=Y), batch_size=0)


def test_other_names_are_refused():
    with pytest.raises(
        OptionError, match=r"neither FILE\.npz, FILE\.npz:SPLIT nor module:function"
    ):
        opened("data.csv")


def test_the_checksum_tells_data_and_their_order_apart(npz):
    def checksum(x, y):
        total = 0
        for batch in ArrayData("data", x, y, None, 4).batches():
            total = batch.checksum(total)
        return total

    assert checksum(X, Y) == checksum(X.copy(), Y.copy())
    assert len({checksum(X, Y), checksum(X[::-1], Y), checksum(X, Y[::-1])}) == 3


class TestFunctions:
    @pytest.fixture
    def module(self, tmp_path, monkeypatch):
        def write(body):
            name = f"data_{abs(hash(body))}"
            (tmp_path / f"{name}.py").write_text(body)
            monkeypatch.syspath_prepend(tmp_path)
            return name

        return write

    def test_a_function_may_return_arrays(self, keras, module):
        name = module("import numpy as np\ndef val():\n    return np.ones((3, 2)), np.arange(3)\n")
        (batch,) = opened(f"{name}:val").batches()
        assert batch.size == 3

    def test_a_function_may_return_a_batched_dataset(self, keras, module):
        name = module(
            "import tensorflow as tf\n"
            "def val():\n"
            "    slices = tf.data.Dataset.from_tensor_slices(([[1.], [2.], [3.]], [0, 1, 0]))\n"
            "    return slices.batch(2)\n"
        )
        data = opened(f"{name}:val")
        assert [batch.size for batch in data.batches()] == [2, 1]
        assert data.batch_count == 2

    @pytest.mark.parametrize(
        ("expression", "message"),
        [
            (".repeat()", "never ends"),
            ("", "yields single examples"),
        ],
    )
    def test_datasets_that_cannot_be_scored_on_are_refused(
        self, keras, module, expression, message
    ):
        name = module(
            "import tensorflow as tf\n"
            "def val():\n"
            f"    return tf.data.Dataset.from_tensor_slices(([1., 2.], [0, 1])){expression}\n"
        )
        with pytest.raises(OptionError, match=message):
            list(opened(f"{name}:val").batches())

    def test_a_function_that_is_not_there_is_told(self, keras, module):
        name = module("x = 1\n")
        with pytest.raises(OptionError, match="has no 'val'"):
            opened(f"{name}:val")
        with pytest.raises(OptionError, match="no_such_module_here: cannot be imported"):
            opened("no_such_module_here:val")

    def test_a_function_that_returns_something_else_is_told(self, keras, module):
        name = module("def val():\n    return 3\n")
        with pytest.raises(OptionError, match="returned int, expected"):
            opened(f"{name}:val")
