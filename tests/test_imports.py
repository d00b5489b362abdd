"""The arrows between the rooms: a module imports only from rooms below its own."""

import ast
import sys

import pytest

from tests.builders import ROOT, run_python

PACKAGE = "streamavg"
LEVELS = [
    {"errors", "version"},
    {
        "units",
        "memory",
        "dtypes",
        "system_calls",
        "page_buffer",
        "ordered",
        "natural_order",
        "coefficients",
    },
    {"architecture", "options"},
    {"access"},
    {"checkpoint"},
    {
        "formats.files",
        "formats.roles",
        "formats.output",
        "formats.crc32",
        "formats.datasets",
        "formats.plain_structures",
        "formats.library",
    },
    {"formats.archive", "formats.hdf5_headers", "formats.plain_headers"},
    {"formats.plain_writing"},
    {"formats.hdf5"},
    {"formats.hdf5_writing"},
    {"formats.keras_weights", "formats.keras_legacy"},
    {"formats.keras_archive", "formats.legacy_conversion"},
    {"formats"},
    {"selection.metrics"},
    {"selection.file_names"},
    {"selection.tables"},
    {"selection.scores"},
    {"selection"},
    {"methods.mean", "methods.ranking", "methods.geometric_median", "methods.slerp", "distances"},
    {"methods.median", "methods.trimmed_mean", "methods.pooled"},
    {"methods"},
    {"pairing", "moving_statistics"},
    {"matching"},
    {"planning"},
    {"streaming", "record", "measuring"},
    {"weighing"},
    {"comparison", "findings", "scanning", "running_sum"},
    {"plotting", "sampling"},
    {"judging"},
    {"merging", "inspecting", "comparing", "checking"},
    {"evaluation"},
    {
        "evaluation.keras_backend",
        "evaluation.bootstrap",
        "evaluation.strategies",
        "evaluation.placing",
    },
    {"evaluation.verdict", "evaluation.soup_record"},
    {"evaluation.drawing"},
    {"evaluation.datasets", "evaluation.verification", "evaluation.demo"},
    {"evaluation.models", "evaluation.scoring", "evaluation.recalibrating"},
    {"evaluation.rebuilding"},
    {"evaluation.evaluating", "evaluation.souping"},
    {"evaluation.connectivity"},
    {"cli.interrupts", "cli.exit_codes", "cli.printing", "cli.common_options", "cli.record_file"},
    {"cli.progress"},
    {
        "cli.merge",
        "cli.inspect",
        "cli.compare",
        "cli.check",
        "cli.rebuild",
        "cli.evaluate",
        "cli.soup",
        "cli.demo",
    },
    {"cli"},
    {"__main__"},
]
"""From the foundation up. Modules of one level do not know each other."""
METHODS = (
    "methods",
    "methods.mean",
    "methods.median",
    "methods.geometric_median",
    "methods.pooled",
    "methods.ranking",
    "methods.slerp",
    "methods.trimmed_mean",
)
ENGINE = ("pairing", "matching", "planning", "streaming", "measuring", "weighing",
          "moving_statistics", *METHODS)  # fmt: skip


def modules():
    names = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        names[name] = ast.parse(path.read_text(encoding="utf-8"))
    return names


MODULES = modules()
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}


def imports(name, *, at_runtime=False):
    """Modules that `name` imports: everywhere, or only when it is loaded."""
    found = set()
    for node in runtime_nodes(MODULES[name]) if at_runtime else ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = full.removeprefix(f"{PACKAGE}.") in MODULES
                found.add(full if is_module else node.module)
    return found


def runtime_nodes(tree):
    """Statements that run when a module is loaded: not in functions, not for type checkers."""
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending.extend(c for c in ast.iter_child_nodes(node) if isinstance(c, ast.stmt))


def own_imports(name, **options):
    """Modules of the package that `name` imports, without the package's name."""
    prefix = f"{PACKAGE}."
    return {
        imported.removeprefix(prefix)
        for imported in imports(name, **options)
        if imported.startswith(prefix)
    }


def test_every_module_has_its_place_in_the_order():
    assert set(MODULES) - {""} == set(LEVEL_OF)


@pytest.mark.parametrize("name", sorted(set(LEVEL_OF)))
def test_a_module_imports_only_from_below(name):
    wrong = {
        imported
        for imported in own_imports(name)
        if LEVEL_OF.get(imported, len(LEVELS)) >= LEVEL_OF[name]
    }
    assert not wrong, f"{name} imports {sorted(wrong)}, which are not below it"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_imports_the_package_s_front_door(name):
    """Public names are for users; inside, a name is imported from its home."""
    assert PACKAGE not in imports(name)


@pytest.mark.parametrize("name", ENGINE)
def test_the_engine_knows_no_format(name):
    specific = {i for i in own_imports(name) if i.startswith("formats.")}
    assert specific <= {"formats.output"}  # planning asks it whether a place is taken


@pytest.mark.parametrize("name", [*METHODS, "distances"])
def test_methods_know_neither_files_nor_checkpoints(name):
    assert own_imports(name) <= {*METHODS, "coefficients", "errors"}
    assert not {i.split(".")[0] for i in imports(name)} & {"h5py", "os", "pathlib", "threading"}


def test_the_engine_and_the_methods_know_no_hdf5():
    assert not [name for name in ENGINE if "h5py" in imports(name)]


KERAS = {"tensorflow", "keras", "tf_keras"}
ONE_DOOR = "evaluation.keras_backend"
PICTURES = ("plotting", "evaluation.drawing")
SEARCH = "evaluation.strategies"
OPTIONAL = {
    SEARCH: {"scipy"},
    ONE_DOOR: KERAS,
    "evaluation.demo": {"sklearn"},
    "formats.crc32": {"isal"},
    **{name: {"matplotlib"} for name in PICTURES},
}


@pytest.mark.parametrize("name", sorted(set(MODULES) - {ONE_DOOR}))
def test_no_module_imports_tensorflow_or_keras(name):
    assert not {i.split(".")[0] for i in imports(name)} & KERAS


def test_one_module_imports_keras_and_only_when_a_model_is_needed():
    names = {i.split(".")[0] for i in imports(ONE_DOOR)}
    loaded = {i.split(".")[0] for i in imports(ONE_DOOR, at_runtime=True)}
    assert {"keras", "tensorflow"} <= names - loaded


@pytest.mark.parametrize("name", sorted(n for n in MODULES if n.startswith("evaluation")))
def test_loading_a_module_of_the_evaluation_room_loads_no_keras(name):
    code = f"import sys, {PACKAGE}.{name}; sys.exit(bool({KERAS!r} & set(sys.modules)))"
    assert run_python(code).returncode == 0


@pytest.mark.parametrize(
    "arguments", [["--help"], *([name, "--help"] for name in ("rebuild", "evaluate", "soup"))]
)
def test_help_loads_no_keras(arguments):
    code = (
        "import atexit, os, sys, streamavg.cli as cli\n"
        f"atexit.register(lambda: {KERAS!r} & set(sys.modules) and os._exit(9))\n"
        "cli.main()"
    )
    assert run_python(code, *arguments).returncode == 0


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_imports_pickle_or_a_way_to_run_code(name):
    assert not {i.split(".")[0] for i in imports(name)} & {"pickle", "marshal", "shelve", "dill"}
    called = {ast.unparse(n.func) for n in ast.walk(MODULES[name]) if isinstance(n, ast.Call)}
    assert not called & {"eval", "exec", "compile"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_arrays_are_never_unpickled(name):
    loads = [
        {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        for node in ast.walk(MODULES[name])
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("np.load")
    ]
    assert all(options.get("allow_pickle") == "False" for options in loads)
    assert not loads or name == "evaluation.datasets"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_only_the_standard_library_and_the_dependencies(name):
    known = {PACKAGE, "click", "h5py", "ml_dtypes", "numpy", "tqdm", *sys.stdlib_module_names}
    assert {i.split(".")[0] for i in imports(name)} <= known | OPTIONAL.get(name, set())


def test_strategies_import_scipy_only_when_coefficients_are_searched_for():
    names = {i.split(".")[0] for i in imports(SEARCH)}
    loaded = {i.split(".")[0] for i in imports(SEARCH, at_runtime=True)}
    assert "scipy" in names - loaded


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_import_matplotlib_only_when_they_are_drawn(name):
    names = {i.split(".")[0] for i in imports(name)}
    loaded = {i.split(".")[0] for i in imports(name, at_runtime=True)}
    assert "matplotlib" in names - loaded


def test_there_are_no_cycles_when_the_package_is_loaded():
    done = set()

    def visit(name, trail):
        assert name not in trail, f"cycle: {' -> '.join([*trail, name])}"
        if name not in done:
            for imported in own_imports(name, at_runtime=True):
                visit(imported, [*trail, name])
            done.add(name)

    for name in MODULES:
        visit(name, [])


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"", "__main__"}))
def test_every_module_can_be_loaded_first(name):
    done = run_python(f"import {PACKAGE}.{name}")
    assert done.returncode == 0, done.stderr


def test_the_order_is_watched(monkeypatch):
    """An arrow against the order is found, wherever in the module it stands."""
    code = "def f():\n    from streamavg.merging import merge\n"
    monkeypatch.setitem(MODULES, "errors", ast.parse(code))
    assert own_imports("errors") == {"merging"}
    assert own_imports("errors", at_runtime=True) == set()
    with pytest.raises(AssertionError, match="merging"):
        test_a_module_imports_only_from_below("errors")
