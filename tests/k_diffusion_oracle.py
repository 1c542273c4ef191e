"""k-diffusion's own sampling functions, to compare ours with. Installed without its dependencies (see the Makefile), it cannot
be imported as a package, which wants torchvision and more; its file of samplers needs none of them."""

import ast
import functools
import importlib.util
import sys
import types
from pathlib import Path


@functools.cache
def k_diffusion():
    """The module k_diffusion.sampling as it was published."""
    place = importlib.util.find_spec("k_diffusion")
    assert place is not None and place.submodule_search_locations, "k-diffusion is missing: make .venv/.dev"
    folder = Path(place.submodule_search_locations[0])
    package = types.ModuleType("k_diffusion")
    package.__path__ = []  # nothing else of it is ever imported
    package.utils = types.ModuleType("k_diffusion.utils")
    # Of its utilities the samplers use one function; the file itself wants torchvision.
    tree = ast.parse((folder / "utils.py").read_text("utf-8"))
    wanted = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "append_dims"]
    exec(compile(ast.Module(wanted, []), str(folder / "utils.py"), "exec"), package.utils.__dict__)
    there = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "k_diffusion"}
    sys.modules.update({"k_diffusion": package, "k_diffusion.utils": package.utils})
    try:
        spec = importlib.util.spec_from_file_location("k_diffusion.sampling", folder / "sampling.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        del sys.modules["k_diffusion"], sys.modules["k_diffusion.utils"]
        sys.modules.update(there)
    return module
