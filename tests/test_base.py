"""Floor 0: files, recipes, pictures and the machine."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import threading
import warnings
import zlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from pydantic import Field, field_validator

from giverny.base.contracts import Knobs, Picture, Provenance, Request
from giverny.base.errors import InputError
from giverny.base.files import atomic_path, atomic_write, fingerprint, fingerprint_tensors, sha256_file
from giverny.base.images import (
    _to_rgb,
    fit,
    grid,
    png_bytes,
    read_picture,
    resize,
    resize_tensor,
    to_pixels,
    to_tensor,
    write_gif,
)
from giverny.base.picture import infotext, read_provenance, write_picture
from giverny.base.recipe import Recipe, check, describe, override, read_recipe, to_toml, with_preset
from giverny.base.runtime import (
    PictureStreams,
    derive_seed,
    describe_machine,
    devices,
    peak_memory,
    pick_device,
    pick_precision,
    threads,
    versions,
)

FIXTURES = Path(__file__).parent / "fixtures"

# ---------------------------------------------------------------------------------------------------------------------
# Files


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_written_whole_with_its_missing_folders(tmp_path):
    target = tmp_path / "new" / "folder" / "größe.txt"
    atomic_write(target, "één\r\nline")
    assert target.read_bytes() == "één\r\nline".encode()
    atomic_write(str(target), b"\x00\xff")
    assert target.read_bytes() == b"\x00\xff"
    assert names_in(target.parent) == [target.name]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "state.bin"
    target.write_bytes(b"old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_bytes(b"half of the n")
        assert target.read_bytes() == b"old"
        raise error
    assert target.read_bytes() == b"old"
    assert names_in(tmp_path) == ["state.bin"]


def test_a_file_of_the_longest_possible_name_can_be_written_atomically(tmp_path):
    target = tmp_path / ("ü" * 125 + ".txt")
    atomic_write(target, "x")
    assert target.read_text() == "x"


def test_a_written_file_has_the_rights_of_any_new_file_and_a_link_stays_a_link(tmp_path):
    plain, ours, link = tmp_path / "plain", tmp_path / "ours", tmp_path / "link"
    plain.write_text("")
    atomic_write(ours, "1")
    assert ours.stat().st_mode == plain.stat().st_mode
    link.symlink_to(ours)
    atomic_write(link, "2")
    assert link.is_symlink()
    assert ours.read_text() == "2"


def test_threads_writing_one_file_leave_one_of_their_versions(tmp_path):
    target = tmp_path / "shared"
    versions = [bytes([i]) * 50_000 for i in range(8)]
    workers = [threading.Thread(target=atomic_write, args=(target, version)) for version in versions]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert target.read_bytes() in versions
    assert names_in(tmp_path) == ["shared"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path, tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="a place to write to.*" + place.name):
            atomic_write(place, "x")


def test_sha256_of_a_file(tmp_path):
    atomic_write(tmp_path / "abc", "abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(InputError, match="nowhere"):
        sha256_file(tmp_path / "nowhere")


class Colour(StrEnum):
    red = "red"
    blue = "blue"


class Small(Recipe):
    size: int = 3
    rate: float = 1.0
    folder: Path = Path("a/b")


def test_a_fingerprint_depends_on_contents_only():
    assert fingerprint({"b": [1, 2.5], "a": None}) == fingerprint({"a": None, "b": (1, 2.5)})
    assert fingerprint(Small()) == fingerprint({"size": 3, "rate": 1.0, "folder": "a/b"})
    assert fingerprint({"x", "y", "z"}) == fingerprint({"z", "y", "x"})
    assert fingerprint({"c": Colour.red, "in": [Small()]}) == fingerprint({"in": [Small(rate=1)], "c": "red"})
    different = [1, 1.0, "1", True, None, [1], {"1": 1}, "ä", [[1], 2], [1, [2]], {}, []]
    assert len({fingerprint(value) for value in different}) == len(different)
    assert len(fingerprint(0)) == 16
    # names of caches and models must not change with a release: the canonical text, written out
    canonical = rb'{"a":[1,2.5,"\u00fc",null],"b":true}'
    assert fingerprint({"b": True, "a": [1, 2.5, "ü", None]}) == hashlib.sha256(canonical).hexdigest()[:16]


def test_what_has_no_canonical_form_has_no_fingerprint():
    with pytest.raises(TypeError, match="Tensor"):
        fingerprint({"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="JSON"):
        fingerprint(float("nan"))


def test_a_fingerprint_of_tensors_sees_names_types_shapes_and_bytes_but_no_order():
    base = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(True)}
    same = {"b": torch.tensor(True), "a": torch.arange(6.0).reshape(3, 2).t().contiguous().t().reshape(2, 3)}
    assert fingerprint_tensors(base) == fingerprint_tensors(same)
    assert fingerprint_tensors({"a": base["a"].t().contiguous().t()}) == fingerprint_tensors({"a": base["a"]})
    others = [
        base | {"a": base["a"].reshape(3, 2)},
        base | {"a": base["a"].double()},
        base | {"a": base["a"].bfloat16()},
        base | {"a": base["a"] + 1e-6},
        {"c": base["a"], "b": base["b"]},
        base | {"c": torch.zeros(0)},
        base | {"c": torch.zeros(0, 2)},
    ]
    assert len({fingerprint_tensors(tensors) for tensors in [base, *others]}) == len(others) + 1


# ---------------------------------------------------------------------------------------------------------------------
# Recipes


class Fast(Recipe):
    kind: Literal["fast"] = "fast"
    name: str = "fast"
    learning_rate: float = Field(1e-3, gt=0, le=1, description="how far a step goes")
    heads: tuple[int, ...] | None = (8, 8)


class Slow(Recipe):
    kind: Literal["slow"] = "slow"
    name: str = "slow"
    momentum: float = Field(0.9, ge=0, lt=1)
    inner: Small = Small()


class Plan(Recipe):
    title: str
    stages: tuple[Annotated[Fast | Slow, Field(discriminator="kind")], ...] = ()
    size: int | Literal["auto"] = "auto"
    pair: tuple[int, int] | None = None
    flag: bool = False
    colour: Colour = Colour.red
    table: dict[str, float] = Field(default_factory=dict)
    note: str | None = None

    @field_validator("title")
    @classmethod
    def _short(cls, title: str) -> str:
        if len(title) > 40:
            raise ValueError("a title wants 40 letters or fewer")
        return title


def test_three_wrong_keys_are_three_lines_with_suggestions_from_their_own_table():
    data = {
        "titel": "x",
        "title": "x",
        "stages": [{"kind": "fast", "lerning_rate": 1}, {"kind": "slow", "inner": {"siez": 1}}],
    }
    with pytest.raises(InputError) as caught:
        check(Plan, data, "plan.toml")
    message = str(caught.value)
    assert "plan.toml" in message and "3 mistakes" in message
    lines = sorted(line.strip() for line in message.splitlines()[1:])
    assert [line.partition("? ")[0] for line in lines] == [
        "stages.0.lerning_rate: unknown key; did you mean 'learning_rate'",
        "stages.1.inner.siez: unknown key; did you mean 'size'",
        "titel: unknown key; did you mean 'title'",
    ]
    assert "momentum" not in lines[0]  # the other stage's setting is no choice here


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({}, "title: wanted, and not given"),
        ({"title": 3}, "title: wanted text in quotation marks; given 3"),
        ({"title": "x" * 99}, "title: a title wants 40 letters or fewer; given"),
        ({"title": "x", "flag": 1}, "flag: wanted true or false; given 1"),
        ({"title": "x", "size": 1.5}, "size: wanted a whole number or 'auto'; given 1.5"),
        ({"title": "x", "size": "7"}, "size: wanted a whole number or 'auto'; choices: auto; given \"7\""),
        ({"title": "x", "size": True}, "size: wanted a whole number or 'auto'; given true"),
        ({"title": "x", "table": {"a": "b"}}, "table.a: wanted a number"),
        ({"title": "x", "table": {"a": float("nan")}}, "table.a: wanted a finite number; given NaN"),
        ({"title": "x", "colour": "green"}, "colour: wanted 'red' or 'blue'; given \"green\""),
        ({"title": "x", "stages": {"kind": "fast"}}, "stages: wanted a list; given a table"),
        ({"title": "x", "stages": [{"kind": "fasst"}]}, "stages.0: wanted a known 'kind'; did you mean 'fast'?"),
        ({"title": "x", "stages": [{}]}, "stages.0: wanted a key 'kind' that says which kind"),
        (
            {"title": "x", "stages": [{"kind": "fast", "learning_rate": -1}]},
            "stages.0.learning_rate: wanted a number greater than 0; given -1",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place_what_was_wanted_and_what_was_given(data, line):
    with pytest.raises(InputError) as caught:
        check(Plan, data, "plan.toml")
    said = str(caught.value).splitlines()
    assert "1 mistake:" in said[0]
    assert len(said) == 2
    assert said[1].strip().startswith(line)


def test_a_correct_recipe_takes_whole_numbers_for_floats_and_the_word_none():
    plan = check(
        Plan,
        {"title": "x", "note": "none", "stages": [{"kind": "fast", "learning_rate": 1, "heads": "none"}]},
        "plan.toml",
    )
    assert plan.stages[0] == Fast(learning_rate=1.0, heads=None)
    assert plan.note == "none"  # where text is wanted, it is a text like any other


PLANS = st.builds(
    Plan,
    title=st.text(max_size=40),
    stages=st.lists(
        st.builds(
            Fast,
            name=st.text(),
            learning_rate=st.floats(0, 1, exclude_min=True),
            heads=st.none() | st.lists(st.integers(-(2**63), 2**63 - 1)).map(tuple),
        )
        | st.builds(Slow, momentum=st.floats(0, 1, exclude_max=True), inner=st.builds(Small, size=st.integers())),
        max_size=3,
    ).map(tuple),
    size=st.integers() | st.just("auto"),
    pair=st.none() | st.tuples(st.integers(), st.integers()),
    flag=st.booleans(),
    colour=st.sampled_from(Colour),
    table=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    note=st.none() | st.text(),
)


@settings(max_examples=60, deadline=None)
@given(PLANS)
def test_toml_of_a_recipe_reads_back_as_the_same_recipe(plan):
    assert check(Plan, read_recipe(to_toml(plan)), "its own text") == plan


def test_toml_leaves_out_what_is_none_and_keeps_lists_of_numbers_on_one_line():
    text = to_toml(Plan(title="[1,\n2]", pair=(1, 2), stages=(Fast(heads=None), Fast(heads=(1, 2, 3)))))
    assert "note" not in text
    assert "pair = [1, 2]\n" in text
    assert 'heads = "none"' in text  # leaving it out would say (8, 8)
    assert "heads = [1, 2, 3]\n" in text


def test_a_recipe_that_toml_cannot_say_is_refused_rather_than_changed():
    class Free(Recipe):
        settings: dict[str, Any] = Field(default_factory=dict)

    assert check(Free, read_recipe(to_toml(Free(settings={"a": {"b": [1, "x"]}}))), "") == Free(settings={"a": {"b": [1, "x"]}})
    with pytest.raises(ValueError, match="cannot say all"):
        to_toml(Free(settings={"a": None}))


def test_a_recipe_file_is_read_and_its_damage_named_by_line(tmp_path):
    file = tmp_path / "r.toml"
    file.write_bytes(b"\xef\xbb\xbf" + 'title = "ä"\n'.encode())
    assert read_recipe(file) == read_recipe(str(file)) == read_recipe('title = "ä"') == {"title": "ä"}
    file.write_text('title = "x"\nsteps 3\nsize = 4\n')
    with pytest.raises(InputError, match=r"r\.toml.*line 2"):
        read_recipe(file)
    with pytest.raises(InputError, match="line 2"):
        read_recipe("a = 1\nb = [1,")
    file.write_bytes(b'title = "\xe4"\n')
    with pytest.raises(InputError, match="UTF-8"):
        read_recipe(file)
    with pytest.raises(InputError, match=r"missing\.toml"):
        read_recipe(tmp_path / "missing.toml")


def test_a_recipe_says_only_how_it_differs_from_its_base(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "first.toml").write_text('name = "first"\nlist = [1, 2]\n[a]\nx = 1\ny = 2\n[a.deep]\nz = 3\n')
    (tmp_path / "parts" / "second.toml").write_text('base = "../first.toml"\nname = "second"\nlist = [3]\n[a]\nx = 9\n')
    (tmp_path / "third.toml").write_text('base = "parts/second.toml"\n[a.deep]\nw = 4\n')
    expected = {"name": "second", "list": [3], "a": {"x": 9, "y": 2, "deep": {"z": 3, "w": 4}}}
    assert read_recipe(tmp_path / "third.toml") == expected
    (tmp_path / "first.toml").write_text('base = "third.toml"')
    with pytest.raises(InputError, match=r"not based on itself.*third\.toml on second\.toml on first\.toml on third\.toml"):
        read_recipe(tmp_path / "third.toml")
    (tmp_path / "first.toml").unlink()
    with pytest.raises(InputError, match=r"first\.toml.*second\.toml is based on it"):
        read_recipe(tmp_path / "third.toml")
    (tmp_path / "third.toml").write_text("base = 3")
    with pytest.raises(InputError, match="base = 3"):
        read_recipe(tmp_path / "third.toml")


def test_a_preset_changes_what_it_names():
    data = {"a": {"x": 1, "y": 2}, "presets": {"gpu": {"a": {"x": 5}, "b": 1}}}
    before = json.dumps(data)
    assert with_preset(data, None) == {"a": {"x": 1, "y": 2}}
    assert with_preset(data, "gpu") == {"a": {"x": 5, "y": 2}, "b": 1}
    assert json.dumps(data) == before
    with pytest.raises(InputError, match="did you mean 'gpu'"):
        with_preset(data, "gpuu")
    with pytest.raises(InputError, match="choices: gpu"):
        with_preset(data, "xyz")
    with pytest.raises(InputError, match="has none"):
        with_preset({"a": 1}, "gpu")


def test_overrides_reach_tables_and_lists_and_leave_the_original_alone():
    data = {"title": "x", "stages": [{"name": "vae", "lr": 1}, {"name": "denoiser", "lr": 1}], "list": [1, 2]}
    before = json.dumps(data)
    changed = override(
        data,
        [
            "title=a plain text",
            "stages.0.lr=2",
            "stages.denoiser.lr=1e-4",
            "new.table.key=true",
            "list.1=[3, 4]",
            "budget = 30m",
            'quoted="7"',
            "equation=a=b",
            "empty=",
        ],
    )
    assert changed == {
        "title": "a plain text",
        "stages": [{"name": "vae", "lr": 2}, {"name": "denoiser", "lr": 1e-4}],
        "list": [1, [3, 4]],
        "new": {"table": {"key": True}},
        "budget": "30m",
        "quoted": "7",
        "equation": "a=b",
        "empty": "",
    }
    assert json.dumps(data) == before


def test_the_text_of_an_override_cannot_set_a_second_key():
    assert override({}, ["a=1\nb = 2"]) == {"a": "1\nb = 2"}


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("steps", "an assignment"),
        ("=3", "an assignment"),
        ("a..b=3", "an assignment"),
        ("stages.denoser.lr=1", "did you mean 'denoiser'"),
        ("stages.7.lr=1", "an index below 1 or a name"),
        ("title.deep=1", "title.deep"),
    ],
)
def test_an_override_that_leads_nowhere_is_explained(assignment, said):
    with pytest.raises(InputError, match=said):
        override({"title": "x", "stages": [{"name": "denoiser"}]}, [assignment])


def test_settings_are_described_for_flags_and_documents():
    rows = {row.field: row for row in describe(Slow)}
    assert list(rows) == ["kind", "name", "momentum", "inner.size", "inner.rate", "inner.folder"]
    assert (rows["momentum"].type, rows["momentum"].default, rows["momentum"].range) == ("float", "0.9", ">= 0, < 1")

    class Settings(Knobs):
        steps: int = Field(20, ge=1, le=1000, description="how many steps")
        sampler: Literal["ddim", "euler"] = "ddim"
        size: tuple[int, int] | None = None
        must: str

    steps, sampler, size, must = describe(Settings)
    assert (steps.range, steps.help, steps.default) == (">= 1, <= 1000", "how many steps", "20")
    assert sampler.type == "'ddim' | 'euler'"
    assert (size.type, size.default) == ("(int, int) | none", "none")
    assert must.default == ""


# ---------------------------------------------------------------------------------------------------------------------
# Pictures: reading


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def filled(mode: str, value: Any, kind: str = "TIFF", **options: Any) -> bytes:
    return saved(Image.new(mode, (3, 2), value), kind, **options)


GREY = (128, 128, 128)
# (mode the file opens in, its bytes, expected colour, tolerance)
FILES: list[tuple[str, bytes, tuple[int, int, int], int]] = [
    ("1", filled("1", 1, "PNG"), (255, 255, 255), 0),
    ("L", filled("L", 128, "PNG"), GREY, 0),
    ("LA", filled("LA", (0, 127), "PNG"), GREY, 0),
    ("LA", filled("LA", (128, 255)), GREY, 0),
    ("P", filled("P", 0, "GIF"), (0, 0, 0), 0),
    ("PA", saved(Image.new("RGBA", (3, 2), (200, 100, 0, 255)).convert("PA"), "TIFF"), (200, 100, 0), 30),
    ("RGB", filled("RGB", (200, 100, 3), "PNG"), (200, 100, 3), 0),
    ("RGB", filled("RGBX", (200, 100, 3, 0)), (200, 100, 3), 0),
    ("RGB", filled("RGB", (200, 100, 3), "JPEG", quality=95), (200, 100, 3), 3),
    ("RGBA", filled("RGBA", (255, 0, 0, 51), "PNG"), (255, 204, 204), 0),
    ("RGBA", filled("RGBA", (1, 2, 3, 0), "WEBP", lossless=True), (255, 255, 255), 0),
    ("CMYK", filled("CMYK", (0, 255, 255, 0)), (255, 0, 0), 0),
    ("CMYK", filled("CMYK", (127, 127, 127, 0), "JPEG", quality=95), GREY, 2),
    ("YCbCr", filled("YCbCr", (76, 85, 255)), (254, 0, 0), 1),
    ("LAB", filled("LAB", (128, 128, 128)), (119, 119, 119), 1),
    ("I;16", filled("I;16", 32768, "PNG"), GREY, 0),
    ("I;16", filled("I;16", 32768), GREY, 0),
    ("I;16", filled("I;16", 255, "PNG"), (1, 1, 1), 0),
    ("I;16B", filled("I;16B", 32768), GREY, 0),
    ("I", filled("I", 128), GREY, 0),
    ("I", filled("I", 32768), GREY, 0),
    ("I", filled("I", 100, "PPM"), (0, 0, 0), 0),  # 16 bits, as its header says
    ("F", filled("F", 0.5), GREY, 0),
    ("F", filled("F", 128.0), GREY, 0),
    ("F", filled("F", 32768.0), GREY, 0),
]


@pytest.mark.parametrize(("mode", "raw", "colour", "tolerance"), FILES, ids=lambda x: x if isinstance(x, str) else "")
def test_every_mode_a_file_can_have_reads_as_the_colour_it_shows(mode, raw, colour, tolerance):
    assert Image.open(io.BytesIO(raw)).mode == mode
    pixels = read_picture(raw)
    assert pixels.shape == (2, 3, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable and pixels.flags.c_contiguous
    assert np.abs(pixels.astype(int) - colour).max() <= tolerance


@pytest.mark.parametrize(
    ("mode", "value", "colour"),
    [
        ("La", (64, 128), (191, 191, 191)),  # premultiplied: 64 of 128 is mid-grey at half strength, on white
        ("RGBa", (64, 0, 0, 128), (191, 127, 127)),
        ("RGBX", (200, 100, 3, 0), (200, 100, 3)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("I;16L", 32768, GREY),
        ("I;16N", 32768, GREY),
    ],
)
def test_modes_that_only_live_in_memory_are_converted_as_well(mode, value, colour):
    pixels = _to_rgb(Image.new(mode, (3, 2), value), (255, 255, 255), "test")
    assert np.abs(pixels.astype(int) - colour).max() <= 1


def test_all_modes_of_pillow_are_covered():
    tested = {mode for mode, *_ in FILES} | {"La", "RGBa", "RGBX", "HSV", "I;16L", "I;16N"}
    assert set(Image.MODES) <= tested


def test_a_range_of_numbers_keeps_its_order_and_its_ends():
    ramp = np.linspace(0, 65535, 256).reshape(16, 16)
    sixteen = read_picture(saved(Image.fromarray(ramp.astype(np.uint16)), "PNG"))
    assert np.array_equal(sixteen[..., 0].ravel(), np.arange(256))
    beyond = read_picture(saved(Image.fromarray((ramp * 40 - 1e6).astype(np.int32)), "TIFF"))
    assert np.array_equal(beyond[..., 0].ravel(), np.arange(256))
    depths = read_picture(saved(Image.fromarray((ramp / 65535 * 2 - 1).astype(np.float32)), "TIFF"))
    assert np.array_equal(depths[..., 0].ravel(), np.arange(256))
    hole = np.full((2, 2), np.nan, np.float32)
    with pytest.raises(InputError, match="finite"):
        read_picture(saved(Image.fromarray(hole), "TIFF"))


def png16(values: np.ndarray, colour_type: int, extra: bytes = b"") -> bytes:
    """A PNG with 16 bits per channel, which Pillow reads but does not write in colour. values: uint16 (H, W, C)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    high, wide = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", wide, high, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bits_per_colour_are_scaled_too():
    colours = np.array([[[65535, 32896, 0], [257, 65535, 128 * 257]]], np.uint16)
    assert read_picture(png16(colours, 2)).tolist() == [[[255, 128, 0], [1, 255, 128]]]
    clear = np.array([[[65535, 0, 0, 0], [65535, 0, 0, 65535]]], np.uint16)
    assert read_picture(png16(clear, 6)).tolist() == [[[255, 255, 255], [255, 0, 0]]]


def test_a_transparent_grey_of_sixteen_bits_shows_the_background():
    chunk = b"tRNS" + struct.pack(">H", 1000)
    extra = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    raw = png16(np.array([[[1000], [1001]]], np.uint16), 0, extra)
    assert read_picture(raw)[0, :, 0].tolist() == [255, 4]


def test_transparency_shows_the_background():
    glass = Image.new("RGBA", (1, 1), (100, 0, 0, 128))
    assert read_picture(saved(glass, "PNG"), background=(0, 0, 0))[0, 0].tolist() == [50, 0, 0]
    assert read_picture(saved(glass, "PNG"))[0, 0].tolist() == [177, 127, 127]
    for mode, clear in (("P", b"\x00\xff"), ("P", 0), ("L", 0), ("RGB", (0, 0, 0)), ("1", 0)):
        image = Image.new(mode, (2, 1), 0)
        image.putpixel((1, 0), (7, 8, 9) if mode == "RGB" else 1)
        if mode == "P":
            image.putpalette([10, 20, 30, 7, 8, 9])
        pixels = read_picture(saved(image, "PNG", transparency=clear), background=(1, 2, 250))
        assert pixels[0, 0].tolist() == [1, 2, 250], mode
        assert pixels[0, 1].tolist() == {"L": [1, 1, 1], "1": [255] * 3}.get(mode, [7, 8, 9]), mode


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright_whatever_their_exif_orientation(orientation, kind):
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :8], stored[8:, 24:] = (255, 0, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = saved(Image.fromarray(stored), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {"quality": 95}))
    pixels = read_picture(raw).astype(int)
    # where the stored picture's red corner belongs, by the EXIF standard: (row, column)
    corner = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    red = pixels[2 if corner[0] == "t" else -3, 2 if corner[1] == "l" else -3]
    assert pixels.shape[:2] == ((16, 32) if orientation < 5 else (32, 16))
    assert red[0] > 200 and red[2] < 60
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(raw))).convert("RGB")
    assert np.abs(pixels - np.asarray(expected, int)).max() == 0


def test_damaged_exif_does_not_cost_the_picture():
    raw = saved(Image.new("RGB", (4, 4), GREY), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert read_picture(raw).shape == (4, 4, 3)


def test_an_animation_reads_as_its_first_frame(tmp_path):
    frames = [np.full((5, 4, 3), value, np.uint8) for value in (10, 100, 200)]
    write_gif(tmp_path / "a.gif", frames, [50, 50, 500])
    assert np.array_equal(read_picture(tmp_path / "a.gif"), frames[0])
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 3
        assert image.info["loop"] == 0
        image.seek(2)
        assert image.info["duration"] == 500
        assert np.array_equal(np.asarray(image.convert("RGB")), frames[2])


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes_are_read_and_fitted(size):
    raw = saved(Image.new("RGB", size, (10, 20, 30)), "PNG")
    pixels = read_picture(raw)
    assert pixels.shape == (size[1], size[0], 3)
    for how in ("crop", "stretch", "pad"):
        fitted = fit(pixels, (32, 24), how)
        assert fitted.shape == (24, 32, 3)
        assert fitted[11, 15].tolist() == [10, 20, 30]


def test_a_picture_comes_from_a_path_a_name_bytes_or_an_open_file():
    path = FIXTURES / "clothing" / "hat-1.jpg"
    with path.open("rb") as file:
        read = [read_picture(path), read_picture(str(path)), read_picture(path.read_bytes()), read_picture(file)]
    assert all(np.array_equal(pixels, read[0]) for pixels in read)
    assert read[0].std() > 5


def damaged() -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    jpeg, png = (saved(Image.fromarray(noise), kind) for kind in ("JPEG", "PNG"))
    return {
        "empty.png": b"",
        "text.png": b"hello, I am not a picture",
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[: len(png) // 2],
        "header-only.png": png[:30],
        "flipped.png": png[:60] + bytes([png[60] ^ 255]) + png[61:],
        "cut.gif": saved(Image.fromarray(noise), "GIF")[:500],
        "cut.webp": saved(Image.fromarray(noise), "WEBP")[:200],
        "cut.tif": saved(Image.fromarray(noise), "TIFF")[:2000],
        "page.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n",
    }


@pytest.mark.parametrize("name", damaged())
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, name):
    (tmp_path / name).write_bytes(damaged()[name])
    with pytest.raises(InputError, match=name):
        read_picture(tmp_path / name)
    with pytest.raises(InputError, match="bytes"):
        read_picture(damaged()[name])


def test_missing_files_folders_and_bombs_are_errors_that_name_them(tmp_path, monkeypatch):
    for place in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(InputError, match=place.name):
            read_picture(place)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (tmp_path / "bomb.png").write_bytes(saved(Image.new("L", (50, 50)), "PNG"))
    with pytest.raises(InputError, match=r"bomb\.png.*2500 pixels"):
        read_picture(tmp_path / "bomb.png")


# ---------------------------------------------------------------------------------------------------------------------
# Pictures: tensors and sizes


def test_pixels_survive_the_way_to_tensors_and_back():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    batch = to_tensor(pixels)
    assert batch.shape == (2, 3, 5, 7) and batch.dtype == torch.float32
    assert torch.equal(to_tensor(pixels[1]), batch[1])
    assert np.array_equal(to_pixels(batch), pixels)
    assert np.array_equal(to_pixels(batch[0]), pixels[0])
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (to_tensor(grey).min(), to_tensor(grey).max()) == (-1, 1)
    assert torch.equal(to_tensor(grey), to_tensor(grey[..., None]))
    assert np.array_equal(to_pixels(to_tensor(grey)), np.repeat(grey[..., None], 3, axis=2))
    with pytest.raises(TypeError, match="uint8"):
        to_tensor(grey.astype(float))


def test_values_are_rounded_and_clamped_and_nan_is_an_error():
    values = torch.tensor([-9.0, -1.0, 0.9999, 99 / 127.5 - 1 + 0.0039, 9.0, float("inf")]).reshape(1, 1, 6)
    assert to_pixels(values)[0, :, 0].tolist() == [0, 0, 255, 99, 255, 255]
    assert np.array_equal(to_pixels(values.double()), to_pixels(values))
    with pytest.raises(InputError, match=r"16\.7% values"):
        to_pixels(torch.where(values == 9, torch.nan, values))
    with pytest.raises(ValueError, match="shape"):
        to_pixels(torch.zeros(2, 4, 4))


def test_shrinking_averages_instead_of_picking():
    board = np.indices((64, 64)).sum(0) % 2 * 255
    pixels = np.repeat(board.astype(np.uint8)[..., None], 3, axis=2)
    assert np.abs(resize(pixels, (8, 8)).astype(int) - 127).max() <= 2
    for mode in ("bilinear", "bicubic"):
        small = resize_tensor(to_tensor(pixels)[None], (8, 4), mode)
        assert small.shape == (1, 3, 4, 8)
        assert small.abs().max() < 0.02
    assert resize_tensor(torch.zeros(1, 2, 8, 8, dtype=torch.bfloat16), (4, 4)).dtype == torch.bfloat16
    assert resize(pixels[..., :1], (8, 6)).shape == (6, 8, 1)
    with pytest.raises(InputError, match="0x4"):
        resize(pixels, (0, 4))


def test_a_tensor_is_resized_as_pillow_resizes_an_array():
    pixels = read_picture(FIXTURES / "clothing" / "hat-1.jpg")
    ours = to_pixels(resize_tensor(to_tensor(pixels)[None], (50, 40), "bicubic"))[0]
    pillow = resize(pixels, (50, 40), Image.Resampling.BICUBIC)
    assert np.abs(ours.astype(int) - pillow).max() <= 2


def test_fitting_by_cropping_keeps_the_centre_and_the_proportions():
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 255
    assert (fit(pixels, (20, 20), "crop") == 255).all()  # the middle third, untouched
    assert (fit(pixels, (8, 8), "crop")[:, 1:-1] > 250).all()
    assert (fit(pixels, (40, 40), "crop")[:, 2:-2] > 240).all()
    numbered = np.arange(33 * 32, dtype=np.uint16).astype(np.uint8).reshape(33, 32, 1)
    assert np.array_equal(fit(numbered, (32, 32), "crop"), numbered[:32])


def test_fitting_by_padding_never_enlarges_and_centres():
    pixels = np.full((28, 28, 3), 7, np.uint8)
    padded = fit(pixels, (32, 32), "pad", 9)
    assert (padded[2:30, 2:30] == 7).all()
    assert (padded == 9).sum() == (32 * 32 - 28 * 28) * 3
    wide = fit(np.full((10, 100, 3), 7, np.uint8), (50, 50), "pad")
    assert (wide[22:27] == 7).all() and wide[:22].max() == 0 and wide[27:].max() == 0
    assert fit(pixels, (10, 30), "stretch").shape == (30, 10, 3)


def test_fitting_hands_out_an_array_of_its_own():
    pixels = np.zeros((4, 4, 3), np.uint8)
    for how in ("crop", "pad", "stretch"):
        fitted = fit(pixels, (4, 4), how)
        fitted += 1
    assert pixels.max() == 0


# ---------------------------------------------------------------------------------------------------------------------
# Pictures: sheets and files


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_a_sheet_shows_every_picture_unchanged_in_reading_order(count):
    pictures = [np.full((6, 4, 3), 20 * (i + 1), np.uint8) for i in range(count)]
    columns = {1: 1, 2: 2, 3: 2, 5: 3, 7: 3}[count]
    sheet = grid(pictures, gap=1, scale=3)
    rows = -(-count // columns)
    assert sheet.shape == (rows * 19 + 1, columns * 13 + 1, 3)
    for i in range(count):
        y, x = 1 + i // columns * 19, 1 + i % columns * 13
        assert (sheet[y : y + 18, x : x + 12] == 20 * (i + 1)).all()
    shown = sum((sheet == 20 * (i + 1)).all(-1).sum() for i in range(count))
    assert shown == count * 18 * 12
    assert (sheet == 255).all(-1).sum() == sheet.shape[0] * sheet.shape[1] - shown


def test_words_on_a_sheet_are_drawn_outside_the_pictures_and_inside_the_sheet():
    pictures = [np.full((28, 28, 3), 255, np.uint8)] * 3  # white on white: whatever is dark is a word
    bare = grid(pictures, columns=2, scale=4)
    assert bare.min() == 255
    long = "a very long label " * 20
    sheet = grid(pictures, columns=2, labels=["übung", long, "x" * 200], row_labels=["one", long], title=long, scale=4)
    assert sheet.shape[0] > bare.shape[0] and sheet.shape[1] > bare.shape[1]
    dark = sheet.min(-1) < 128
    assert dark.any()
    assert not dark[:, -2:].any() and not dark[-1].any()
    left = sheet.shape[1] - 2 * (28 * 4 + 2)  # where the pictures' columns begin
    for x in (left, left + 114):
        assert not dark[-150:, x - 2 : x].any()  # no label runs into its neighbour's column
    labelled = grid(pictures, columns=2, labels=["a", "", "c"], scale=None)
    assert labelled.shape[1] >= 2 * 112


def test_a_sheet_mixes_sizes_and_greys_and_refuses_nonsense():
    mixed = [np.zeros((4, 8), np.uint8), np.zeros((8, 4, 1), np.uint8), np.zeros((2, 2, 3), np.uint8)]
    assert grid(mixed, columns=3, gap=0).shape == (8, 24, 3)
    for call in (lambda: grid([]), lambda: grid(mixed, labels=["one"]), lambda: grid(mixed, 3, row_labels=["a", "b"])):
        with pytest.raises(ValueError, match="sheet"):
            call()


def provenance(**request: Any) -> Provenance:
    return Provenance(
        request=Request(**request),
        knobs={"steps": 20, "sampler": "DPM++ 2M", "guidance": 2.5},
        painter="diffusion",
        model="fashion-mnist",
        fingerprint="0123456789abcdef",
        versions=versions(),
        device="cpu",
        precision="float32",
        backend="plain",
        threads=1,
        batch=4,
        seconds=0.25,
    )


@pytest.mark.parametrize("prompt", ["a sneaker", "", 'ein Schuh: "größer",\nzweite Zeile 靴 👟\\', "line\r\nend\t "])
def test_provenance_survives_in_the_png(tmp_path, prompt):
    made = Picture(np.full((8, 9, 3), 77, np.uint8), provenance(prompt=prompt, negative="ü, blurry", seed=2**63 - 1))
    made.save(tmp_path / "a.png")
    assert read_provenance(tmp_path / "a.png") == made.provenance
    assert (read_picture(tmp_path / "a.png") == 77).all()
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["parameters"] == infotext(made.provenance, (9, 8))
    assert names_in(tmp_path) == ["a.png"]


def test_infotext_is_what_web_interfaces_read():
    made = provenance(prompt="a boot", negative="dark", seed=5, size=(32, 40))
    prompt, negative, line = infotext(made).split("\n")
    assert (prompt, negative) == ("a boot", "Negative prompt: dark")
    assert line.startswith(
        "Steps: 20, Sampler: DPM++ 2M, CFG scale: 2.5, Seed: 5, Size: 32x40, Model hash: 0123456789, Model: fashion-mnist, "
    )
    assert line.endswith(f"Version: giverny {versions()['giverny']}")
    bare = provenance(prompt="a boot").model_copy(update={"model": 'my, "own": model', "knobs": {}})
    assert infotext(bare).split("\n")[1].startswith("Seed: 0, Model hash")  # no negative prompt, no unknown settings
    assert 'Model: "my, \\"own\\": model",' in infotext(bare)


def test_a_png_without_readable_provenance_says_so(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    cases = {
        "foreign.png": (png_bytes(pixels, {"parameters": "a cat\nSteps: 20"}), "words named 'giverny'"),
        "broken.png": (png_bytes(pixels, {"giverny": '{"request": '}), "undamaged"),
        "short.png": (png_bytes(pixels, {"giverny": "{}"}), "undamaged"),
        "photo.jpg": (saved(Image.fromarray(pixels), "JPEG"), "words named 'giverny'"),
        "empty.png": (b"", "readable picture"),
    }
    for name, (raw, said) in cases.items():
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(InputError, match=said) as caught:
            read_provenance(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(InputError, match="missing"):
        read_provenance(tmp_path / "missing.png")
    with pytest.raises(InputError, match=r"ends in \.png"):
        write_picture(tmp_path / "a.tiff", Picture(pixels))


def test_a_picture_without_provenance_shows_and_saves_itself(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = Picture(pixels)
    assert np.array_equal(read_picture(picture._repr_png_()), pixels)
    picture.save(tmp_path / "sub" / "a.PNG")
    assert np.array_equal(read_picture(tmp_path / "sub" / "a.PNG"), pixels)
    assert np.array_equal(read_picture(png_bytes(pixels[..., :1]))[..., 0], pixels[..., 0])
    with pytest.raises(ValueError, match="one size"):
        write_gif(tmp_path / "a.gif", [pixels, pixels[1:]], 50)


# ---------------------------------------------------------------------------------------------------------------------
# The machine


def test_devices_are_picked_by_what_is_there():
    assert devices()[-1] == "cpu"
    assert pick_device("cpu") == torch.device("cpu")
    assert str(pick_device()) == devices()[0]
    for name in ("cuda:99", "banana", "meta", ""):
        with pytest.raises(InputError, match=r"there is: .*cpu"):
            pick_device(name)


def test_precision_follows_the_device():
    cpu = torch.device("cpu")
    assert pick_precision(cpu) == torch.float32
    assert pick_precision(cpu, "bfloat16") == torch.bfloat16
    assert pick_precision(cpu, "float64") == torch.float64
    with pytest.raises(InputError, match="slowly"):
        pick_precision(cpu, "float16")
    with pytest.raises(InputError, match="did you mean 'bfloat16'"):
        pick_precision(cpu, "bfloat")
    with pytest.raises(InputError, match="GPU"):
        pick_precision(torch.device("mps"), "float64")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_found_and_described():
    device = pick_device()
    assert device.type == "cuda"
    assert pick_device("cuda").type == "cuda"
    assert pick_precision(device, "float16") == torch.float16
    assert describe_machine()["devices"][0]["memory"] > 1e9


# First four and last of the first draw, first of the next, for a latent of (4, 64, 64): torch's CPU generator.
DRAWS = {
    0: ([-1.125840, -1.152360, -0.250579, -0.433879], -1.078208, -0.551836),
    42: ([1.926915, 1.487284, 0.900717, -2.105521], -0.293406, -1.304659),
    12345: ([-1.479808, 0.487306, -3.012794, 0.443855], 1.738847, -0.698099),
}


def test_noise_is_the_noise_that_other_programs_draw_for_these_seeds():
    streams = PictureStreams(list(DRAWS))
    first, second = streams.normal((4, 64, 64)), streams.normal((4, 64, 64))
    assert first.dtype == torch.float32 and first.shape == (3, 4, 64, 64)
    for row, (start, last, following) in enumerate(DRAWS.values()):
        assert first[row].flatten()[:4].tolist() == pytest.approx(start, abs=1e-6)
        assert first[row].flatten()[-1].item() == pytest.approx(last, abs=1e-6)
        assert second[row].flatten()[0].item() == pytest.approx(following, abs=1e-6)


@pytest.mark.parametrize("shape", [(4, 8, 8), (3,), (1, 5, 3)])
def test_a_pictures_stream_is_the_same_alone_and_in_a_batch(shape):
    together = PictureStreams([3, 7])
    for seed, row in ((3, 0), (7, 1)):
        alone = PictureStreams([seed])
        assert torch.equal(alone.normal(shape)[0], PictureStreams([3, 7]).normal(shape)[row])
    draws = [together.normal(shape) for _ in range(3)]
    alone = PictureStreams([7])
    assert all(torch.equal(alone.normal(shape)[0], draw[1]) for draw in draws)
    assert len(together) == 2


def test_streams_touch_no_global_generator_and_take_every_seed_of_a_request():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    PictureStreams([0, 2**63 - 1]).normal((2, 2))
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="one seed"):
        PictureStreams([])


def test_derived_seeds_depend_on_every_part_and_its_place():
    calls = [(1, "a"), ("1", "a"), ("a", 1), (1, "a", ""), (1, "b"), (2, "a"), ("1a",), (1,), ()]
    seeds = {derive_seed(*parts) for parts in calls}
    assert len(seeds) == len(calls)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # a resumed run must draw what it drew, whatever the release
    assert derive_seed("noise", 7) == int(hashlib.sha256(b'["noise", 7]').hexdigest()[:16], 16) // 2


def test_threads_are_set_within_the_block_only():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="within"), threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError("within")
    assert torch.get_num_threads() == before
    with threads(None):
        assert torch.get_num_threads() == before
    with pytest.raises(InputError, match="1 thread or more"), threads(0):
        pass


def test_the_machine_describes_itself_in_plain_values():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        machine = json.loads(json.dumps(describe_machine()))
    assert machine["torch"] == torch.__version__
    assert set(versions()) == {"giverny", "torch", "python"}
    assert machine["devices"][-1]["name"] == "cpu"
    assert machine["memory"] is None or machine["memory"] > 1e8
    assert machine["cores"] >= 1
    # a process with torch in it holds more than 50 MB, and less than the machine has
    assert 5e7 < peak_memory() < (machine["memory"] or 1e15)
