"""Keras on the TensorFlow backend, loaded when the first model is needed.

No other module of the package imports either of them.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from streamavg.errors import MissingDependencyError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_BACKEND = "tensorflow"
_OLDEST = 3


def load_keras() -> Any:
    """The module `keras`, imported with as little talk as TensorFlow can be brought to.

    Raises:
        MissingDependencyError: Keras or TensorFlow is not installed.
        OptionError: Keras is there with another backend, or older than Keras 3.

    Memory: about 550 MiB, most of it for TensorFlow.
    """
    os.environ.setdefault("KERAS_BACKEND", _BACKEND)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is imported, which nobody here can change
        try:
            import keras  # noqa: PLC0415 - half a gigabyte, and seconds
            import tensorflow  # noqa: F401, PLC0415
        except ImportError as error:
            raise MissingDependencyError(
                f"models need Keras and TensorFlow, which cannot be imported ({error}). "
                "Install them with: python -m pip install 'streamavg[tensorflow]'"
            ) from error
    version = str(keras.__version__)
    if int(version.split(".", 1)[0]) < _OLDEST:
        raise OptionError(f"Keras {version} is installed; models need Keras {_OLDEST} or later.")
    backend = keras.backend.backend()
    if backend != _BACKEND:
        raise OptionError(
            f"Keras uses the backend {backend!r}; models are built with {_BACKEND!r}. "
            f"Set the environment variable KERAS_BACKEND={_BACKEND}."
        )
    return keras


def load_tensorflow() -> Any:
    """The module `tensorflow`. Raises: as `load_keras`."""
    load_keras()
    import tensorflow  # noqa: PLC0415

    return tensorflow


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back the warnings of Keras' and TensorFlow's own code that nobody can act on."""
    logger = logging.getLogger("tensorflow")  # tells which operations it converts how
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # Keras reads TensorFlow's variables with numpy.array, whose rules NumPy 2 changed.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        try:
            yield
        finally:
            logger.setLevel(level)


def import_modules(names: Sequence[str]) -> dict[str, Any]:
    """Imports the modules that a user names, for the classes and functions that they define.

    Args:
        names: dotted names, found from the current folder and where Python looks for modules.

    Returns:
        The classes and functions that these modules define, by their name: Keras' custom objects.

    Raises:
        OptionError: a module is not there or cannot be imported.
    """
    found: dict[str, Any] = {}
    for name in names:
        module = _import(name, "--import")
        found |= {
            key: value
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        }
    return found


def named_function(text: str, option: str) -> Callable[[], Any]:
    """The function that `module:function` names.

    Args:
        text: such as "mymodels:build".
        option: what the user gave it for, for the message.

    Raises:
        OptionError: there is no such module or function.
    """
    module_name, _, name = text.partition(":")
    function = _import(module_name, option)
    for part in name.split("."):
        if not hasattr(function, part):
            raise OptionError(f"{option} {text}: the module {module_name!r} has no {name!r}.")
        function = getattr(function, part)
    if not callable(function):
        raise OptionError(f"{option} {text}: is no function.")
    found: Callable[[], Any] = function
    return found


def _import(name: str, option: str) -> Any:
    here = os.getcwd()  # noqa: PTH109 - sys.path holds text
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        with quiet():
            return importlib.import_module(name)
    except Exception as error:  # whatever the user's module raises
        raise OptionError(
            f"{option} {name}: cannot be imported: {type(error).__name__}: {error}."
        ) from error
