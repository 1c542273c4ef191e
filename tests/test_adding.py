"""A newcomer adds a generator in one file: it joins through an entry point and keeps the whole contract."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import giverny.assembly as assembly

pytestmark = pytest.mark.xdist_group("contract")
HERE = Path(__file__).parent


@pytest.fixture
def joined(monkeypatch):
    """The house as it is when a package with this entry point is installed."""
    monkeypatch.syspath_prepend(str(HERE))
    entry = EntryPoint("classgan", "one_file_painter:PAINTER", "giverny.painters")
    monkeypatch.setattr("giverny.assembly.opening.entry_points", lambda group: [entry] if group == "giverny.painters" else [])
    yield
    sys.modules.pop("one_file_painter", None)


def test_the_newcomer_is_found_by_name(joined):
    assert "classgan" in assembly.families() and "diffusion" in assembly.families()
    assert assembly.family("classgan").name == "classgan"


def test_the_newcomer_keeps_the_contract(joined, tmp_path):
    """tests/test_contract.py itself, with the newcomer as its only family."""
    run = tmp_path / "classgan"
    for _ in assembly.train(assembly.family("classgan").tiny(), run):
        pass
    import test_contract as contract

    runs = {"classgan": run}
    painter = assembly.open_painter(run)
    checks = [getattr(contract, name) for name in dir(contract) if name.startswith("test_")]
    assert len(checks) >= 14
    for i, check in enumerate(checks):
        offered = {"name": "classgan", "tiny_runs": runs, "painter": painter, "tmp_path": tmp_path / str(i)}
        (tmp_path / str(i)).mkdir()
        check(**{k: v for k, v in offered.items() if k in check.__code__.co_varnames[: check.__code__.co_argcount]})


def test_the_file_is_short():
    lines = [line for line in (HERE / "one_file_painter.py").read_text().splitlines() if line.strip()]
    assert len(lines) < 200


def test_a_family_that_is_not_there_names_the_nearest():
    from giverny.base.errors import InputError

    with pytest.raises(InputError, match="diffusion"):
        assembly.load_recipe({"family": "difusion", "name": "x"})
