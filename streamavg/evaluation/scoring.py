"""How good a model is on some data: its loss and every compiled metric, example by example.

The values are those that Keras' own `evaluate` gives. Beside them stands what each example adds to
them, so that the difference of two models can be bootstrapped. For that each example goes through
the compiled metrics by itself, as a batch of one, all examples of a batch at once
(`tf.vectorized_map`): the state that a metric has afterwards is the example's share. A metric whose
shares do not add up to the state that the whole batch gives (one that averages over batches, say)
has a value but no shares, and says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from streamavg.errors import OptionError, StreamAvgError
from streamavg.evaluation.bootstrap import Statistic, mean_of, ratio
from streamavg.evaluation.keras_backend import load_keras, load_tensorflow, quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from streamavg.evaluation.datasets import Batch, Data

LOSS = "loss"
MOST_STATE_BYTES = 256 * 1024**2
"""Of the shares of all examples in one metric; beyond, the metric has a value alone."""
_OVERRIDES = ("test_step", "compute_loss", "compute_metrics")
_TOLERANCE = 1e-3
"""Relative: single precision, summed over many examples in two orders."""


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """One model's value of one metric on one set of data."""

    name: str
    value: float
    """As Keras' `evaluate` gives it."""
    statistic: Statistic | None
    """What each example adds; None where the value is no function of such a sum."""
    why_not: str | None = None
    """Why there is no statistic."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """One model's values of all metrics on one set of data."""

    examples: int
    checksum: int
    """CRC-32 of the data: two models were scored on the same examples if it is the same."""
    scores: tuple[Score, ...]
    """The loss first."""

    @property
    def values(self) -> dict[str, float]:
        """The numbers alone, by the name of the metric."""
        return {score.name: score.value for score in self.scores}

    def values_alone(self) -> Scores:
        """The same without what each example adds."""
        alone = tuple(Score(s.name, s.value, None, "not kept") for s in self.scores)
        return Scores(self.examples, self.checksum, alone)

    def __getitem__(self, name: str) -> Score:
        """The score in a metric. Raises: KeyError."""
        for score in self.scores:
            if score.name == name:
                return score
        raise KeyError(name)


def score(
    model: Any,
    data: Data,
    *,
    keep_examples: bool = True,
    on_batch: Callable[[int], None] | None = None,
) -> Scores:
    """Evaluates a compiled model on data.

    Args:
        model: compiled, as by `models.compile_for_scoring`.
        data: goes through once, in its own order.
        keep_examples: whether to keep what each example adds, which costs some time, and memory.
        on_batch: called with the number of batches done since the last call.

    Returns:
        The values; they hold neither the model nor the data.

    Raises:
        OptionError: the model and the data do not fit.

    Memory: one batch, its predictions, and with `keep_examples` 16 bytes an example and metric for
    means, up to `MOST_STATE_BYTES` a metric for those with a larger state.
    """
    tally: _Tally = _Examples(model) if _is_plain(model) else _Batches(model)
    if not keep_examples and isinstance(tally, _Examples):
        tally.keeps = False
    examples, checksum = 0, 0
    model.reset_metrics()
    for batch in data.batches():
        examples += batch.size
        checksum = batch.checksum(checksum)
        try:
            with quiet():
                tally.add(batch)
        except StreamAvgError:
            raise
        except Exception as error:  # whatever TensorFlow or a custom layer raises
            text = " ".join(str(error).split())
            raise OptionError(
                f"{data.name}: the model cannot be scored on it: {text[:400]} "
                "Do its arrays have the shapes that the model takes?"
            ) from error
        if on_batch is not None:
            on_batch(1)
    if not examples:
        raise OptionError(f"{data.name}: has no examples.")
    return Scores(examples, checksum, tally.scores(examples))


def _is_plain(model: Any) -> bool:
    """Whether the model is evaluated as Keras does it, by nothing of its own."""
    keras = load_keras()
    return all(
        getattr(type(model), name, None) is getattr(keras.Model, name, None) for name in _OVERRIDES
    )


class _Tally:
    """Takes batches, gives scores."""

    def add(self, batch: Batch) -> None:
        raise NotImplementedError

    def scores(self, examples: int) -> tuple[Score, ...]:
        raise NotImplementedError


class _Batches(_Tally):
    """For a model that evaluates in its own way: what its `test_step` says."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._values: Mapping[str, Any] = {}

    def add(self, batch: Batch) -> None:
        self._values = self._model.test_on_batch(
            batch.x, batch.y, batch.sample_weight, return_dict=True
        )

    def scores(self, examples: int) -> tuple[Score, ...]:
        why = "the model evaluates in a way of its own (test_step, compute_loss, compute_metrics)"
        return tuple(
            Score(name, float(value), None, why)
            for name, value in self._values.items()
            if np.ndim(value) == 0
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """One compiled metric, and where its variables are among those of all."""

    name: str
    metric: Any
    variables: slice
    shapes: tuple[tuple[int, ...], ...]

    @property
    def width(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)


@dataclass
class _Examples(_Tally):
    """For a model that evaluates as Keras does."""

    model: Any
    keeps: bool = True
    _loss_total: float = 0.0
    _penalty_total: float = 0.0
    _losses: list[NDArray[Any]] = field(default_factory=list)
    _states: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    _bytes: dict[str, int] = field(default_factory=dict)
    _why_not: dict[str, str] = field(default_factory=dict)
    _parts: tuple[_Part, ...] | None = None

    def add(self, batch: Batch) -> None:
        tensorflow = load_tensorflow()
        x, y, weight = (
            tensorflow.nest.map_structure(tensorflow.convert_to_tensor, part)
            if part is not None
            else None
            for part in (batch.x, batch.y, batch.sample_weight)
        )
        if self._parts is None:
            self._forward = tensorflow.function(self._predict, reduce_retracing=True)
        predicted, masks, penalty = self._forward(x)
        _restore_masks(predicted, masks)
        loss = float(self._loss_of(y, predicted, weight))
        if self._parts is None:
            self._begin(y, predicted, weight)
        elif self._metrics is not None:
            self._metrics.update_state(y, predicted, weight)
        self._loss_total += (loss + float(penalty)) * batch.size
        self._penalty_total += float(penalty) * batch.size
        if self.keeps:
            self._keep((y, predicted, weight, masks))

    def _predict(self, x: Any) -> tuple[Any, Any, Any]:
        """Predictions, their masks, and the loss that layers add (regularisation)."""
        tensorflow = load_tensorflow()
        keras = load_keras()
        predicted = self.model(x, training=False)
        masks = tensorflow.nest.map_structure(
            lambda tensor: getattr(tensor, "_keras_mask", None), predicted
        )
        added = [keras.ops.sum(keras.ops.cast(loss, "float32")) for loss in self.model.losses]
        return predicted, masks, keras.ops.sum(keras.ops.stack(added)) if added else 0.0

    def _loss_of(self, y: Any, predicted: Any, weight: Any) -> Any:
        """The compiled loss of some examples, without what layers add."""
        compiled = self.model._compile_loss
        if compiled is None:
            return 0.0
        # Losses of several outputs are tracked as metrics, which is not wanted here.
        if not compiled.built:
            return compiled(y, predicted, weight)
        with load_keras().StatelessScope():
            return compiled(y, predicted, weight)

    def _begin(self, y: Any, predicted: Any, weight: Any) -> None:
        """Lets Keras make the metrics for outputs of these shapes."""
        self._metrics = self.model._compile_metrics
        if self._metrics is None:
            self._parts = ()
            self._start: list[Any] = []
        else:
            self._metrics.update_state(y, predicted, weight)
            names = list(self._metrics.result())
            after = [variable.value.numpy() for variable in self._metrics.variables]
            self._metrics.reset_state()
            self._start = [np.asarray(v.value.numpy()) for v in self._metrics.variables]
            for variable, value in zip(self._metrics.variables, after, strict=True):
                variable.assign(value)
            self._parts = tuple(_parts(self._metrics.metrics, names))
        function = load_tensorflow().function(self._shares, reduce_retracing=True)
        self._measure = function

    def _keep(self, structures: tuple[Any, Any, Any, Any]) -> None:
        losses, states, whole = self._measure(*structures)
        self._losses.append(losses.numpy().astype(np.float64))
        for part, each, total in zip(self._parts or (), states, whole, strict=True):
            if part.name in self._why_not:
                continue
            shares, start = each.numpy(), self._start_of(part)
            sums = shares.sum(axis=0, dtype=np.float64)
            if not _agree(sums, np.asarray(total.numpy(), np.float64) - start):
                self._drop(part, "it is no sum over examples: batches of one give other states")
                continue
            self._bytes[part.name] = self._bytes.get(part.name, 0) + shares.nbytes
            if self._bytes[part.name] > MOST_STATE_BYTES:
                self._drop(part, f"it keeps {part.width} numbers an example, too many for so many")
                continue
            self._states.setdefault(part.name, []).append(shares)

    def _drop(self, part: _Part, why: str) -> None:
        self._why_not[part.name] = why
        self._states.pop(part.name, None)

    def _start_of(self, part: _Part) -> NDArray[np.float64]:
        values = self._start[part.variables]
        return np.concatenate([np.reshape(v, -1) for v in values]).astype(np.float64)

    def _shares(self, y: Any, predicted: Any, weight: Any, masks: Any) -> tuple[Any, Any, Any]:
        """What each example adds to the loss and to the state of each metric, and all together.

        Returns:
            Losses, shape (examples,); for each metric its shares, shape (examples, width); and its
            state after the whole batch, shape (width,).
        """
        tensorflow = load_tensorflow()
        nest = tensorflow.nest
        structure = (y, predicted, weight, masks)
        flat = nest.flatten(structure)
        present = [leaf for leaf in flat if leaf is not None]

        def one(leaves: Sequence[Any]) -> tuple[Any, list[Any]]:
            single = iter(leaves)
            filled = [None if leaf is None else next(single)[None] for leaf in flat]
            y, predicted, weight, masks = nest.pack_sequence_as(structure, filled)
            _restore_masks(predicted, masks)
            loss = tensorflow.cast(self._loss_of(y, predicted, weight), tensorflow.float32)
            states = self._states_after(y, predicted, weight)
            return loss, [
                state - self._start_of(part).astype(np.float32)
                for part, state in zip(self._parts or (), states, strict=True)
            ]

        losses, shares = tensorflow.vectorized_map(one, present)
        _restore_masks(predicted, masks)
        return losses, shares, self._states_after(y, predicted, weight)

    def _states_after(self, y: Any, predicted: Any, weight: Any) -> list[Any]:
        """The state of each metric after some examples and no others, flat."""
        if self._metrics is None:
            return []
        tensorflow = load_tensorflow()
        start = [tensorflow.constant(value) for value in self._start]
        after = self._metrics.stateless_update_state(start, y, predicted, weight)
        return [
            tensorflow.concat(
                [
                    tensorflow.reshape(tensorflow.cast(v, tensorflow.float32), [-1])
                    for v in after[part.variables]
                ],
                axis=0,
            )
            for part in self._parts or ()
        ]

    def scores(self, examples: int) -> tuple[Score, ...]:
        found = [self._loss_score(examples)]
        results = {} if self._metrics is None else self._metrics.result()
        for part in self._parts or ():
            value = np.asarray(results[part.name], np.float64)
            if value.ndim:
                mean = float(value.mean())
                why = f"it gives {value.size} numbers; the value is their mean"
                found.append(Score(part.name, mean, None, why))
                continue
            found.append(self._metric_score(part, float(value)))
        return tuple(found)

    def _loss_score(self, examples: int) -> Score:
        value = self._loss_total / examples
        if not self._losses:
            return Score(LOSS, value, None, "examples were not kept")
        each = np.concatenate(self._losses) + self._penalty_total / examples
        if not _agree(np.array([each.mean()]), np.array([value])):
            why = (
                f"it is no mean over examples: one by one they give {each.mean():.6g} (does it "
                "normalise by masks or by sample weights of a batch?)"
            )
            return Score(LOSS, value, None, why)
        return Score(LOSS, value, mean_of(each))

    def _metric_score(self, part: _Part, value: float) -> Score:
        states = self._states.get(part.name)
        if states is None:
            return Score(part.name, value, None, self._why_not.get(part.name, "not kept"))
        statistic = Statistic(np.concatenate(states), self._start_of(part), _result_of(part))
        if not _agree(np.array([statistic.value()]), np.array([value])):
            why = "it is no function of sums over examples"
            return Score(part.name, value, None, why)
        return Score(part.name, value, statistic)


def _agree(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    return bool(np.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True))


def _restore_masks(predicted: Any, masks: Any) -> None:
    """Gives predictions the masks that they had: Keras keeps them as attributes of tensors."""
    nest = load_tensorflow().nest
    for tensor, mask in zip(nest.flatten(predicted), nest.flatten(masks), strict=True):
        if mask is not None:
            tensor._keras_mask = mask


def _parts(metrics: Sequence[Any], names: Sequence[str]) -> list[_Part]:
    parts, start = [], 0
    for metric, name in zip(metrics, names, strict=True):
        shapes = tuple(tuple(variable.shape) for variable in metric.variables)
        parts.append(_Part(name, metric, slice(start, start + len(shapes)), shapes))
        start += len(shapes)
    return parts


def _result_of(part: _Part) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The metric's value from its state, for many states at once."""
    if type(part.metric).result is load_keras().metrics.Mean.result:
        return ratio
    tensorflow = load_tensorflow()
    metric = part.metric
    dtypes = [variable.dtype for variable in metric.variables]

    def one(state: Any) -> Any:
        sizes = [math.prod(shape) for shape in part.shapes]
        pieces = tensorflow.split(state, sizes)
        variables = [
            tensorflow.cast(tensorflow.reshape(piece, shape), dtype)
            for piece, shape, dtype in zip(pieces, part.shapes, dtypes, strict=True)
        ]
        return metric.stateless_result(variables)

    compute = tensorflow.function(
        lambda states: tensorflow.vectorized_map(one, states), reduce_retracing=True
    )

    def result(states: NDArray[np.float64]) -> NDArray[np.float64]:
        with quiet():
            values = compute(tensorflow.constant(states, tensorflow.float32))
        return np.asarray(values.numpy(), np.float64)

    return result
