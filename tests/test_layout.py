"""How the tree is laid out (docs/architecture.md): what a reader may rely on."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tarragon_hpc"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [
    *MODULES,
    *sorted((ROOT / "tests").rglob("*.py")),
    *(p for e in ("cpp", "hpp", "cu") for p in sorted((ROOT / "kernels").rglob(f"*.{e}"))),
]
LIMIT = 400


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_file_is_long(capsys):
    sizes = {p.relative_to(ROOT).as_posix(): lines(p) for p in SOURCES}
    median = statistics.median(sizes[p.relative_to(ROOT).as_posix()] for p in MODULES)
    with capsys.disabled():
        print(f" {len(MODULES)} modules, median {median:.0f} lines, longest {max(sizes.values())} ")
    assert not {p: n for p, n in sizes.items() if n > LIMIT}, f"at most {LIMIT} lines each"
    assert median <= 200


@pytest.mark.parametrize("folder", ["launch", "slurm", "kernels", "configs"])
def test_folders_beside_the_package_are_not_packages(folder):
    """An __init__.py would let kernels/ shadow Hugging Face's package of that name."""
    assert not list((ROOT / folder).rglob("__init__.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_modules_say_what_they_are_for(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    public = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not public, "public functions and classes have docstrings"


def test_every_folder_is_a_package_with_a_purpose():
    folders = {p.parent for p in MODULES}
    assert all((f / "__init__.py").stat().st_size for f in folders)


def test_nothing_of_one_machine_is_in_the_tree():
    paths = re.compile(r"/(home|root|Users|work|mnt|scratch)/[\w.-]+")
    hosts = re.compile(r"https?://[\w.-]*(pypi|pythonhosted|download\.pytorch|mirror)[\w.-]*")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split("\n") if listed.returncode == 0 else []
    for path in (ROOT / n for n in names if n and n != Path(__file__).relative_to(ROOT).as_posix()):
        if path.suffix in (".py", ".toml", ".yaml", ".md", ".txt", ".lock", ".cpp", ".hpp", ""):
            text = path.read_text(encoding="utf-8")
            assert not (found := paths.search(text)), f"{path}: {found}"
            assert not (found := hosts.search(text)), f"{path}: {found}"


HEAVY = ("torch", "vllm", "transformers", "numba", "triton")


def imported_by(module):
    """Top-level modules in a fresh interpreter after an import."""
    script = f"import sys, {module}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("package", ["gateway", "orchestrator", "cluster", "generate", "cli"])
def test_the_head_imports_no_torch(package):
    """Every module of the head's packages, imported together."""
    modules = [f"tarragon_hpc.{package}"] + [
        ".".join(p.relative_to(ROOT).with_suffix("").parts)
        for p in sorted((PACKAGE / package).rglob("*.py"))
        if p.name not in ("__init__.py", "__main__.py")
    ]
    assert not imported_by(", ".join(modules)) & set(HEAVY)
