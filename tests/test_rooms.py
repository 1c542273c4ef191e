"""The rooms: arrows point down, nothing comes back up, nothing happens at import. Read from the source text alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "giverny"

# floor of each room, and what it may import (see docs/map.md); a room may always import itself
NETWORKS = {"text", "autoencoders", "denoisers", "perception", "gans"}
BELOW_4 = {"base", "layers", *NETWORKS, "data", "sampling", "steering", "metrics", "checkpoints"}
MAY = {
    "base": set(),
    "layers": {"base"},
    "text": {"base", "layers"},
    "autoencoders": {"base", "layers"},
    "denoisers": {"base", "layers"},
    "perception": {"base", "layers"},
    "gans": {"base", "layers"},
    "data": {"base"},
    "sampling": {"base"},
    "steering": {"base", "layers"},
    "checkpoints": {"base"},
    "metrics": {"base"},
    # of the networks' rooms only what a prediction means, and what generators and critics are told
    "training": {"base", "sampling", "denoisers.precondition", "gans.losses", "gans.history"},
    "painters": BELOW_4 | {"training"},
    "judges": {"base", "perception", "data", "checkpoints", "training"},
    "pipelines": {"base", "training", "sampling", "steering", "metrics", "data"},
    "compare": {"base", "training", "checkpoints", "data"},
    "assembly": BELOW_4 | {"training", "painters", "judges", "pipelines", "compare"},
    "cli": BELOW_4 | {"training", "painters", "judges", "pipelines", "compare", "assembly"},
}
HEAVY = {"matplotlib", "tensorboardX", "jinja2", "rich", "diffusers", "transformers", "torchvision"}


def modules():
    return sorted(p for p in ROOT.rglob("*.py") if "shelf" not in p.parts)


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def for_types_only(tree):
    """Imports under `if TYPE_CHECKING`: they bind nothing when the program runs."""
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {id(n) for block in blocks for n in ast.walk(block)}


def imports(path):
    """(dotted name inside the package, whether at module level) of every import of our own; and foreign roots at top level."""
    tree = ast.parse(path.read_text("utf-8"))
    package = path.relative_to(ROOT).parts[:-1]
    own, foreign = [], set()
    top = {id(node) for node in tree.body}
    types = for_types_only(tree)
    for node in ast.walk(tree):
        if id(node) in types:
            continue
        if isinstance(node, ast.Import):
            if id(node) in top:
                foreign |= {alias.name.split(".")[0] for alias in node.names}
            assert not any(alias.name.split(".")[0] == "giverny" for alias in node.names), f"{path}: import the sibling file"
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                own.append(".".join([*base, *(node.module or "").split(".")]).strip("."))
            elif id(node) in top:
                foreign.add((node.module or "").split(".")[0])
    return own, foreign


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_arrows_point_down(path):
    room = name_of(path).split(".")[0]
    if room in ("", "__main__"):
        return
    assert room in MAY, f"{room} is a new room: give it a floor in this test and in docs/map.md"
    for target in imports(path)[0]:
        there = target.split(".")[0]
        allowed = there == room or there in MAY[room] or any(target.startswith(m) for m in MAY[room] if "." in m)
        assert allowed, f"{name_of(path)} (room {room}) may not import {target}"


def test_no_cycles():
    files = {name_of(p): p for p in modules()}
    graph = {n: {t for t in imports(p)[0] if t in files} for n, p in files.items()}
    done: set[str] = set()

    def visit(node, way):
        assert node not in way, " -> ".join([*way, node])
        if node not in done:
            for target in sorted(graph[node]):
                visit(target, [*way, node])
            done.add(node)

    for node in graph:
        visit(node, [])


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_heavy_libraries_are_imported_where_used(path):
    assert not imports(path)[1] & HEAVY


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_files_fit_a_reader(path):
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 400
    tree = ast.parse(text)
    assert path.stat().st_size == 0 or ast.get_docstring(tree), "a file's head says what it is"
    names = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert "print" not in names


def test_importing_the_package_does_no_work():
    code = "import sys, giverny; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules); dir(giverny)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_needs_no_torch():
    code = "import sys; from giverny.cli import cli; cli(['--help'], standalone_mode=False); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not {"torch", "numpy", "pydantic", "rich"} & set(out.split())


def test_public_names_are_all_there():
    import giverny

    assert giverny.__all__ == sorted(giverny.__all__)
    assert set(giverny.__all__) == set(giverny._HOMES)
    for name in giverny.__all__:
        assert getattr(giverny, name) is not None
    with pytest.raises(AttributeError):
        giverny.no_such_name  # noqa: B018
