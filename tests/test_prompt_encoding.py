"""Prompts as chunks and vectors: cutting against a restatement in words, weights against golden numbers, clip skip against
transformers, and that a prompt without syntax is read to the bit as it always was."""

import random
import secrets

import pytest
import torch

from giverny.base.contracts import Request, WordSpan
from giverny.base.errors import InputError
from giverny.text.chunks import Inversions, chunked, empty
from giverny.text.clip import ClipText, ClipTextEncoder, ClipTextRecipe
from giverny.text.emphasis import Piece, pieces
from giverny.text.encoding import conditions, encode
from giverny.text.prompting import PromptSettings, prompt_plan
from giverny.text.tokenizer import Tokenizer
from giverny.text.weighting import weighted
from test_networks import TOLERANCE, randomise, relative
from tiny_painters import tiny_painter

TEXT = "a red dress, a big cat, masterpiece, best quality, ((two)) [small] houses, extraordinarily unbelievable"
WORDS = TEXT.split(" ")
LEARNT = [TEXT, *WORDS[:8]]  # some words are one token, some are many
DIALECTS = ("plain", "a1111", "a1111-old", "comfyui")

pytestmark = pytest.mark.xdist_group("oracles")  # one process pays for the import of the references


@pytest.fixture
def seed() -> int:
    return secrets.randbelow(2**31)


def tokenizer(length=12, pad=None):
    learnt = Tokenizer.train(LEARNT, 560, length)
    return Tokenizer(learnt._inner, length, pad)


def encoder(seed, length=12, layers=3, pad=None, projection=False):
    words = tokenizer(length, pad)
    recipe = ClipTextRecipe(width=16, layers=layers, heads=2, inner=24, length=length, vocabulary=words.vocabulary)
    tower = randomise(ClipText(recipe), seed).eval().requires_grad_(False)
    tower.final_layer_norm.bias += 1  # a mean near 0, which emphasis divides by, would make every comparison loose
    projected = randomise(torch.nn.Linear(16, 8, bias=False), seed + 1) if projection else None
    return ClipTextEncoder(tower, words, projected)


def drawn(rng, most=40):
    """A prompt of words, with no syntax."""
    plain = [w for w in WORDS if not set(w) & set("()[]")]
    return " ".join(rng.choice([*plain, ",", ", ,"]) for _ in range(rng.randint(0, most)))


# ---------------------------------------------------------------------------------------------------------------------
# Chunks


def cut_as_told(ids, room, comma, backtrack):
    """Section 5.4 of the facts, in words: a chunk is full and another token that is no comma comes; where a comma lies within
    the last `backtrack` tokens, what follows it moves on. A comma that had to begin a chunk itself is forgotten."""
    chunks, fresh = [], True
    while len(ids) > room:
        here, end = ids[:room], room
        commas = [i for i, token in enumerate(here) if token == comma and (i > 0 or fresh)]
        if ids[room] != comma and commas and room - commas[-1] <= backtrack:
            end = commas[-1] + 1
        chunks.append(ids[:end])
        ids, fresh = ids[end:], False
    return [*chunks, ids]


@pytest.mark.parametrize("backtrack", [0, 1, 5, 20])
def test_chunks_are_cut_as_told(seed, backtrack):
    rng = random.Random(seed)
    for _ in range(60):
        length = rng.randint(3, 30)
        words = tokenizer(length, rng.choice([None, 0]))
        sections = [drawn(rng) for _ in range(rng.randint(1, 3))]
        prompt = " BREAK ".join(sections)
        read = chunked(pieces(prompt, "a1111"), words, backtrack=backtrack)
        comma = words.id_of(",</w>")
        wanted = [
            ids for s in sections for ids in cut_as_told(list(words.split(s)[0]), length - 2, comma, backtrack)
        ]  # fmt: skip
        if len(wanted) > 1 and not wanted[-1]:
            wanted.pop()  # a break at the end breaks nothing
        assert [list(c.ids[1 : c.used + 1]) for c in read] == wanted, (length, prompt)
        for chunk in read:
            assert len(chunk.ids) == len(chunk.weights) == length
            assert chunk.ids[0] == words.start and chunk.ids[chunk.used + 1] == words.end
            assert set(chunk.ids[chunk.used + 2 :]) <= {words.pad}
            assert set(chunk.weights) == {1.0}


def test_a_plain_prompt_is_one_window_as_the_tokenizer_cuts_it(seed):
    rng = random.Random(seed)
    for pad in (None, 0):
        words = tokenizer(12, pad)
        for prompt in ["", "a, (b", *(drawn(rng) for _ in range(40))]:
            (chunk,) = chunked(pieces(prompt, "plain"), words, "plain", most=1)
            tokens = words([prompt])
            assert list(chunk.ids) == tokens.ids[0].tolist()
            assert [(s.start, s.end) for s in chunk.spans] == [(s.start, s.end) for s in tokens.spans[0]]
            assert [i < chunk.used + 2 for i in range(12)] == tokens.mask[0].tolist()


def test_padding_of_either_kind():
    for pad in (None, 0):
        words = tokenizer(8, pad)
        ids = words(["a"]).ids[0].tolist()
        assert ids[3:] == [words.end if pad is None else 0] * 5 and ids[2] == words.end
        assert empty(words).ids == (words.start, words.end, *[words.pad] * 6)


def test_each_token_has_its_weight_and_each_word_its_place():
    words = tokenizer(12)
    (chunk,) = chunked(pieces("a (red:1.3) [dress]", "a1111"), words)
    assert chunk.weights[1:4] == (1.0, 1.3, pytest.approx(1 / 1.1)) and set(chunk.weights[4:]) == {1.0}
    assert chunk.spans == (WordSpan("a", 1, 2), WordSpan("red", 2, 3), WordSpan("dress", 3, 4))
    assert not chunk.plain and empty(words).plain
    many = len(words.split("extraordinarily")[0])
    long = chunked(pieces("(extraordinarily:2) " * 12, "a1111"), words, backtrack=0)
    assert many > 1 and len(long) == -(-many * 12 // 10)
    assert all(span.word == "extraordinarily" for chunk in long for span in chunk.spans)
    assert all(chunk.spans[0].start == 1 and chunk.spans[-1].end == chunk.used + 1 for chunk in long)


def test_the_last_window_takes_what_fits():
    words = tokenizer(7)
    prompt = "a, a red dress, a big cat, a"
    assert len(words.split(prompt)[0]) > 10
    first, second = chunked(pieces(prompt, "a1111"), words, most=2)
    ids = words.split(prompt)[0]
    assert second.used == 5 and ids[first.used : first.used + 5] == second.ids[1:6]
    (only,) = chunked(pieces(prompt, "a1111"), words, most=1)
    assert only.ids[1:6] == ids[:5], "nothing is lost to a comma where no chunk follows"
    word = "a a a extraordinarily"
    (short,) = chunked(pieces(word, "comfyui"), words, "comfyui", most=1)
    assert short.ids[1:6] == words.split(word)[0][:5], "nor a word to its end"


def test_comfyui_keeps_words_whole(seed):
    rng = random.Random(seed)
    room = 10
    words = tokenizer(room + 2)
    for _ in range(60):
        prompt = drawn(rng)
        told, free = [[]], room
        for word in prompt.split():
            ids = list(words.split(word)[0])
            if len(ids) > free:
                if len(ids) >= 8:  # long words are cut
                    told[-1] += ids[:free]
                    ids = ids[free:]
                told.append([])
                free = room
                while len(ids) > room:
                    told[-1] += ids[:room]
                    ids = ids[room:]
                    told.append([])
            told[-1] += ids
            free -= len(ids)
        read = chunked(pieces(prompt, "comfyui"), words, "comfyui")
        assert [list(c.ids[1 : c.used + 1]) for c in read] == told, prompt


def test_the_first_way_of_emphasis_counts_brackets_as_tokens():
    words = tokenizer(12)
    (chunk,) = chunked(pieces("a ((two)) [small] (a", "a1111-old"), words, "a1111-old")
    said = words.split("a two small a")[0]
    assert chunk.ids[1 : 1 + len(said)] == said and chunk.used == len(said)
    by_word = {span.word: chunk.weights[span.start] for span in chunk.spans[:-1]}
    assert by_word == {"a": 1.0, "two": pytest.approx(1.21), "small": pytest.approx(1 / 1.1)}
    assert chunk.weights[chunk.spans[-1].start] == pytest.approx(1.1)
    assert len(chunked((Piece("a red dress " * 9),), words, "a1111-old")) == 1, "one window, the rest is left out"


def test_textual_inversions_stand_where_they_are_named():
    words = tokenizer(12)
    vectors = {"cat": torch.randn(3, 16), "Big Cat": torch.randn(2, 16)}
    known = Inversions(words, vectors)
    (chunk,) = chunked(pieces("a (cat:2) a BIG cat", "a1111"), words, inversions=known)
    assert [(p.name, p.start) for p in chunk.placed] == [("cat", 2), ("Big Cat", 6)], "the longest name that fits"
    assert chunk.weights[2:5] == (2.0,) * 3 and chunk.used == 7
    assert [s.word for s in chunk.spans] == ["a", "cat", "a", "Big Cat"] and chunk.spans[1] == WordSpan("cat", 2, 5)
    crowded = chunked(pieces("a a a a a a a a cat", "a1111"), words, inversions=known)
    assert [c.used for c in crowded] == [8, 3], "never cut in two"
    moved = chunked(pieces("a a a a a, cat a a a", "a1111"), words, inversions=known)
    assert [c.used for c in moved] == [6, 6] and moved[1].placed[0].start == 1, "moves with the words around it"
    (named,) = chunked(pieces("a embedding:cat, cat", "comfyui"), words, "comfyui", inversions=known)
    assert [(p.name, p.start) for p in named.placed] == [("cat", 2)] and named.used == 6
    for bad in (torch.randn(11, 16), torch.randn(16), torch.randn(0, 16)):
        with pytest.raises(InputError, match="1 to 10 vectors"):
            Inversions(words, {"x": bad})
    with pytest.raises(InputError, match="a name that the tokenizer reads"):
        Inversions(words, {" ": torch.randn(1, 16)})


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def test_golden_numbers_of_weights():
    z = torch.tensor([[[1.0, 2], [3, 4], [5, 6]]])
    m = torch.tensor([[1.0, 1.3, 1]])
    wanted = torch.tensor([[[0.909091, 1.818182], [3.545455, 4.727273], [4.545455, 5.454545]]])
    torch.testing.assert_close(weighted(z, m, "original"), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(weighted(z, m, "no-norm"), torch.tensor([[[1.0, 2], [3.9, 5.2], [5, 6]]]))
    assert weighted(z, m, "ignore") is z
    nothing = torch.tensor([[9.0, 9], [1, 2], [9, 9]])
    mixed = weighted(z, m, "interpolate", nothing)
    torch.testing.assert_close(mixed, torch.tensor([[[1.0, 2], [1 + 1.3 * 2, 2 + 1.3 * 2], [5, 6]]]))
    with pytest.raises(ValueError, match="the empty prompt's vectors"):
        weighted(z, m, "interpolate")
    assert torch.isfinite(weighted(z, torch.zeros(1, 3), "original")).all()


def test_the_mean_is_that_of_the_whole_batch_each_row_as_often_as_it_stands(seed):
    torch.manual_seed(seed)
    z, m = torch.randn(3, 5, 4) + 2, 0.5 + torch.rand(3, 5)
    rows = [0, 1, 1, 1, 2, 2]
    whole = weighted(z[rows], m[rows], "original")
    assert float(whole.mean()) == pytest.approx(float(z[rows].mean()), rel=1e-5)
    torch.testing.assert_close(weighted(z, m, "original", counts=[1, 3, 2]), whole[[0, 1, 4]])
    assert torch.equal(weighted(z, torch.ones(3, 5), "original"), z), "weights of 1 change nothing"


# ---------------------------------------------------------------------------------------------------------------------
# The tower


def test_clip_skip_against_transformers(seed):
    from transformers import CLIPTextConfig, CLIPTextModel

    rng = random.Random(seed)
    heads, layers = rng.choice([1, 2, 3]), rng.randint(2, 5)
    sizes = dict(width=heads * rng.choice([4, 7]), layers=layers, heads=heads, inner=rng.randint(9, 30))
    activation = rng.choice(["quick_gelu", "gelu"])
    config = CLIPTextConfig(
        vocab_size=40, hidden_size=sizes["width"], intermediate_size=sizes["inner"], num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=9, hidden_act=activation, eos_token_id=39, bos_token_id=38,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = randomise(CLIPTextModel(config).eval(), seed)
    ours = ClipText(ClipTextRecipe(activation=activation, vocabulary=40, length=9, **sizes)).eval()
    state = {k.removeprefix("text_model."): v for k, v in theirs.state_dict().items() if "position_ids" not in k}
    ours.load_state_dict(state)
    ids = torch.randint(0, 38, (3, 9), generator=torch.Generator().manual_seed(seed))
    ids[:, 0], ids[:, 6:] = 38, 39
    with torch.no_grad():
        told = theirs(ids, output_hidden_states=True)
        norm = getattr(theirs, "text_model", theirs).final_layer_norm
        for skip in range(1, layers + 1):
            vectors, last = ours.read(ids, skip)
            wanted = told.last_hidden_state if skip == 1 else norm(told.hidden_states[-skip])
            assert relative(vectors, wanted) < TOLERANCE, (seed, skip)
            assert relative(last, told.last_hidden_state) < TOLERANCE
            assert relative(ours.pool(ids, last, 39), told.pooler_output) < TOLERANCE
    assert torch.equal(ours.read(ids)[0], ours(ids))
    for bad in (0, layers + 1):
        with pytest.raises(InputError, match=f"a clip skip from 1 .* to {layers}"):
            ours.read(ids, bad)


# ---------------------------------------------------------------------------------------------------------------------
# Plans and their vectors


@pytest.mark.parametrize("dialect", DIALECTS)
def test_prompts_without_syntax_are_read_to_the_bit_as_before(seed, dialect):
    rng = random.Random(seed)
    reads = encoder(seed, projection=True)
    few = {reads.tokenizer.split(p)[0]: p for p in (drawn(rng, 4) for _ in range(99))}  # no two of the same tokens
    short = [p for ids, p in few.items() if 0 < len(ids) <= 10]
    prompts, negatives = short[:8], [*short[8:12], "", "", "", ""]
    assert len(prompts) == 8
    plans = [
        prompt_plan(p, n, PromptSettings(dialect=dialect), reads.tokenizer, 10) for p, n in zip(prompts, negatives, strict=True)
    ]
    assert all(plan.plain for plan in plans)
    with torch.no_grad():  # as painters do; other kernels serve where gradients are kept
        before = reads.encode([*prompts, *negatives])
    told = [e.at(rng.randrange(10)) for e in encode(plans, reads)]
    positive, negative = conditions(told, hide_padding=True, additive=True)
    assert torch.equal(torch.cat([positive[0].vectors, negative.vectors]), before.vectors)
    assert torch.equal(torch.cat([positive[0].mask, negative.mask]), before.mask)
    assert torch.equal(torch.cat([positive[0].pooled, negative.pooled]), before.pooled)


def test_only_plain_plans_say_so():
    words = tokenizer(12)
    a1111 = PromptSettings(dialect="a1111")
    plain = lambda prompt, negative="", how=a1111: prompt_plan(prompt, negative, how, words, 4).plain  # noqa: E731
    assert plain("a red dress") and plain("") and plain("a: b, c") and plain("a [red] BREAK", how=PromptSettings())
    for prompt in ("a (red) dress", "[a:b:2]", "a AND b", "a :2", "a BREAK b", "a <lora:x:1>", "a red dress " * 9, r"\(a"):
        assert not plain(prompt), prompt
    assert not plain("a", "(b)") and not plain("a", how=PromptSettings(dialect="a1111", clip_skip=2))
    assert plain("a red dress " * 9, how=PromptSettings(dialect="a1111", windows=1)), "cut where it always was"


def test_every_distinct_chunk_goes_through_the_tower_once(seed):
    reads = encoder(seed)
    rows = []
    reads.tower.embeddings.token_embedding.register_forward_hook(lambda _, args, out: rows.append(len(args[0])))
    how = PromptSettings(dialect="a1111")
    plans = [prompt_plan(p, "", how, reads.tokenizer, 10) for p in ("a [cat|dress]", "a cat", "(a cat:2)", "a (dress)")]
    encode(plans, reads)
    assert rows == [3], "a cat, a dress, and nothing; alternating ten times, weighted or not"


def test_plans_tell_what_is_in_force():
    words = tokenizer(12)
    plan = prompt_plan("a [cat:dress:2] :1.5 AND [red|] AND a", "x AND [y::3]", PromptSettings(dialect="a1111"), words, 6)
    assert plan.weights == (1.5, 1.0, 1.0)
    said = lambda chunks: " ".join(span.word for chunk in chunks for span in chunk.spans)  # noqa: E731
    told = [([(w, said(c)) for w, c in plan.at(i)[0]], said(plan.at(i)[1])) for i in range(6)]
    assert [t[0][0] for t in told] == [(1.5, "a cat")] * 3 + [(1.5, "a dress")] * 3
    assert [t[0][1][1] for t in told] == ["red", "red", "", "red", "", "red"]
    assert [t[1] for t in told] == ["x AND y"] * 4 + ["x AND"] * 2, "AND is a word of the negative prompt"
    assert plan.stretches(6) == (0, 2, 3, 4, 5) and plan.words == "a dress"
    calm = prompt_plan("a [cat:cat:2] [:9]", "", PromptSettings(dialect="a1111"), words, 6)
    assert calm.stretches(6) == (0,), "the same text again is no change"
    second = prompt_plan("a [cat:dress:1.5]", "", PromptSettings(dialect="a1111"), words, 4, before=6)
    assert second.stretches(4) == (0, 3)
    comfy = prompt_plan("[a:b:2] AND c", "", PromptSettings(dialect="comfyui"), words, 6)
    assert len(comfy.positive) == 1 and comfy.stretches(6) == (0,)


def by_hand(reads, text, how, dialect="a1111", skip=1):
    """A text's vectors, put together from the parts."""
    found = chunked(pieces(text, dialect), reads.tokenizer, dialect)
    z = [reads.tower.read(torch.tensor([c.ids]), skip)[0] for c in found]
    nothing = reads.tower.read(torch.tensor([empty(reads.tokenizer).ids]), skip)[0][0]
    return torch.cat([weighted(v, torch.tensor([c.weights]), how, nothing)[0] for v, c in zip(z, found, strict=True)])


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        (dict(dialect="a1111"), "original"),
        (dict(dialect="a1111", emphasis="no-norm", clip_skip=2), "no-norm"),
        (dict(dialect="a1111", emphasis="interpolate"), "interpolate"),
        (dict(dialect="a1111", emphasis="ignore", clip_skip=3), "ignore"),
        (dict(dialect="comfyui"), "interpolate"),
        (dict(dialect="comfyui", emphasis="original"), "original"),
    ],
)
def test_long_weighted_prompts_are_their_chunks_one_behind_the_other(seed, settings, how):
    reads = encoder(seed)
    how_read = PromptSettings(**settings)
    prompt = "a (red:1.4) dress, masterpiece, ((best quality)), a big (unbelievable:0.7) cat"
    (read,) = encode([prompt_plan(prompt, "", how_read, reads.tokenizer, 4)], reads)
    (told,), against = read.at(0)
    wanted = by_hand(reads, prompt, how, how_read.dialect, how_read.clip_skip)
    torch.testing.assert_close(told.vectors, wanted, atol=1e-5, rtol=1e-5)
    assert len(told.vectors) > 12 and len(against.vectors) == 12
    places = {span.word: span for span in told.spans}
    assert all(bool(told.words[span.start : span.end].all()) for span in told.spans)
    assert places["cat"].start > 12, "words keep their places among all tokens"


def test_brackets_are_text_where_emphasis_is_none(seed):
    words = tokenizer(30)
    for dialect in DIALECTS:
        plan = prompt_plan("a (red:1.4) (dress)", "", PromptSettings(dialect=dialect, emphasis="none"), words, 4)
        (chunk,) = plan.positive[0].chunks[0]
        assert chunk.plain and chunk.ids[1 : 1 + chunk.used] == words.split("a (red:1.4) (dress)")[0]


def test_texts_that_take_turns_share_their_mean(seed):
    """The mean is taken over every entry of a prompt's schedule, not over one text."""
    reads = encoder(seed)
    plan = prompt_plan("[(a:2)|cat, dress|a]", "", PromptSettings(dialect="a1111"), reads.tokenizer, 10)
    (read,) = encode([plan], reads)
    texts = [s.text for s in plan.positive[0].segments]
    rows = [chunked(pieces(t, "a1111"), reads.tokenizer)[0] for t in texts]
    z = reads.tower(torch.tensor([c.ids for c in rows]))
    wanted = weighted(z, torch.tensor([c.weights for c in rows]), "original")
    for call in range(10):
        torch.testing.assert_close(read.at(call)[0][0].vectors, wanted[max(call, 1) - 1], atol=1e-5, rtol=1e-5)


def test_prompts_of_unequal_length(seed):
    reads = encoder(seed, projection=True)
    long, mid = "a red dress, a big cat, masterpiece, best quality", "a red dress, a big (cat), extraordinarily"
    nothing = reads.encode([""]).vectors[0]

    def told(prompt, negative, padding):
        settings = PromptSettings(dialect="a1111", padding=padding)
        return encode([prompt_plan(prompt, negative, settings, reads.tokenizer, 4)], reads)[0].at(0)

    (alone,), short = told(long, "a", "separate")
    n = len(alone.vectors)
    assert n >= 24 and len(short.vectors) == 12 and bool(alone.seen.all())
    (same,), filled = told(long, "a", "empty")
    assert torch.equal(same.vectors, alone.vectors) and bool(filled.seen.all())
    torch.testing.assert_close(filled.vectors, torch.cat([short.vectors, *[nothing] * (n // 12 - 1)]), atol=1e-5, rtol=1e-5)
    repeated = told(long, "a", "repeat")[1].vectors
    assert torch.equal(repeated, torch.cat([short.vectors, short.vectors[-1:].expand(n - 12, -1)]))
    (one,), cut = told("a", long, "repeat")
    assert len(cut.vectors) == len(one.vectors) == 12 and all(span.end <= 12 for span in cut.spans)
    (one,), other = told("a", long, "empty")
    torch.testing.assert_close(one.vectors[12:24], nothing, atol=1e-5, rtol=1e-5)
    assert len(one.vectors) == len(other.vectors) == n
    first, second = told(f"a AND {mid}", "", "separate")[0]
    assert len(first.vectors) == len(second.vectors) > 12
    assert torch.equal(first.vectors[12:], first.vectors[11:12].expand(len(first.vectors) - 12, -1))
    (turned,), _ = told(f"[a|{long}]", "", "separate")
    torch.testing.assert_close(turned.vectors[12:24], nothing, atol=1e-5, rtol=1e-5)


def test_a_mask_makes_unequal_prompts_as_good_as_asked_apart(seed):
    """What a denoiser says of a short prompt is the same whether a longer one is asked beside it or not."""
    torch.manual_seed(seed)
    painter = tiny_painter()
    parts = painter.parts
    settings = PromptSettings(dialect="a1111")
    plans = [
        prompt_plan(p, "", settings, parts.encoder.tokenizer, 4)
        for p in ("a red circle", "a (green:1.3) ring, two big blue squares, a red circle, a green ring")
    ]
    moments = [e.at(0) for e in encode(plans, parts.encoder)]
    (both,), _ = conditions(moments, hide_padding=False)
    assert both.mask is not None and both.mask.sum(1).tolist()[0] < both.mask.shape[1] == both.mask.sum(1).tolist()[1]
    (first,), _ = conditions(moments[:1], hide_padding=False)
    assert first.mask is None
    x = torch.randn(2, 4, 8, 8)
    level = painter.levels(painter.settle(Request())[0])[1]
    with torch.no_grad():
        together = parts.denoiser(x, level, parts.denoiser.prepare(both))
        apart = parts.denoiser(x[:1], level, parts.denoiser.prepare(first))
    torch.testing.assert_close(together[:1], apart, atol=1e-5, rtol=1e-4)
    hidden = conditions(moments, hide_padding=True)[0][0].mask
    assert hidden[0].sum() == 2 + moments[0][0][0].spans[-1].end - 1


def test_textual_inversions_are_read_in_place_of_tokens(seed):
    torch.manual_seed(seed)
    reads = encoder(seed)
    table = reads.tower.embeddings.token_embedding.weight
    ids = reads.tokenizer.split("red dress")[0]
    own = Inversions(reads.tokenizer, {"houses": table[list(ids)].clone(), "two": torch.randn(1, 16)})
    settings = PromptSettings(dialect="a1111")
    texts = ("a houses, cat", "a red dress, cat", "a two cat")
    plans = [prompt_plan(t, "", settings, reads.tokenizer, 4, inversions=own) for t in texts]
    same, plain, other = (e.at(0)[0][0].vectors for e in encode(plans, reads, own))
    torch.testing.assert_close(same, plain, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(other, reads.encode(["a two cat"]).vectors[0], atol=1e-3)
    assert not plans[0].plain and plans[1].plain


def test_plans_of_two_clip_skips_are_not_mixed(seed):
    reads = encoder(seed)
    plans = [prompt_plan("a", "", PromptSettings(clip_skip=n), reads.tokenizer, 4) for n in (1, 2)]
    with pytest.raises(ValueError, match="one clip skip"):
        encode(plans, reads)
