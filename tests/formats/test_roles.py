import numpy as np
import pytest

from streamavg.checkpoint import Role, Variable
from streamavg.formats.roles import assign_roles

FLOAT, BYTE, COUNT = np.dtype(np.float32), np.dtype(np.int8), np.dtype(np.int64)


def roles(layer, *variables, start=Role.WEIGHT):
    """Roles of the variables of one layer, given as (name, shape) or (name, shape, dtype)."""
    made = [
        Variable(f"{layer}/{name}", shape, *(dtype or [FLOAT]), start, layer.removesuffix("/vars"))
        for name, shape, *dtype in variables
    ]
    return [str(v.role) for v in assign_roles(made)]


def test_kernels_and_biases_are_weights():
    assert roles("layers/dense/vars", ("0", (3, 4)), ("1", (4,))) == ["weight"] * 2


def test_batch_normalization_is_averaged():
    found = roles("layers/batch_normalization/vars", *((str(n), (4,)) for n in range(4)))
    assert found == ["weight"] * 4


@pytest.mark.parametrize("layer", ["layers/normalization_3/vars", "scaler/vars"])
def test_normalization_is_known_by_its_integer_count_whatever_it_is_called(layer):
    found = roles(layer, ("0", (4,)), ("1", (4,)), ("2", (), COUNT))
    assert found == ["preprocessing"] * 3
    assert roles(layer, ("0", (4,)), ("1", (3,)), ("2", (), COUNT)) == ["weight"] * 3
    assert roles(layer, ("0", (4,)), ("1", (4,)), ("2", ())) == ["weight"] * 3


def test_normalization_is_known_by_the_names_of_its_weights():
    found = roles("scaler", ("mean:0", (4,)), ("variance:0", (4,)), ("count:0", (), COUNT))
    assert found == ["preprocessing"] * 3


def test_tf_idf_weights_are_preprocessing():
    assert roles("layers/text/vars", ("idf_weights", (9,))) == ["preprocessing"]


def test_the_state_of_a_seed_generator_is_not_averaged():
    found = roles("layers/dropout/seed_generator/vars", ("0", (2,), np.dtype(np.uint32)))
    assert found == ["seed"]


@pytest.mark.parametrize("name", ["lora_kernel_a", "lora_kernel_b:0", "lora_embeddings_a"])
def test_low_rank_factors_are_adapters(name):
    assert roles("dense", (name, (4, 2)), ("bias", (4,))) == ["adapter", "weight"]


@pytest.mark.parametrize("start", [Role.OPTIMIZER, Role.METRIC])
def test_a_role_that_the_place_in_the_file_gives_stays(start):
    assert roles("optimizer/vars", ("lora_kernel_a", (4, 2)), start=start) == [str(start)]


@pytest.mark.parametrize(
    "variables",
    [
        [("0", (4, 8), BYTE), ("1", (8,)), ("2", (8,))],
        [("kernel", (4, 8)), ("kernel_scale", (8,))],
        [
            ("0", (4, 8)),
            *((str(n), ()) for n in (1, 3, 5)),
            *((str(n), (1024,)) for n in (2, 4, 6)),
        ],
    ],
    ids=["int8 codes", "names", "float8 histories"],
)
def test_quantized_layers_are_known_by_what_lies_together(variables):
    assert set(roles("layers/dense/vars", *variables)) == {"quantized"}


def test_bytes_beside_floats_of_their_own_shape_are_no_codes():
    found = roles("layers/mask/vars", ("0", (4, 8), BYTE), ("1", (4, 8)), ("2", ()))
    assert found == ["weight"] * 3
