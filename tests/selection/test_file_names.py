"""What the names that Keras' ModelCheckpoint writes say: epochs and scores."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamavg.errors import OptionError
from streamavg.selection.file_names import SUFFIXES, epochs_in_names, scores_in_names


def score_in(name, metric=None):
    found = scores_in_names([Path(name)], metric)
    return found.metric, found.values[Path(name)]


def epochs_in(*names):
    return list(epochs_in_names([Path(name) for name in names]).values())


class TestScores:
    @pytest.mark.parametrize(
        ("name", "score"),
        [
            ("03-0.1234.keras", 0.1234),
            ("weights.03-0.1234.h5", 0.1234),
            ("weights.03-0.12.hdf5", 0.12),
            ("0.1234.weights.h5", 0.1234),
            ("runs/7/ckpt-3-0.1234.weights.h5", 0.1234),
            ("model_03_0.5.h5", 0.5),
            ("vgg16-03-0.5.h5", 0.5),
            ("03-12.5.h5", 12.5),
            ("03-1.5e-05.keras", 1.5e-05),
            ("03-2e-05.keras", 2e-05),
            ("03-1.5e+02.keras", 150.0),
            ("03--0.5.keras", -0.5),
            ("03_-0.5.keras", -0.5),
            ("-0.5.keras", -0.5),
            ("lr0.001-epoch03-0.5.h5", 0.5),
            ("v1.2-03-0.5.h5", 0.5),
        ],
    )
    def test_without_a_label_are_the_one_decimal_number(self, name, score):
        assert score_in(name) == (None, score)

    @pytest.mark.parametrize(
        ("name", "metric", "score"),
        [
            ("model-epoch03-val_loss0.1234.keras", "val_loss", 0.1234),
            ("model-epoch03-val_loss-0.1234.keras", "val_loss", 0.1234),
            ("model-epoch03-val_loss=-0.1234.keras", "val_loss", -0.1234),
            ("epoch=03-val_loss=0.1234.weights.h5", "val_loss", 0.1234),
            ("run_3_epoch_4_val-loss_0.25.h5", "val_loss", 0.25),
            ("weights_val_loss_0.25.h5", "val_loss", 0.25),
            ("ckpt-03-acc0.95.h5", "acc", 0.95),
            ("ckpt-03-acc95.h5", "acc", 95.0),
            ("dropout0.5-03-val_acc0.9.h5", "val_acc", 0.9),
            ("loss0.1-val_loss0.2.h5", "val_loss", 0.2),
            ("val_accuracy0.9-val_loss0.2.h5", "val_loss", 0.2),
        ],
    )
    def test_with_a_label_are_the_labelled_number(self, name, metric, score):
        assert score_in(name) == (metric, score)

    @pytest.mark.parametrize(
        ("name", "metric", "score"),
        [
            ("loss0.1-val_loss0.2.h5", "loss", 0.1),
            ("loss0.1-val_loss0.2.h5", "val_loss", 0.2),
            ("loss0.1-acc0.9.h5", "acc", 0.9),
            ("03-val_f1-0.85.h5", "val_f1", 0.85),
            ("auc_1-0.93.h5", "auc_1", 0.93),
            ("03-top_5_accuracy0.9.h5", "top_5_accuracy", 0.9),
            ("03-fid12.5.h5", "fid", 12.5),
            ("ckpt.03-0.95.weights.h5", "val_accuracy", 0.95),
        ],
    )
    def test_are_those_of_the_metric_that_is_asked_for(self, name, metric, score):
        assert score_in(name, metric) == (metric, score)

    @pytest.mark.parametrize(
        ("name", "metric", "found"),
        [
            ("03-0.12-0.95.h5", None, "'0.12', '0.95'"),
            ("loss0.1-acc0.9.h5", None, "'loss 0.1', 'acc 0.9'"),
            ("03.0.1234.h5", None, "'03.0.1234'"),
            ("2024.01.05-0.5.h5", None, "'2024.01.05', '0.5'"),
            ("auc_1-0.93.h5", "auc", "'auc 1'"),
            ("03-loss-05-0.5.h5", None, "'loss 05'"),
            ("val_loss0.1-x-val_loss0.2.h5", "val_loss", "'val_loss 0.1', 'val_loss 0.2'"),
        ],
    )
    def test_that_can_be_read_in_two_ways_are_refused_with_what_was_found(
        self, name, metric, found
    ):
        with pytest.raises(OptionError, match="more than one way") as caught:
            score_in(name, metric)
        assert f"{name}: " in str(caught.value)
        assert f"found {found}." in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "metric", "found"),
        [
            ("best.keras", None, "no number"),
            ("epoch-18.keras", None, "'epoch 18'"),
            ("03.weights.h5", None, "'03'"),
            ("lr0.001-03.h5", None, "'lr 0.001', '03'"),
            ("03-loss0.5.h5", "val_loss", "'03', 'loss 0.5'"),
            ("03-val_loss0.5.h5", "loss", "'03', 'val_loss 0.5'"),
        ],
    )
    def test_that_are_not_there_are_missed_with_what_was_found(self, name, metric, found):
        with pytest.raises(OptionError, match="has no") as caught:
            score_in(name, metric)
        assert f"found {found}." in str(caught.value)

    def test_of_a_diverged_run_are_read_too(self):
        assert math.isnan(score_in("03-nan.keras")[1])
        assert score_in("03--inf.keras")[1] == -math.inf
        assert score_in("nanodet-03-0.5.keras") == (None, 0.5)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("01-val_loss0.5.h5", "02-val_loss-0.5.h5"),
            ("01-val_loss0.5.h5", "02-acc0.5.h5"),
            ("01-val_loss0.5.h5", "02-0.5.h5"),
        ],
    )
    def test_written_in_two_patterns_are_refused(self, one, other):
        with pytest.raises(OptionError, match="is written otherwise") as caught:
            scores_in_names([Path(one), Path(other)])
        assert one in str(caught.value)
        assert other in str(caught.value)

    @given(
        st.integers(1, 999),
        st.floats(-1e3, 1e3, allow_nan=False),
        st.sampled_from(
            ["{epoch:02d}-{val_loss:.4f}", "weights.{epoch:02d}-{val_loss:.2f}",
             "m-epoch{epoch:03d}-val_loss={val_loss:.3f}", "ckpt_{epoch}_{val_loss:.1f}",
             "{epoch}-{val_loss:.3e}"]
        ),
        st.sampled_from(SUFFIXES),
    )  # fmt: skip
    def test_are_what_a_template_of_modelcheckpoint_was_filled_with(
        self, epoch, score, template, suffix
    ):
        name = template.format(epoch=epoch, val_loss=score) + suffix
        written = template.partition("{val_loss")[2].partition("}")[0]
        assert score_in(name, "val_loss")[1] == float(("{" + written + "}").format(score))
        assert epochs_in(name) == [epoch]


class TestEpochs:
    @pytest.mark.parametrize(
        ("name", "epoch"),
        [
            ("epoch-18.keras", 18),
            ("ckpt-10.weights.h5", 10),
            ("weights.03-0.1234.h5", 3),
            ("03.keras", 3),
            ("fold2-epoch_05-val_loss0.3.h5", 5),
            ("lr0.1-ep7.h5", 7),
            ("0.25-e100.h5", 100),
            ("7/ckpt-3.h5", 3),
        ],
    )
    def test_are_labelled_or_the_one_whole_number(self, name, epoch):
        assert epochs_in(name) == [epoch]

    def test_are_not_what_belongs_to_a_word_in_all_names(self):
        assert epochs_in("resnet50-01-0.5.h5", "resnet50-02-0.4.h5") == [1, 2]

    @pytest.mark.parametrize(
        "names",
        [
            ("fold1-05.h5", "fold2-05.h5"),
            ("ckpt5-1.h5", "ckpt5-2.h5"),
            ("step-100.h5", "step-1000.h5"),
            ("2024-01-05-03.h5", "2024-01-05-04.h5"),
            ("best.h5", "last.h5"),
            ("epoch--3.h5", "epoch--4.h5"),
        ],
        ids=" ".join,
    )
    def test_that_are_not_clear_are_refused(self, names):
        with pytest.raises(OptionError, match="does not tell its epoch") as caught:
            epochs_in(*names)
        assert names[0] in str(caught.value)
