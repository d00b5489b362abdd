"""Whether more or less of a metric is better, by its name."""

import pytest

from streamavg.selection.metrics import more_is_better

LESS = """
    loss val_loss dice_loss head_loss accuracy_head_loss valLoss val-loss error err error_rate
    mse mae val_mae rmse mean_squared_error mean_absolute_percentage_error binary_crossentropy
    kl_divergence logcosh poisson categorical_hinge perplexity LOSS
"""
MORE = """
    accuracy val_accuracy acc val_acc valAccuracy sparse_top_k_categorical_accuracy auc auc_1
    val_auc_12 precision recall precision_at_recall f1 f1_score val_f1_score fbeta_score iou
    mean_io_u dice_coefficient r2_score sensitivity_at_specificity pearson_correlation
    loss_head_accuracy top_5_accuracy
"""
UNKNOWN = ["", "score", "fid", "epoch", "lr", "learning_rate", "true_positives", "glossy",
           "cosine_similarity", "accurate", "loss_to_accuracy_ratio", "7"]  # fmt: skip


@pytest.mark.parametrize("metric", LESS.split())
def test_less_is_better(metric):
    assert more_is_better(metric) is False


@pytest.mark.parametrize("metric", MORE.split())
def test_more_is_better(metric):
    assert more_is_better(metric) is True


@pytest.mark.parametrize("metric", UNKNOWN)
def test_a_name_that_does_not_tell_is_not_guessed(metric):
    assert more_is_better(metric) is None
