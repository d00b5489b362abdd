"""Moving statistics estimated anew, for a model whose weights no training step ever saw.

BatchNormalization keeps the mean and the variance of what goes through it. The average of those of
several checkpoints fits none of them, nor the averaged weights. So data go through the averaged
model in training mode, and the statistics become the plain mean of those of all batches.

Source: P. Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018,
section 3.2; `torch.optim.swa_utils.update_bn` does the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg.errors import OptionError
from streamavg.evaluation.keras_backend import load_keras, load_tensorflow, quiet

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from streamavg.evaluation.datasets import Data


@dataclass(frozen=True, slots=True, eq=False)
class Recalibration:
    """What was estimated anew."""

    layers: tuple[str, ...]
    """Names of the BatchNormalization layers."""
    frozen: tuple[str, ...]
    """Those that are not trainable, which Keras never updates: they were left as they are."""
    batches: int
    before: tuple[tuple[Any, NDArray[Any]], ...]
    """Each variable that was changed, and its values before."""

    def undo(self) -> None:
        """Puts the statistics back to what they were."""
        for variable, values in self.before:
            variable.assign(values)


def recalibrate(
    model: Any, data: Data, *, on_batch: Callable[[int], None] | None = None
) -> Recalibration:
    """Estimates the moving statistics of all BatchNormalization layers from data.

    Dropout and augmentation layers are active, as in training.

    Args:
        model: is changed.
        data: the training set, or enough of it; its labels are not looked at.
        on_batch: called with the number of batches done since the last call.

    Raises:
        OptionError: the model has no such layers, or none that can be updated.

    Memory: one batch and its activations; the statistics twice.
    """
    found = _layers(model)
    layers = [layer for layer in found if layer.trainable]
    if not layers:
        what = "only frozen BatchNormalization layers" if found else "no BatchNormalization layers"
        raise OptionError(
            f"--recalibrate-batchnorm: the model has {what}, so there is nothing to recalibrate."
        )
    if any(getattr(layer, "renorm", False) for layer in layers):
        raise OptionError(
            "--recalibrate-batchnorm: batch renormalisation (renorm=True) uses the statistics that "
            "would be estimated, so they cannot be estimated from batches."
        )
    statistics = [v for layer in layers for v in (layer.moving_mean, layer.moving_variance)]
    before = tuple((variable, variable.value.numpy()) for variable in statistics)
    sums = [np.zeros(values.shape) for _, values in before]
    momenta = [layer.momentum for layer in layers]
    batches = 0
    try:
        # Without momentum a layer keeps the statistics of the last batch alone.
        for layer in layers:
            layer.momentum = 0.0
        run = load_tensorflow().function(lambda x: model(x, training=True), reduce_retracing=True)
        for batch in data.batches():
            with quiet():
                run(batch.x)
            for total, variable in zip(sums, statistics, strict=True):
                total += variable.value.numpy()
            batches += 1
            if on_batch is not None:
                on_batch(1)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    for total, (variable, values) in zip(sums, before, strict=True):
        variable.assign((total / batches).astype(values.dtype))
    return Recalibration(
        layers=tuple(layer.name for layer in layers),
        frozen=tuple(layer.name for layer in found if not layer.trainable),
        batches=batches,
        before=before,
    )


def _layers(model: Any) -> list[Any]:
    """All BatchNormalization layers, also inside models and layers of the model."""
    kind = load_keras().layers.BatchNormalization
    return [layer for layer in model._flatten_layers() if isinstance(layer, kind)]
