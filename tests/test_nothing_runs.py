"""Nothing that is read runs: what the syntax trees of src/ say of loading and running, exceptions with their reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import anchorprune

ROOT = Path(anchorprune.__file__).parent
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}

# Modules whose import alone means that something may run, and the places that may.
MODULES = {
    "subprocess", "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "code",
    "codeop", "pty", "ctypes", "cffi",
}  # fmt: skip
MAY_IMPORT = {
    ("scale/jobs.py", "pickle"): "results between the processes of one launch, over connections that it made itself",
    ("datasets/zoo.py", "pickle"): "the name of the error that torchvision raises for a damaged data set",
    ("models/torchscript.py", "pickle"): "an unpickler that knows nothing but tensors",
    ("models/open_clip.py", "pickle"): "the name of the error that torch raises for a damaged checkpoint",
}
# What runs what it is given, or reads what may hold code; by the end of the dotted name, as it is called.
CALLS = {
    "eval", "exec", "compile", "__import__",
    "os.system", "os.popen", "os.startfile", "os.execv", "os.execve", "os.execvp", "os.execl", "os.spawnv", "os.spawnl",
    "os.posix_spawn", "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "torch.jit.load", "torch.export.load", "torch.hub.load",
    "yaml.load", "yaml.unsafe_load", "importlib.import_module", "entry.load", "onnx.load",
}  # fmt: skip
MAY_CALL = {
    ("scale/jobs.py", "pickle.loads"): "what `packed` gave in a process of this very launch",
    ("pruning/export.py", "torch.export.load"): "a program that this process has just written, to check it",
    ("pruning/export.py", "onnx.load"): "protobuf, of which nothing runs; without external data",
    ("plugins.py", "importlib.import_module"): "the modules of a folder of this package",
    ("plugins.py", "entry.load"): "packages that the user has installed, which say so themselves",
    ("__init__.py", "importlib.import_module"): "the modules of this package that hold its public names",
    ("tasks/captioning.py", "importlib.import_module"): "pycocoevalcap's scorers by our names; of it SPICE starts Java",
    ("commands/__init__.py", "importlib.import_module"): "the commands of this package",
    ("models/__init__.py", "importlib.import_module"): "the libraries that LIBRARIES names",
}
# Arguments without which a call may run what it reads.
NEEDED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "onnx.load": ("load_external_data", False),
}
REFUSED = {"trust_remote_code": True, "shell": True, "allow_pickle": True, "weights_only": False}


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a call's function; `?` is what has no name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value) or '?'}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield file, node, dotted(node.func)


def imported() -> set[tuple[str, str]]:
    """Modules by the file that imports them, in whatever form."""
    found = set()
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {(file, alias.name.partition(".")[0]) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add((file, node.module.partition(".")[0]))
    return found


def test_no_module_that_runs_or_unpickles_is_imported_but_where_it_is_said_why() -> None:
    assert {(file, module) for file, module in imported() if module in MODULES} == MAY_IMPORT.keys()


def test_nothing_is_called_that_runs_what_it_is_given_but_where_it_is_said_why() -> None:
    found = {(file, name) for file, _, name in calls() if name in CALLS}
    assert found == MAY_CALL.keys()


def test_these_are_not_called_under_another_name() -> None:
    hidden = {"system", "popen", "loads", "Unpickler", "load"}
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in ("os", "pickle", "torch", "numpy", "yaml"):
                assert not hidden & {alias.name for alias in node.names}, file


@pytest.mark.parametrize("name", NEEDED)
def test_whatever_loads_says_that_nothing_in_it_may_run(name: str) -> None:
    argument, value = NEEDED[name]
    for file, node, called in calls():
        if called == name:
            given = {word.arg: word.value for word in node.keywords}
            assert isinstance(given.get(argument), ast.Constant), f"{file}:{node.lineno}: {name} without {argument}"
            assert given[argument].value is value, f"{file}:{node.lineno}"  # type: ignore[attr-defined]


def test_torch_and_numpy_do_load_somewhere() -> None:
    """So that the test above holds something."""
    assert {"torch.load", "np.load"} <= {name for _, _, name in calls()}


def test_no_argument_lets_what_is_read_run() -> None:
    for file, node, name in calls():
        for word in node.keywords:
            is_constant = isinstance(word.value, ast.Constant)
            refused = word.arg in REFUSED and is_constant and word.value.value is REFUSED[word.arg]  # type: ignore[attr-defined]
            assert not refused, f"{file}:{node.lineno}: {name}({word.arg}=…)"
