"""Average Keras checkpoint files in bounded memory, without loading the models.

    import streamavg

    record = streamavg.merge(["epoch-18.keras", "epoch-19.keras"], "averaged.keras")

Importing this package imports neither TensorFlow nor Keras, and a public name is loaded when it is
first used, so that the command line starts fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

from streamavg.version import __version__

if TYPE_CHECKING:
    from streamavg.checking import CheckOptions, check
    from streamavg.checkpoint import Checkpoint, Role, Variable
    from streamavg.comparing import CompareOptions, compare
    from streamavg.comparison import Comparison
    from streamavg.errors import (
        BeingWrittenError,
        ChangedFileError,
        CoefficientError,
        CorruptFileError,
        FormatError,
        IncompatibleCheckpointsError,
        MemoryLimitError,
        MissingDependencyError,
        ModelMismatchError,
        NonFiniteValuesError,
        OptionError,
        OutputError,
        StreamAvgError,
        UnknownFormatError,
        UnsafeFileError,
        UnsupportedFeatureError,
    )
    from streamavg.evaluation.connectivity import PathEvaluation, evaluate_path
    from streamavg.evaluation.evaluating import EvaluateOptions, evaluate
    from streamavg.evaluation.rebuilding import RebuildRecord, rebuild
    from streamavg.evaluation.verdict import Evaluation
    from streamavg.findings import Check, CheckedCheckpoint, Finding, FindingKind
    from streamavg.formats import open_checkpoint
    from streamavg.inspecting import CheckpointSummary, inspect
    from streamavg.merging import merge, plan
    from streamavg.options import MergeOptions
    from streamavg.record import MergeRecord

_HOME_OF = {
    "BeingWrittenError": "streamavg.errors",
    "ChangedFileError": "streamavg.errors",
    "Check": "streamavg.findings",
    "CheckOptions": "streamavg.checking",
    "CheckedCheckpoint": "streamavg.findings",
    "Checkpoint": "streamavg.checkpoint",
    "CheckpointSummary": "streamavg.inspecting",
    "CoefficientError": "streamavg.errors",
    "CompareOptions": "streamavg.comparing",
    "Comparison": "streamavg.comparison",
    "CorruptFileError": "streamavg.errors",
    "EvaluateOptions": "streamavg.evaluation.evaluating",
    "Evaluation": "streamavg.evaluation.verdict",
    "Finding": "streamavg.findings",
    "FindingKind": "streamavg.findings",
    "FormatError": "streamavg.errors",
    "IncompatibleCheckpointsError": "streamavg.errors",
    "MemoryLimitError": "streamavg.errors",
    "MergeOptions": "streamavg.options",
    "MergeRecord": "streamavg.record",
    "MissingDependencyError": "streamavg.errors",
    "ModelMismatchError": "streamavg.errors",
    "NonFiniteValuesError": "streamavg.errors",
    "OptionError": "streamavg.errors",
    "OutputError": "streamavg.errors",
    "PathEvaluation": "streamavg.evaluation.connectivity",
    "RebuildRecord": "streamavg.evaluation.rebuilding",
    "Role": "streamavg.checkpoint",
    "StreamAvgError": "streamavg.errors",
    "UnknownFormatError": "streamavg.errors",
    "UnsafeFileError": "streamavg.errors",
    "UnsupportedFeatureError": "streamavg.errors",
    "Variable": "streamavg.checkpoint",
    "check": "streamavg.checking",
    "compare": "streamavg.comparing",
    "evaluate": "streamavg.evaluation.evaluating",
    "evaluate_path": "streamavg.evaluation.connectivity",
    "inspect": "streamavg.inspecting",
    "merge": "streamavg.merging",
    "open_checkpoint": "streamavg.formats",
    "plan": "streamavg.merging",
    "rebuild": "streamavg.evaluation.rebuilding",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "BeingWrittenError",
    "ChangedFileError",
    "Check",
    "CheckOptions",
    "CheckedCheckpoint",
    "Checkpoint",
    "CheckpointSummary",
    "CoefficientError",
    "CompareOptions",
    "Comparison",
    "CorruptFileError",
    "EvaluateOptions",
    "Evaluation",
    "Finding",
    "FindingKind",
    "FormatError",
    "IncompatibleCheckpointsError",
    "MemoryLimitError",
    "MergeOptions",
    "MergeRecord",
    "MissingDependencyError",
    "ModelMismatchError",
    "NonFiniteValuesError",
    "OptionError",
    "OutputError",
    "PathEvaluation",
    "RebuildRecord",
    "Role",
    "StreamAvgError",
    "UnknownFormatError",
    "UnsafeFileError",
    "UnsupportedFeatureError",
    "Variable",
    "__version__",
    "check",
    "compare",
    "evaluate",
    "evaluate_path",
    "inspect",
    "merge",
    "open_checkpoint",
    "plan",
    "rebuild",
]
