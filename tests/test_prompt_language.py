"""The language of prompts, as text alone: emphasis, editing, alternation, AND, adapters, styles. Golden vectors are restated
from the programs whose dialects these are; what people type wrongly is text and never an error."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from giverny.base.errors import InputError
from giverny.text.calls import AdapterCall, extract
from giverny.text.emphasis import LARGEST, Piece, pieces
from giverny.text.schedule import Segment, Timeline, at_call, parts, schedule
from giverny.text.styles import Style, read_styles, styled

# Rows of what syntax is made of, and any text at all.
SOUP = st.lists(
    st.sampled_from([*"()[]\\:|,<> \n", "a", "two words", "1.3", "-2", ".5", "9" * 400, "BREAK", " AND ", "<lora:a:1>", "é"]),
    max_size=40,
).map("".join)
TEXTS = st.one_of(SOUP, st.text(max_size=40))


def told(prompt, dialect="a1111"):
    return [(p.text, pytest.approx(p.weight)) for p in pieces(prompt, dialect)]


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("normal text", [("normal text", 1)]),
        ("", [("", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("a [b", [("a ", 1), ("b", 1 / 1.1)]),
        (r"\(literal\]", [("(literal]", 1)]),
        (r"a \\ b", [(r"a \ b", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("a (red:1.3) dress", [("a ", 1), ("red", 1.3), (" dress", 1)]),
        ("a (red: 1.3 ) dress", [("a ", 1), ("red", 1.3), (" dress", 1)]),
        ("(a:-.5)(b:+2)", [("a", -0.5), ("b", 2)]),
        ("a) b] :1.2)", [("a) b] :1.2)", 1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1),
                ("sky", 1.4641), (".", 1.1),
            ],
        ),
    ],
)  # fmt: skip
def test_emphasis_of_a1111(prompt, wanted):
    assert told(prompt) == wanted


def test_breaks_begin_a_chunk_and_eat_the_spaces_around_them():
    assert pieces("a BREAK b", "a1111") == (Piece("a"), Piece("b", 1.0, True))
    assert pieces("BREAK a\nBREAK  BREAK", "a1111") == (
        Piece(""), Piece("a", breaks=True), Piece("", breaks=True), Piece("", breaks=True),
    )  # fmt: skip
    assert pieces("BREAKFAST, LUNCHBREAK", "a1111") == (Piece("BREAKFAST, LUNCHBREAK"),)
    assert pieces("(a BREAK b:2)", "a1111") == (Piece("a", 2.0), Piece("b", 2.0, True)), "unlike there, inside brackets too"


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a (red) dress", [("a ", 1), ("red", 1.1), (" dress", 1)]),
        ("((a:1.3))", [("a", 1.3)]),  # replaced, where a1111 multiplies
        ("(b (a:1.3) c:2)", [("b ", 2), ("a", 1.3), (" c", 2)]),
        ("(b (a) c:2)", [("b ", 2), ("a", 2.2), (" c", 2)]),
        ("[a] BREAK", [("[a] BREAK", 1)]),
        (r"\(a\) (b\):2)", [("(a) ", 1), ("b)", 2)]),
        ("(unbalanced", [("(unbalanced", 1)]),
        ("a) (b)", [("a) (b)", 1)]),  # depth goes below nothing and comes back
        ("(:2)", [(":2", 1.1)]),
        ("(a:nan)(b:1e400)", [("a:nanb:1e400", 1.1)]),
        ("(a:1e2)", [("a", 100)]),
    ],
)
def test_emphasis_of_comfyui(prompt, wanted):
    assert told(prompt, "comfyui") == wanted


@pytest.mark.parametrize("dialect", ["plain", "a1111-old"])
def test_other_dialects_leave_brackets_in_the_text(dialect):
    assert pieces("a (b:2) BREAK", dialect) == (Piece("a (b:2) BREAK"),)


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.sampled_from(["plain", "a1111", "a1111-old", "comfyui"]))
def test_anything_can_be_read(prompt, dialect):
    found = pieces(prompt, dialect)
    assert found and all(math.isfinite(p.weight) and abs(p.weight) <= LARGEST for p in found)
    if not set(prompt) & set("()[]\\:") and "BREAK" not in prompt:
        assert found == (Piece(prompt),)
    neighbours = zip(found, found[1:], strict=False)
    assert all(a.weight != b.weight or b.breaks for a, b in neighbours)
    rest = iter(prompt)
    assert all(letter in rest for p in found for letter in p.text), "syntax takes letters away and adds none"


def test_long_and_deep_prompts_are_read():
    deep = "(" * 3000 + "a" + ")" * 3000
    assert told(deep) == [("a", LARGEST)]
    assert told(deep, "comfyui")[0][0] == "a"
    assert schedule("[" * 3000 + "a:2]", Timeline(10))[-1].text.count("[") == 3000


# ---------------------------------------------------------------------------------------------------------------------
# Over time


def over(prompt, steps=10, before=None, old=False):
    return [(s.end, s.text) for s in schedule(prompt, Timeline(steps, before, old))]


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3 ]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [b::4]c", [(4, "a bc"), (10, "a c")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [b:1.0] c", [(10, "a  c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a:b:-1]", [(10, "b")]),
        ("[a:b:99]", [(10, "a")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
        ("a | b [c:3]", [(10, "a | b [c:3]")]),
        ("[a|b:3]", [(10, "[a|b:3]")]),
        ("ends with \\", [(10, "ends with \\")]),
        (r"a \[b:3\]", [(10, r"a \[b:3\]")]),
        ("[(a:[b:c:2]:1.1):3]", [(2, "[(a:b:1.1):3]"), (10, "[(a:c:1.1):3]")]),
        ("[a|(b:1.1)]", [(i, ["(b:1.1)", "a"][i % 2]) for i in range(1, 11)]),
        ("[fe|]male", [(i, ["male", "female"][i % 2]) for i in range(1, 11)]),
        ("[fe|||]male", [(i, "female" if i % 4 == 1 else "male") for i in range(1, 11)]),
    ],
)
def test_prompt_editing(prompt, wanted):
    assert over(prompt) == wanted


def test_the_timeline_of_a_second_pass():
    assert over("a [b:.5] c", before=10) == [(10, "a b c")]
    assert over("a [b:1.5] c", before=10) == [(5, "a  c"), (10, "a b c")]
    assert over("a [b:13] c", before=10) == [(3, "a  c"), (10, "a b c")]
    assert over("a [b:1.5] c") == [(10, "a  c")]


def test_the_old_timelines():
    assert over("a [b:.5] c", old=True) == over("a [b:.5] c", before=10, old=True) == [(5, "a  c"), (10, "a b c")]
    assert over("a [b:2.0] c", old=True) == [(2, "a  c"), (10, "a b c")], "a decimal point made no difference"
    assert over("a [b:2.0] c") == [(10, "a  c")]


def test_which_text_is_in_force_at_a_call():
    segments = schedule("a[b:[c:d:2]:1]e", Timeline(10))
    assert [segments[at_call(segments, call)].text for call in range(5)] == ["abe", "abe", "ace", "ade", "ade"]
    turns = schedule("[a|b]", Timeline(4))
    assert "".join(turns[at_call(turns, call)].text for call in range(6)) == "aababb", "beyond the end the last stays"


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.integers(1, 12), st.one_of(st.none(), st.integers(1, 12)), st.booleans())
def test_any_prompt_has_a_schedule(prompt, steps, before, old):
    segments = schedule(prompt, Timeline(steps, before, old))
    ends = [s.end for s in segments]
    assert ends[-1] == steps and ends == sorted(set(ends)) and ends[0] >= 1
    if "[" not in prompt:
        assert segments == (Segment(steps, prompt),)
    else:
        assert len(segments) == 1 or "|" in prompt or any(digit.isdigit() for digit in prompt)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b c", "(d:1.2)", ""]), st.integers(0, 9), st.integers(0, 1)), max_size=4))
def test_edits_one_after_the_other_change_each_at_its_step(edits):
    """Against the definition: what each edit says at every step, put together."""
    prompt = " x ".join(f"[{text}:{'z' * both}:{when}]" for text, when, both in edits)
    segments = schedule(prompt, Timeline(8))
    for step in range(1, 9):
        wanted = " x ".join(text if step <= when else "z" * both for text, when, both in edits)
        assert next(s.text for s in segments if step <= s.end) == wanted


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a cat", [("a cat", 1)]),
        ("a cat AND a dog", [("a cat", 1), (" a dog", 1)]),
        ("a cat :1.2 AND a dog:-.5 AND", [("a cat", 1.2), (" a dog", -0.5), ("", 1)]),
        ("a:b:2.", [("a:b", 2)]),
        ("SAND AND\nLAND :x", [("SAND", 1), ("\nLAND :x", 1)]),
        ("(a:1.2)", [("(a:1.2)", 1)]),
    ],
)
def test_and_joins_prompts_with_weights(prompt, wanted):
    assert list(parts(prompt)) == wanted


# ---------------------------------------------------------------------------------------------------------------------
# Adapters and styles


@pytest.mark.parametrize(
    ("prompt", "text", "calls"),
    [
        ("a <lora:x:0.8>cat", "a cat", [AdapterCall("lora", "x", 0.8, 0.8)]),
        ("<lora:x>", "", [AdapterCall("lora", "x")]),
        ("<lora:x:0.5:0.25:4>", "", [AdapterCall("lora", "x", 0.5, 0.25, 4)]),
        ("<lyco:x y:unet=2:te=0.5:dyn=8>", "", [AdapterCall("lora", "x y", 0.5, 2.0, 8)]),
        ("<lora:x:1:te=0.5>", "", [AdapterCall("lora", "x", 0.5, 0.5)]),
        ("<hypernet:h:0.3> <lora:b:1>", " ", [AdapterCall("hypernet", "h", 0.3, 0.3), AdapterCall("lora", "b")]),
        ("<lora:x:strong> <lora:y:inf> <lora:> <b>", "<lora:x:strong> <lora:y:inf> <lora:> <b>", []),
    ],
)
def test_adapters_are_taken_out_of_the_text(prompt, text, calls):
    assert extract(prompt) == (text, tuple(calls))


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_adapters_and_and_never_raise(prompt):
    text, calls = extract(prompt)
    assert all(math.isfinite(c.text) and math.isfinite(c.image) and c.name for c in calls)
    assert (text == prompt) == (not calls)
    assert parts(prompt) and all(math.isfinite(weight) for _, weight in parts(prompt))


def test_styles_are_read_and_put_around_prompts(tmp_path):
    path = tmp_path / "styles.csv"
    path.write_bytes(
        b"\xef\xbb\xbfname,prompt,negative_prompt\r\n"
        b'oil,"oil painting of {prompt}, ""thick"" paint", photo\r\n'
        b"#note,x,y\r\n"
        b"soft,soft light\r\n"
        b"empty,,\r\n"
        b'wide,"wide,\nhigh",narrow'
    )
    styles = read_styles(path)
    assert list(styles) == ["oil", "soft", "empty", "wide"]
    assert styles["oil"] == Style(name="oil", prompt='oil painting of {prompt}, "thick" paint', negative="photo")
    assert styled("a cat", "", styles, ["soft", "oil"]) == ('oil painting of a cat, soft light, "thick" paint', "photo")
    assert styled(" a cat ", "blurry", styles, ["empty"]) == (" a cat ", "blurry")
    assert styled("", "blurry ", styles, ["wide"]) == ("wide,\nhigh", "blurry, narrow")
    assert styled("a", "b", styles, []) == ("a", "b")
    with pytest.raises(InputError, match="did you mean 'soft'"):
        styled("a", "", styles, ["sotf"])


def test_old_and_broken_files_of_styles(tmp_path):
    old = tmp_path / "old.csv"
    old.write_text("name, text\nx, y z\n", "utf-8")
    assert read_styles(old) == {"x": Style(name="x", prompt="y z")}
    for content, said in ((b"a,b\n1,2\n", "columns name and prompt.*a, b"), (b"name,prompt\n\xff,x\n", "UTF-8")):
        (tmp_path / "bad.csv").write_bytes(content)
        with pytest.raises(InputError, match=said):
            read_styles(tmp_path / "bad.csv")
    (tmp_path / "bad.csv").write_bytes(b"")
    assert read_styles(tmp_path / "bad.csv") == {}
    with pytest.raises(InputError, match="missing"):
        read_styles(tmp_path / "missing.csv")
