"""Prove that the Keras which wrote a checkpoint loads what `streamavg merge` makes of it.

For every sample checkpoint:

1. a copy is made in which every float variable that a merge averages has other values;
2. `python -m streamavg merge` averages the sample and the copy;
3. the merged file is read with h5py and compared with the float64 mean of its two inputs, rounded
   once, dataset by dataset;
4. the Keras version that wrote the sample, in a virtual environment of its own, loads the sample,
   the copy and the merged file, and every variable of the merged model is compared with the mean
   of the other two. Every variable that step 1 changed must have arrived in the model.

The samples come in pairs `X` and `X.expected.json`; X starts with its writer, for example
`keras3.15.1-tf-`. Files under `handmade/` were written without Keras. Usage:

    python scripts/compatibility.py SAMPLES --venvs DIRECTORY [--json FILE] [--only PATTERN]
                                    [--originals-only]

The Python that runs this script needs streamavg's own dependencies. The exit code is 0 if every
sample did what is expected of it, 1 if one did not, 2 if no sample was found.
"""

from __future__ import annotations

import argparse
import enum
import fnmatch
import functools
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

REPOSITORY = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).with_name("compatibility_worker.py")
ARCHIVE_MEMBER = "model.weights.h5"
SUFFIXES = (".weights.h5", ".h5", ".keras")  # the longest first
MERGE_TIMEOUT = 300  # seconds
LONGEST_ERROR = 300  # characters
SEED = 2020


# --- facts: environments -------------------------------------------------------------------------


@dataclass(frozen=True)
class Environment:
    """A virtual environment with one Keras version.

    Attributes:
        name: What the table calls it, and the environment's folder.
        reads: Patterns of the names of the samples it loads.
        requirements: What pip installs.
        module: The name under which this Keras is imported.
        backend: Value of KERAS_BACKEND.
        compiles_legacy: Whether `load_model` compiles models from whole-model HDF5 files. Keras 3
            cannot deserialize their losses and metrics given as strings.
        stands_in_for: The Keras that wrote the samples, where this one reads for another that no
            longer installs.
    """

    name: str
    reads: tuple[str, ...]
    requirements: tuple[str, ...]
    module: str = "keras"
    backend: str = "tensorflow"
    compiles_legacy: bool = False
    stands_in_for: str = ""

    @property
    def label(self) -> str:
        """Return the name with the writer that it stands in for."""
        return f"{self.name} (for {self.stands_in_for})" if self.stands_in_for else self.name


_KERAS_2_15 = ("keras==2.15.0", "tensorflow-cpu==2.15.*", "numpy<2")

ENVIRONMENTS = (
    Environment(
        "keras-3.15.1",
        ("keras3.15.1-tf-*", "handmade/*"),
        ("keras==3.15.1", "tensorflow-cpu==2.21.*"),
    ),
    Environment("keras-3.10.0", ("keras3.10.0-jax-*",), ("keras==3.10.0", "jax"), backend="jax"),
    Environment(
        # The numpy backend imports jax for its convolutions.
        "keras-3.8.0",
        ("keras3.8.0-numpy-*", "keras3.0.5-tf-*"),
        ("keras==3.8.0", "jax"),
        backend="numpy",
    ),
    Environment(
        "keras-3.3.3",
        ("keras3.3.3-tf-*", "keras3.0.5-tf-*"),
        ("keras==3.3.3", "tensorflow-cpu==2.16.*", "numpy<2"),
    ),
    Environment(
        "keras-3.0.5",
        ("keras3.0.5-tf-*",),
        ("keras==3.0.5", "tensorflow-cpu==2.16.*", "numpy<2"),
    ),
    Environment("keras-2.15.0", ("keras2.15.0-*",), _KERAS_2_15, compiles_legacy=True),
    Environment(
        "keras-2.12.0",
        ("keras2.12.0-*",),
        ("keras==2.12.0", "tensorflow-cpu==2.12.*", "numpy<2"),
        compiles_legacy=True,
    ),
    Environment(
        "tf_keras-2.21.0",
        ("tf_keras2.21.0-*", "keras2.15.0-*"),
        ("tf_keras==2.21.0", "tensorflow==2.21.*"),
        module="tf_keras",
        compiles_legacy=True,
    ),
    Environment(
        # Keras 2.2.4 needs TensorFlow 1.15, which has no build for Python 3.8 or newer.
        "keras-2.15.0",
        ("keras2.2.4-*",),
        _KERAS_2_15,
        stands_in_for="2.2.4",
    ),
)


# --- facts: samples ------------------------------------------------------------------------------

SKIPPED = ("handmade/evil_*",)  # hostile files have tests of their own

REFUSED = {
    "*-quant_*": "quantised",
    "*-qlora_*": "quantised",
    "*-lora.h5": "unmerged LoRA factors",
    "handmade/no_weights.keras": "the archive holds no weights",
    "handmade/wrong_crc.keras": "the archive is damaged",
}
"""Samples that a merge must refuse, and why."""

WRITTEN_AS_LEGACY = {
    "keras2.12.*.keras": "Keras 2.12 wrote legacy HDF5 under this suffix; only .h5 loads in all",
}
"""Samples whose average goes to a `.h5` file although their suffix is another, and why."""

KERAS_CANNOT_LOAD = {
    # Legacy files lack the attribute by which Keras knows bfloat16.
    "*-bfloat16_a.h5": "No cast function available",
    "*-dtypes.h5": "No cast function available",
    # Two strings among the variables of a Dense layer.
    "handmade/strings.weights.h5": "expected 2 variables, but received 4 variables",
}
"""Samples that the Keras which wrote them cannot load, and a part of its message."""

RECIPES = {
    "handmade/bf16_native_float.*": "dense_bfloat16_float32",
    "handmade/hardlink_shared.*": "two_dense",
    "handmade/other_float.*": "dense_float64_float16",
    "handmade/twelve_vars.*": "twelve_variables",
    "handmade/*": "dense",
    "*-chunked_layer_names_weights.h5": "eight_dense",
    "*-containers.weights.h5": "containers",
    "*-float16.weights.h5": "cnn_float16",
    "*-metrics_in_model.weights.h5": "metrics_in_model",
    "*-nested.weights.h5": "nested",
    "keras2*-nested.h5": "nested",
    "keras2*-random_layers.*": "random_layers",
    "*-subclassed.weights.h5": "subclassed",
}
"""Samples without a configuration, and the worker's recipe for their model; first match wins."""

SAME_MODEL = {
    "bfloat16_b": "bfloat16_a",
    "cnn_weights_only": "cnn",
    "mixed_bfloat16": "cnn_a",
    "sgd_gradacc": "cnn_a",
    "sgd_schedule": "cnn_a",
}
"""Samples without a configuration, and the sample of the same writer that has it."""

NOT_AVERAGED = ("optimizer", "optimizer_weights", "metrics")
"""Groups at the root of a checkpoint whose variables a merge drops or copies."""

PREPROCESSING = ("normalization", "text_vectorization", "idf_weights")
"""Parts of the paths of variables that come from data, not from training."""


def first_match(name: str, table: Mapping[str, str]) -> str | None:
    """Return the value of the first pattern in a table that matches a name.

    Args:
        name: A sample's name.
        table: Patterns and their values.
    """
    return next((value for key, value in table.items() if fnmatch.fnmatchcase(name, key)), None)


@dataclass(frozen=True)
class Sample:
    """One sample checkpoint.

    Attributes:
        path: The file.
        name: Its path relative to the samples' folder, with forward slashes.
    """

    path: Path
    name: str

    @property
    def suffix(self) -> str:
        """Return the suffix by which Keras chooses its reader."""
        return next(suffix for suffix in SUFFIXES if self.name.endswith(suffix))

    def siblings(self) -> Iterator[Path]:
        """Yield the files that may describe this sample's model, the sample itself first."""
        yield self.path
        stem = self.path.name.removesuffix(self.suffix)
        writer, _, feature = stem.rpartition("-")
        for other in (feature, SAME_MODEL.get(feature, feature)):
            for suffix in (".keras", ".h5"):
                yield self.path.with_name(f"{writer}-{other}{suffix}")

    def model_source(self) -> str | None:
        """Return a recipe's name, the path of the file that describes the model, or None."""
        recipe = first_match(self.name, RECIPES)
        files = (str(path) for path in self.siblings() if path.is_file() and describes_model(path))
        return recipe or next(files, None)


def find_samples(folder: Path, only: str) -> list[Sample]:
    """Return the checkpoints of a folder that this script deals with.

    Args:
        folder: The samples' folder.
        only: A pattern that the names must match.
    """
    paths = sorted([*folder.glob("*"), *folder.glob("handmade/*")])
    samples = [
        Sample(path, path.relative_to(folder).as_posix())
        for path in paths
        if path.is_file() and path.name.endswith(SUFFIXES)
    ]
    return [
        sample
        for sample in samples
        if fnmatch.fnmatchcase(sample.name, only)
        and not any(fnmatch.fnmatchcase(sample.name, pattern) for pattern in SKIPPED)
    ]


# --- checkpoints as h5py sees them ---------------------------------------------------------------


def describes_model(path: Path) -> bool:
    """Tell whether a checkpoint holds its model's configuration.

    Args:
        path: A checkpoint.
    """
    if zipfile.is_zipfile(path):
        return True
    with h5py.File(path, "r") as file:
        return "model_config" in file.attrs


def weights_of(path: Path) -> bytes:
    """Return the HDF5 file that holds a checkpoint's weights.

    Args:
        path: A checkpoint.
    """
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return archive.read(ARCHIVE_MEMBER)


def copy_with_weights(source: Path, target: Path, weights: bytes) -> None:
    """Copy a checkpoint with other weights.

    Args:
        source: The checkpoint.
        target: The copy. Members of an archive are stored, as Keras stores them.
        weights: The HDF5 file that holds the weights.
    """
    if not zipfile.is_zipfile(source):
        target.write_bytes(weights)
        return
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for name in archive.namelist():
            copy.writestr(name, weights if name == ARCHIVE_MEMBER else archive.read(name))


def datasets(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield every dataset below a group with its path, also those that have two paths.

    Args:
        group: Where to start.
    """
    for name in group:
        item = group[name]
        if isinstance(item, h5py.Dataset):
            yield item.name.lstrip("/"), item
        else:
            yield from datasets(item)


def array_of(dataset: h5py.Dataset) -> np.ndarray:
    """Return a dataset's values; bfloat16 as such, whichever way the file stores it.

    Args:
        dataset: The dataset.
    """
    values = np.asarray(dataset[()])
    if values.dtype == "V2":  # Keras stores bfloat16 as two opaque bytes
        return values.view(ml_dtypes.bfloat16)
    if values.dtype.kind == "f" and dataset.id.get_type().get_size() < values.itemsize:
        return values.astype(ml_dtypes.bfloat16)  # a two-byte HDF5 float that h5py widens
    return values


def variables_in(path: Path) -> dict[str, np.ndarray]:
    """Return a checkpoint's variables by path, without the optimizer's.

    Args:
        path: The checkpoint.
    """
    with h5py.File(io.BytesIO(weights_of(path)), "r") as file:
        return {
            name: array_of(dataset)
            for name, dataset in datasets(file)
            if not name.startswith("optimizer")
        }


# --- the two inputs of a merge, and what it must make of them ------------------------------------


def is_float(dtype: np.dtype) -> bool:
    """Tell whether values of a dtype are averaged.

    Args:
        dtype: The dtype.
    """
    return dtype.kind == "f" or dtype == ml_dtypes.bfloat16


def is_trained(path: str) -> bool:
    """Tell whether a variable comes from training the model.

    Args:
        path: The variable's path in its checkpoint.
    """
    parts = [part.rstrip("0123456789").rstrip("_") for part in path.split("/")]
    return parts[0] not in NOT_AVERAGED and not any(part in PREPROCESSING for part in parts)


def perturb(dataset: h5py.Dataset, random: np.random.Generator) -> bool:
    """Change a dataset's values if a merge averages them; return whether there was one to change.

    Args:
        dataset: The dataset.
        random: Where the changes come from.
    """
    values = array_of(dataset)
    if not (values.size and is_float(values.dtype) and is_trained(dataset.name.lstrip("/"))):
        return False
    factor, summand = random.normal(1, 0.1, values.shape), random.normal(0, 0.01, values.shape)
    changed = np.asarray(values.astype(np.float64) * factor + summand).astype(values.dtype)
    dataset[()] = changed.view("V2") if dataset.dtype == "V2" else changed.astype(dataset.dtype)
    return True


def perturbed_copy(source: Path, target: Path) -> int:
    """Copy a checkpoint with other values in the variables that a merge averages.

    Args:
        source: The checkpoint.
        target: The copy.

    Returns:
        How many variables have other values.
    """
    buffer, random = io.BytesIO(weights_of(source)), np.random.default_rng(SEED)
    with h5py.File(buffer, "r+") as file:
        changed = sum(perturb(dataset, random) for _, dataset in datasets(file))
    copy_with_weights(source, target, buffer.getvalue())
    return changed


def mean_rounded_once(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the float64 mean in the inputs' dtype; the first input if it is not of floats.

    Args:
        first: One input.
        second: The other.
    """
    if not is_float(first.dtype):
        return first
    mean = (first.astype(np.float64) + second.astype(np.float64)) / 2
    return np.asarray(mean).astype(first.dtype)


def difference(
    first: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
    merged: Mapping[str, np.ndarray],
) -> str:
    """Return what sets merged variables apart from the mean of two others; "" if nothing does.

    Args:
        first: The variables of the first input.
        second: Those of the second.
        merged: Those of the result.
    """
    if first.keys() != merged.keys():
        return f"variables in only one of input and result: {sorted(first.keys() ^ merged.keys())}"
    for name, found in merged.items():
        expected = mean_rounded_once(first[name], second[name])
        if expected.dtype.newbyteorder("=") != found.dtype.newbyteorder("="):
            return f"{name}: {found.dtype} instead of {expected.dtype}"
        if not np.array_equal(expected, found):
            return f"{name}: not the mean of the inputs"
    return ""


@dataclass(frozen=True)
class Merge:
    """How one run of `streamavg merge` ended.

    Attributes:
        exit_code: Its exit code; None if it did not end in time.
        message: Its error message, or the last line on its standard error.
    """

    exit_code: int | None
    message: str

    @property
    def refused(self) -> bool:
        """Tell a refusal from a crash, which also has exit code 1."""
        return self.exit_code == 1 and self.message.startswith("error:")


def merge(first: Path, second: Path, output: Path) -> Merge:
    """Average two checkpoints with the command line.

    Args:
        first: One checkpoint.
        second: The other.
        output: The checkpoint to write.
    """
    command = [sys.executable, "-m", "streamavg", "merge", first, second, "-o", output, "--quiet"]
    run = functools.partial(subprocess.run, capture_output=True, text=True, check=False)
    try:
        done = run(command, cwd=REPOSITORY, timeout=MERGE_TIMEOUT)
    except subprocess.TimeoutExpired:
        return Merge(None, f"no end after {MERGE_TIMEOUT} s")
    lines = [line.strip() for line in done.stderr.splitlines()]
    errors = (line for line in lines if line.startswith("error:"))
    return Merge(done.returncode, next(errors, last_line(done.stderr)))


def last_line(text: str) -> str:
    """Return the last line of a text that is not empty, or "".

    Args:
        text: The text.
    """
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


@dataclass(frozen=True)
class Case:
    """A sample, its perturbed copy, and their average.

    Attributes:
        sample: The sample.
        perturbed: The copy.
        merged: The average; the file is missing if there was no merge, or it refused.
        changed: How many variables differ between the sample and the copy.
        merge: How the merge ended; None if there was none.
    """

    sample: Sample
    perturbed: Path
    merged: Path
    changed: int
    merge: Merge | None

    @property
    def files(self) -> dict[str, Path]:
        """Return the files that Keras has to load."""
        files = {"original": self.sample.path, "copy": self.perturbed, "merged": self.merged}
        return {role: path for role, path in files.items() if path.exists()}

    @functools.cached_property
    def merge_problem(self) -> str:
        """Return what is wrong with the merged file as h5py reads it, or ""."""
        if self.merge is None:
            return ""
        if self.merge.exit_code != 0:
            return f"merge: exit code {self.merge.exit_code}: {self.merge.message}"
        inputs = variables_in(self.sample.path), variables_in(self.perturbed)
        problem = difference(*inputs, variables_in(self.merged))
        return f"merged file: {problem}" if problem else ""


def make_case(sample: Sample, folder: Path, merging: bool) -> Case:
    """Write a sample's perturbed copy and average the two.

    Args:
        sample: The sample.
        folder: Where to write; it gets a folder for the sample.
        merging: Whether to average.
    """
    home = folder / sample.name
    home.mkdir(parents=True)
    is_renamed = first_match(sample.name, WRITTEN_AS_LEGACY)
    perturbed = home / f"copy{sample.suffix}"
    merged = home / f"merged{'.h5' if is_renamed else sample.suffix}"
    try:
        changed = perturbed_copy(sample.path, perturbed)
    except (KeyError, zipfile.BadZipFile):  # no weights, or damaged: the merge is to find out
        changed = 0
        shutil.copyfile(sample.path, perturbed)
    outcome = merge(sample.path, perturbed, merged) if merging else None
    return Case(sample, perturbed, merged, changed, outcome)


# --- Keras ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """What Keras made of one file.

    Attributes:
        variables: The model's variables by number and name.
        error: What Keras raised, on one line; then there are no variables.
    """

    variables: Mapping[str, np.ndarray]
    error: str = ""


def install(environment: Environment, folder: Path) -> Path:
    """Create a virtual environment, or complete one that exists.

    Args:
        environment: The environment.
        folder: The folder of all environments.

    Returns:
        Its Python.

    Raises:
        subprocess.CalledProcessError: Something does not install.
    """
    home = folder / environment.name
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
    if not python.exists():
        run([sys.executable, "-m", "venv", home])
    run([*pip, *environment.requirements, "h5py"])
    return python


def load_all(
    environment: Environment, python: Path, cases: Sequence[Case], folder: Path
) -> Iterator[dict[str, Loaded]]:
    """Load every file of every case in one process of an environment.

    Args:
        environment: The environment.
        python: Its Python.
        cases: The cases.
        folder: Where the process may write.

    Yields:
        For every case its loaded files: `original`, `copy` and perhaps `merged`.
    """
    home = Path(tempfile.mkdtemp(dir=folder))
    jobs = [(case, role, path) for case in cases for role, path in case.files.items()]
    tasks = [
        worker_task(case.sample, path, environment) | {"values": str(home / f"{number}.npz")}
        for number, (case, _, path) in enumerate(jobs)
    ]
    entries = run_worker(environment, python, tasks, home)
    loaded: dict[str, dict[str, Loaded]] = {case.sample.name: {} for case in cases}
    for (case, role, _), task, entry in zip(jobs, tasks, entries, strict=True):
        loaded[case.sample.name][role] = read_entry(entry, Path(task["values"]))
    yield from loaded.values()


def worker_task(sample: Sample, path: Path, environment: Environment) -> dict[str, object]:
    """Return the worker's task for one file, without the name of the file for the values.

    Args:
        sample: The sample that the file belongs to.
        path: The file.
        environment: The environment that loads it.
    """
    source = sample.model_source()
    return {
        "checkpoint": str(path),
        "rebuild": None if source == str(sample.path) else source,
        "compile": environment.compiles_legacy or zipfile.is_zipfile(source),
    }


def run_worker(
    environment: Environment, python: Path, tasks: list[dict], folder: Path
) -> list[dict]:
    """Run the worker; return its report, one error per task if it did not get that far.

    Args:
        environment: The environment.
        python: Its Python.
        tasks: The worker's tasks.
        folder: Where to put the tasks and the report.
    """
    task_file, report = folder / "tasks.json", folder / "report.json"
    task_file.write_text(json.dumps(tasks), "utf-8")
    variables = {
        "KERAS_BACKEND": environment.backend,
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [python, WORKER, environment.module, task_file, report]
    done = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = f"the worker ended with {done.returncode}: {last_line(done.stderr)}"
        return [{"error": reason}] * len(tasks)
    return json.loads(report.read_text("utf-8"))


def read_entry(entry: dict, values: Path) -> Loaded:
    """Return one entry of the worker's report with the values that belong to it.

    Args:
        entry: The entry.
        values: The file of values.
    """
    if "error" in entry:
        return Loaded({}, " ".join(entry["error"].split())[:LONGEST_ERROR])
    with np.load(values) as arrays:
        return Loaded(
            {
                f"{number} {variable['name']}": arrays[f"arr_{number}"]
                .view(np.dtype(variable["dtype"]))
                .reshape(variable["shape"])
                for number, variable in enumerate(entry["variables"])
            }
        )


# --- verdicts ------------------------------------------------------------------------------------


class Result(enum.StrEnum):
    """What became of a sample."""

    EQUAL = "loaded and equal"
    LOADED = "original loads"
    REFUSED = "refused as expected"
    ORIGINAL_FAILS = "original fails in Keras too"
    NOT_REBUILT = "not rebuilt"
    SKIPPED = "skipped"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        sample: The sample's name.
        keras: The Keras that loaded it, or "-".
        result: What became of it.
        detail: Why, or how much was compared.
    """

    sample: str
    keras: str
    result: Result
    detail: str = ""


def judge_refusal(case: Case, reason: str) -> Row:
    """Return the row of a sample that a merge must refuse.

    Args:
        case: The case.
        reason: Why it must.
    """
    row = functools.partial(Row, case.sample.name, "-")
    if case.merge is None:
        return row(Result.SKIPPED, f"to be refused: {reason}")
    if case.merge.refused and not case.merged.exists():
        return row(Result.REFUSED, case.merge.message)
    ending = f"exit code {case.merge.exit_code}: {case.merge.message}".rstrip(": ")
    return row(Result.FAILED, f"not refused ({reason}), {ending}")


def judge_merge_only(
    case: Case, row: Callable[[Result, str], Row], result: Result, reason: str
) -> Row:
    """Return the row of a sample that no Keras loads: the merge may refuse it or must be right.

    Args:
        case: The case.
        row: Makes the row of a result and a detail.
        result: The result if nothing is wrong.
        reason: Why no Keras loads it.
    """
    wrong = case.merge_problem and not case.merge.refused
    detail = "; ".join(filter(None, (reason, case.merge_problem)))
    return row(Result.FAILED if wrong else result, detail)


def judge(case: Case, environment: Environment, loaded: Mapping[str, Loaded]) -> Row:
    """Return the row of a sample that a Keras had to load.

    Args:
        case: The case.
        environment: The environment that loaded it.
        loaded: What Keras made of its files.
    """
    row = functools.partial(Row, case.sample.name, environment.label)
    known = first_match(case.sample.name, KERAS_CANNOT_LOAD)
    error = loaded["original"].error
    if known and known in error:
        return judge_merge_only(case, row, Result.ORIGINAL_FAILS, error)
    problem = keras_problem(loaded, case.changed) or case.merge_problem
    if problem:
        return row(Result.FAILED, problem)
    detail = f"{len(loaded['original'].variables)} variables, {case.changed} averaged"
    return row(Result.EQUAL if case.merge else Result.LOADED, detail)


def keras_problem(loaded: Mapping[str, Loaded], changed: int) -> str:
    """Return what is wrong with the models that Keras loaded, or "".

    Args:
        loaded: What Keras made of the files of one case.
        changed: How many variables differ between the original and the copy.
    """
    for role, model in loaded.items():
        if model.error:
            return f"{role}: {model.error}"
    first, second = loaded["original"].variables, loaded["copy"].variables
    arrived = sum(
        not np.array_equal(*pair) for pair in zip(first.values(), second.values(), strict=True)
    )
    if arrived != changed:
        return f"{arrived} of the {changed} changed variables arrived in the model"
    problem = difference(first, second, loaded["merged"].variables) if "merged" in loaded else ""
    return f"merged model: {problem}" if problem else ""


def judge_all(cases: Sequence[Case], venvs: Path, folder: Path) -> Iterator[Row]:
    """Yield the rows of all cases, environment by environment.

    Args:
        cases: The cases.
        venvs: The folder of all environments.
        folder: Where to put temporary files.
    """
    loadable = []
    for case in cases:
        if reason := first_match(case.sample.name, REFUSED):
            yield judge_refusal(case, reason)
        elif case.sample.model_source() is None:
            row = functools.partial(Row, case.sample.name, "-")
            yield judge_merge_only(case, row, Result.NOT_REBUILT, "no recipe for its model")
        elif not any(reads(environment, case.sample) for environment in ENVIRONMENTS):
            yield Row(case.sample.name, "-", Result.SKIPPED, "no environment for its writer")
        else:
            loadable.append(case)
    for environment in ENVIRONMENTS:
        mine = [case for case in loadable if reads(environment, case.sample)]
        if mine:
            yield from judge_environment(environment, mine, venvs, folder)


def reads(environment: Environment, sample: Sample) -> bool:
    """Tell whether an environment loads a sample.

    Args:
        environment: The environment.
        sample: The sample.
    """
    return any(fnmatch.fnmatchcase(sample.name, pattern) for pattern in environment.reads)


def judge_environment(
    environment: Environment, cases: Sequence[Case], venvs: Path, folder: Path
) -> Iterator[Row]:
    """Yield the rows of the cases that one environment loads.

    Args:
        environment: The environment.
        cases: The cases.
        venvs: The folder of all environments.
        folder: Where to put temporary files.
    """
    say(f"{environment.label}: installing")
    try:
        python = install(environment, venvs)
    except subprocess.CalledProcessError as error:
        reason = f"does not install: {last_line(error.stderr)}"
        say(f"{environment.label}: {reason}")
        for case in cases:
            yield Row(case.sample.name, environment.label, Result.SKIPPED, reason)
        return
    say(f"{environment.label}: loading {len(cases)} samples")
    for case, loaded in zip(cases, load_all(environment, python, cases, folder), strict=True):
        yield judge(case, environment, loaded)


# --- command line --------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print progress.

    Args:
        text: One line.
    """
    print(text, file=sys.stderr, flush=True)


def by_sample(row: Row) -> tuple[str, str]:
    """Return what the table is sorted by.

    Args:
        row: A row.
    """
    return row.sample, row.keras


def print_table(rows: Sequence[Row]) -> None:
    """Print the rows as a table, and how many there are of each result.

    Args:
        rows: The rows.
    """
    lines = [
        ("sample", "Keras", "result", "detail"),
        *(tuple(asdict(row).values()) for row in rows),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        print("  ".join([*cells, line[3]]).rstrip())
    counts = Counter(row.result for row in rows)
    print("\n" + ", ".join(f"{count} {result}" for result, count in counts.most_common()))


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("samples", type=Path, help="folder of sample checkpoints")
    parser.add_argument(
        "--venvs", type=Path, required=True, help="folder for the virtual environments, reused"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names of the samples")
    parser.add_argument(
        "--originals-only", action="store_true", help="load the samples, do not merge them"
    )
    return parser.parse_args()


def main() -> int:
    """Run everything; return the exit code."""
    arguments = parse_arguments()
    samples = find_samples(arguments.samples.resolve(), arguments.only)
    if not samples:
        say("error: no sample found")
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        say(f"preparing {len(samples)} samples")
        cases = [make_case(sample, folder, not arguments.originals_only) for sample in samples]
        rows = sorted(judge_all(cases, arguments.venvs.resolve(), folder), key=by_sample)
    print_table(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), "utf-8")
    return int(any(row.result is Result.FAILED for row in rows))


if __name__ == "__main__":
    sys.exit(main())
