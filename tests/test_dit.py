"""The diffusion transformer against diffusers' PixArtTransformer2DModel on equal random weights, and what is ours in it;
then in a whole model: the tests of test_contract.py run here once more, on a tiny diffusion model with a transformer.

Configurations carry odd sizes on purpose, one of them drawn anew in every run. Every tensor is drawn non-zero from a fresh
seed, which a failure prints.
"""

import dataclasses
import math
import random
import secrets
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

import test_contract as contract
from giverny.assembly import load_recipe, open_painter, train
from giverny.autoencoders.vq import VQRecipe
from giverny.base.contracts import Condition, NoiseLevel
from giverny.base.errors import InputError
from giverny.base.recipe import check, describe, read_recipe, to_toml
from giverny.denoisers.dit import DiT, DiTRecipe
from giverny.denoisers.precondition import DiscreteDenoiser
from giverny.denoisers.unet import UNetRecipe
from giverny.painters.diffusion.family import PAINTER
from giverny.painters.diffusion.recipe import DenoiserStage, DiffusionRecipe, ModelRecipe
from giverny.sampling.schedules import ScheduleRecipe
from test_networks import TOLERANCE, randomise, relative, same_gradients

pytestmark = pytest.mark.xdist_group("oracles")  # one process pays for the import of the references

TOY = dict(width=32, layers=2, heads=4, patch=2, context_width=12, pooled_width=10, span=4)


@pytest.fixture
def seed() -> int:
    return secrets.randbelow(2**31)


def drawn(seed):
    """A configuration nobody chose."""
    rng = random.Random(seed)
    heads, patch = rng.randint(1, 5), rng.choice((1, 2, 4))
    return dict(
        width=4 * heads * rng.randint(3, 6), heads=heads, patch=patch, layers=rng.randint(1, 4), span=float(rng.randint(2, 16)),
        in_channels=rng.randint(1, 6), out_channels=rng.randint(1, 9), context_width=rng.randint(1, 30),
        pooled_width=rng.randint(1, 30), conditioning=rng.choice(("cross", "additive", "both", "none")),
        normalise_attention=rng.random() < 0.5, size=(patch * rng.randint(1, 6), patch * rng.randint(1, 6)),
    )  # fmt: skip


CONFIGS = {
    "shrunk": dict(width=64, layers=3, heads=4, patch=2, context_width=24, span=8, out_channels=8, size=(16, 16)),
    "odd_patch_1": dict(
        width=36, layers=2, heads=3, patch=1, context_width=17, span=4, in_channels=5, out_channels=3, size=(7, 13)
    ),
    "odd_patch_4_both": dict(
        width=40, layers=2, heads=5, patch=4, context_width=9, pooled_width=11, span=5, conditioning="both",
        normalise_attention=True, size=(12, 20),
    ),
    "none": dict(width=20, layers=2, heads=1, patch=2, span=3, conditioning="none", size=(10, 4)),
    "drawn": None,
}  # fmt: skip


def diffusers_pixart(recipe):
    """Theirs, with what PixArt itself lacks put in from diffusers' own parts: normalised attention, a pooled vector."""
    from diffusers import PixArtTransformer2DModel
    from diffusers.models.attention_processor import Attention
    from diffusers.models.embeddings import TimestepEmbedding

    theirs = PixArtTransformer2DModel(
        num_attention_heads=recipe.heads,
        attention_head_dim=recipe.width // recipe.heads,
        in_channels=recipe.in_channels,
        out_channels=recipe.out_channels,
        num_layers=recipe.layers,
        cross_attention_dim=recipe.width if recipe.cross else None,
        caption_channels=recipe.context_width if recipe.cross else None,
        sample_size=6 * recipe.patch,  # six places a side, brought to our span
        interpolation_scale=6 / recipe.span,
        patch_size=recipe.patch,
        use_additional_conditions=False,
    )
    if recipe.normalise_attention:
        inner = dict(heads=recipe.heads, dim_head=recipe.width // recipe.heads, bias=True, qk_norm="rms_norm", eps=1e-6)
        for block in theirs.transformer_blocks:
            block.attn1 = Attention(query_dim=recipe.width, **inner)
            if recipe.cross:
                block.attn2 = Attention(query_dim=recipe.width, cross_attention_dim=recipe.width, **inner)
    if recipe.additive:
        theirs.class_embedding = TimestepEmbedding(recipe.pooled_width, recipe.width)
    return theirs


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", CONFIGS)
def test_dit_equals_diffusers(name, training, seed):
    config = dict(CONFIGS[name] or drawn(seed))
    told = f"seed {seed}, {config}"
    height, width = config.pop("size")
    recipe = DiTRecipe(**config)
    theirs = randomise(diffusers_pixart(recipe), seed).train(training)
    ours = recipe.build().train(training)
    ours.load_state_dict(theirs.state_dict())
    torch.manual_seed(seed)
    x = torch.randn(3, recipe.in_channels, height, width, requires_grad=True)
    t = torch.rand(3) * 999  # fractional times
    words = torch.randn(3, 7, recipe.context_width, requires_grad=recipe.cross)
    mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    pooled = torch.randn(3, recipe.pooled_width, requires_grad=recipe.additive)
    inputs = [x] + [words] * recipe.cross + [pooled] * recipe.additive
    if recipe.additive:
        theirs.adaln_single.emb.register_forward_hook(lambda _, __, time: time + theirs.class_embedding(pooled))
    expected = theirs(
        x, words if recipe.cross else None, t, encoder_attention_mask=mask if recipe.cross else None,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample  # fmt: skip
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    reference = [part.grad.clone() for part in inputs]
    for part in inputs:
        part.grad = None
    condition = Condition(
        vectors=words if recipe.cross else None,
        mask=mask if recipe.cross else None,
        pooled=pooled if recipe.additive else None,
    )
    given = ours(x, t, ours.prepare(condition))
    (given * weight).sum().backward()
    assert relative(given, expected) < TOLERANCE, told
    for part, grad in zip(inputs, reference, strict=True):
        assert relative(part.grad, grad) < TOLERANCE, told
    assert same_gradients(ours, theirs) < TOLERANCE, told
    with torch.inference_mode():  # the fused attention kernel, used where no gradient is asked for
        again = ours(x, t, ours.prepare(condition))
    assert relative(again, expected) < TOLERANCE, told


def test_size_of_pixart_alpha():
    """PixArt-XL-2-512x512's published configuration; 8 channels out, for it predicts a variance as well."""
    from diffusers import PixArtTransformer2DModel

    with torch.device("meta"):
        theirs = PixArtTransformer2DModel(
            num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28, sample_size=64,
            cross_attention_dim=1152, attention_bias=True, patch_size=2, caption_channels=4096, norm_type="ada_norm_single",
        )  # fmt: skip
        ours = DiT(DiTRecipe(out_channels=8))
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert sum(p.numel() for p in ours.parameters()) == theirs.num_parameters() == 610_856_096


def told_about(recipe, rows):
    return Condition(
        vectors=torch.randn(rows, 5, recipe.context_width) if recipe.cross else None,
        mask=torch.arange(5) < torch.randint(1, 6, (rows, 1)) if recipe.cross else None,
        pooled=torch.randn(rows, recipe.pooled_width) if recipe.additive else None,
    )


@pytest.mark.parametrize("conditioning", ["cross", "additive", "both"])
def test_branches_of_guidance_share_their_sample(conditioning, seed):
    torch.manual_seed(seed)
    recipe = DiTRecipe(**TOY, conditioning=conditioning)
    net = randomise(recipe.build(), seed).eval()
    denoiser = DiscreteDenoiser(net, ScheduleRecipe(kind="cosine").table(), "v")
    x, level = torch.randn(2, 4, 6, 10), NoiseLevel(torch.tensor([0.6, 0.8]), torch.tensor([0.8, 0.6]))
    branches = [told_about(recipe, 2) for _ in range(3)]
    together = denoiser(x, level, denoiser.prepare(Condition.join(branches)))
    apart = torch.cat([denoiser(x, level, denoiser.prepare(branch)) for branch in branches])
    assert together.shape == (6, 4, 6, 10)
    assert relative(together, apart) < TOLERANCE, f"seed {seed}"
    assert relative(apart[:2], apart[2:4]) > 1e-3, f"seed {seed}"  # they do differ


def test_concatenated_channels_reach_the_network(seed):
    torch.manual_seed(seed)
    recipe = DiTRecipe(**TOY, in_channels=6, conditioning="none")
    net = randomise(recipe.build(), seed).eval()
    x, t, extra = torch.randn(2, 4, 6, 6), torch.tensor([3.0, 500.0]), torch.randn(2, 2, 6, 6)
    joined = net(torch.cat([x, extra], dim=1), t, net.prepare(Condition()))
    assert relative(net(x, t, net.prepare(Condition(channels=extra))), joined) < TOLERANCE, f"seed {seed}"


@pytest.mark.parametrize("normalised", [False, True])
def test_probe_sees_and_replaces_attention(normalised, seed):
    torch.manual_seed(seed)
    recipe = DiTRecipe(**TOY, normalise_attention=normalised)
    net = randomise(recipe.build(), seed).eval()
    x, t = torch.randn(2, 4, 6, 8), torch.tensor([3.0, 500.0])
    prepared = net.prepare(Condition(vectors=torch.randn(2, 5, 12)))
    seen = {}
    watched = net(x, t, prepared, lambda place, w: seen.__setitem__(place, w))
    assert relative(watched, net(x, t, prepared)) < TOLERANCE, f"seed {seed}"  # watching changes nothing
    assert list(seen) == ["blocks.0.self", "blocks.0.cross", "blocks.1.self", "blocks.1.cross"]
    assert seen["blocks.1.cross"].shape == (2, 4, 12, 5) and seen["blocks.1.self"].shape == (2, 4, 12, 12)
    assert all(torch.allclose(w.sum(-1), torch.ones(w.shape[:-1]), atol=1e-5) for w in seen.values())
    for kind in ("self", "cross"):
        moved = net(x, t, prepared, lambda place, w, kind=kind: w.flip(-1) if place.endswith(kind) else None)
        assert relative(moved, watched) > 1e-3, f"seed {seed}, {kind}"


def test_normalised_attention_does_not_grow_with_its_projections(seed):
    torch.manual_seed(seed)
    x, t, words = torch.randn(2, 4, 6, 6), torch.tensor([3.0, 500.0]), torch.randn(2, 5, 12)
    sharpness = {}
    for normalised in (False, True):
        net = randomise(DiTRecipe(**TOY, normalise_attention=normalised).build(), seed).eval()
        for factor in (1, 30):
            seen = []
            net(x, t, net.prepare(Condition(vectors=words)), lambda _, w, seen=seen: seen.append(w.detach().amax(-1).mean()))
            sharpness[normalised, factor] = float(torch.stack(seen).mean())
            for name, p in net.named_parameters():
                p.data *= 30 if "to_q" in name or "to_k" in name else 1
    assert abs(sharpness[True, 30] - sharpness[True, 1]) < 0.02, f"seed {seed}"
    assert sharpness[False, 30] > 0.9 > sharpness[False, 1], f"seed {seed}"


@pytest.mark.parametrize("conditioning", ["cross", "both"])
def test_begins_at_zero_and_every_tensor_learns(conditioning, seed):
    """adaLN-zero: all blocks are the identity at first, and yet no tensor is cut off from the gradient for good."""
    torch.manual_seed(seed)
    recipe = DiTRecipe(**TOY, conditioning=conditioning, normalise_attention=True)
    net = recipe.build()
    x, t, target = torch.randn(4, 4, 6, 6), torch.rand(4) * 999, torch.randn(4, 4, 6, 6)
    condition = told_about(recipe, 4)
    assert torch.equal(net(x, t, net.prepare(condition)), torch.zeros(4, 4, 6, 6))
    places = net.pos_embed(x)
    inside = []
    handle = net.norm_out.register_forward_pre_hook(lambda _, given: inside.append(given[0]))
    net(x, t, net.prepare(condition))
    handle.remove()
    assert torch.equal(inside[0], places)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    losses = []
    for _ in range(60):
        loss = (net(x, t, net.prepare(condition)) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0], f"seed {seed}: {losses[0]} -> {losses[-1]}"
    still = [name for name, p in net.named_parameters() if torch.equal(p, before[name])]
    assert not still, f"seed {seed}: {still}"


def test_positions_span_the_same_at_every_size():
    """Twice the places, the same span: every second place of the larger picture lies where one of the smaller does."""
    embed = DiTRecipe(**TOY, conditioning="none").build().pos_embed
    torch.nn.init.zeros_(embed.proj.weight)
    small, large = embed(torch.zeros(1, 4, 6, 10)), embed(torch.zeros(1, 4, 12, 20))
    assert torch.allclose(large.unflatten(1, (6, 10))[:, ::2, ::2], small.unflatten(1, (3, 5)), atol=1e-6)
    row, column = 2, 3  # by the formula: columns first, sines before cosines, rates 10000^(-i / 8)
    angle = [4 * n / of * 10000 ** (-i / 8) for n, of in ((column, 5), (row, 3)) for i in range(8)]
    expected = [f(a) for half in (angle[:8], angle[8:]) for f in (math.sin, math.cos) for a in half]
    assert torch.allclose(small[0, row * 5 + column], torch.tensor(expected), atol=1e-5)


def test_reduced_precision_stays_near(seed):
    torch.manual_seed(seed)
    recipe = DiTRecipe(**TOY, conditioning="both", normalise_attention=True)
    net = randomise(recipe.build(), seed).eval()
    x, t, condition = torch.randn(2, 4, 6, 6), torch.rand(2) * 999, told_about(recipe, 2)
    exact = net(x, t, net.prepare(condition))
    with torch.autocast("cpu", torch.bfloat16):
        prepared = net.prepare(condition)
        mixed = net(x, t, prepared)
    assert {part.dtype for pair in prepared.keys_values for part in pair} == {torch.bfloat16}
    half = net.to(torch.bfloat16)
    told = Condition(condition.vectors.bfloat16(), condition.mask, condition.pooled.bfloat16())
    low = half(x.bfloat16(), t, half.prepare(told))
    assert low.dtype == torch.bfloat16
    assert relative(mixed.float(), exact) < 0.1 and relative(low.float(), exact) < 0.1, f"seed {seed}"


def test_refuses_what_cannot_be():
    net = DiTRecipe(**TOY, conditioning="both").build()
    words, pooled = torch.randn(1, 5, 12), torch.randn(1, 10)
    with pytest.raises(InputError, match="text vectors of width 12; given width 16"):
        net.prepare(Condition(vectors=torch.randn(1, 5, 16), pooled=pooled))
    with pytest.raises(InputError, match="pooled vector of width 10; given none"):
        net.prepare(Condition(vectors=words))
    prepared = net.prepare(Condition(vectors=words, pooled=pooled))
    for height, width in ((7, 8), (8, 7)):
        with pytest.raises(InputError, match=f"patch of 2; given {width} x {height}"):
            net(torch.randn(1, 4, height, width), torch.zeros(1), prepared)
    for wrong in (dict(width=30, heads=4), dict(width=30, heads=5)):
        with pytest.raises(ValidationError, match="divisible"):
            DiTRecipe(**{**TOY, **wrong})


# -- in a diffusion model -------------------------------------------------------------------------------------------------


def tiny():
    """The tiny diffusion model with a transformer told in both ways; its 8 x 8 latents are 4 x 4 places."""
    network = DiTRecipe(
        width=16, layers=2, heads=2, context_width=16, pooled_width=16, span=4, conditioning="both", normalise_attention=True
    )
    recipe = PAINTER.tiny()
    return changed(recipe, name="tiny-dit", denoiser=changed(recipe.denoiser, network=network))


def changed(recipe, **parts):
    """Checked, as `model_copy` is not."""
    return type(recipe).model_validate({**{n: getattr(recipe, n) for n in type(recipe).model_fields}, **parts})


@pytest.fixture
def name(monkeypatch):
    """The family that the contract's tests look up, with this recipe as its tiny one."""
    monkeypatch.setattr("giverny.painters.diffusion.family.PAINTER", dataclasses.replace(PAINTER, tiny=tiny))
    return "diffusion"


@pytest.fixture(scope="module")
def tiny_runs(tmp_path_factory):
    run = tmp_path_factory.mktemp("tiny") / "dit"
    for _ in train(tiny(), run):
        pass
    return {"diffusion": run}


painter = contract.painter
globals().update({key: test for key, test in vars(contract).items() if key.startswith("test_")})


def test_the_opened_model_is_a_transformer_and_paints_with_the_plain_backend(tiny_runs):
    run = tiny_runs["diffusion"]
    painter = open_painter(run)
    assert isinstance(painter.parts.network, DiT) and painter.parts.recipe.denoiser == tiny().denoiser.network
    assert painter.backend == open_painter(run, backend="plain").backend == "plain"
    assert painter.parts.step == 4  # two pixels a latent, two latents a place
    with pytest.raises(InputError, match="wanted a U-Net for the packed backend; given a denoiser of family 'dit'"):
        open_painter(run, backend="packed")


def test_a_recipe_says_which_network_and_a_u_net_where_it_does_not():
    text = to_toml(PAINTER.tiny())
    assert 'family = "unet"' in text
    unsaid = check(DiffusionRecipe, read_recipe(text.replace('family = "unet"', "")), "text")
    assert unsaid == PAINTER.tiny() and isinstance(unsaid.denoiser.network, UNetRecipe)
    with pytest.raises(InputError) as caught:
        load_recipe(tiny(), ["denoiser.network.family=dot"])
    assert (
        "denoiser.network: wanted a known family; did you mean 'dit'? (choices: dit, double, simple, unet); given 'dot'"
        in str(caught.value)
    )
    with pytest.raises(InputError, match=r"denoiser\.network\.pach: unknown key; did you mean 'patch'"):
        load_recipe(tiny(), ["denoiser.network.pach=2"])


def test_pictures_that_are_no_whole_number_of_places_are_refused():
    with pytest.raises(InputError, match=r"sides divisible by 16 \(the denoiser's patch is 8\), given \(24, 24\)"):
        load_recipe(tiny(), ["denoiser.network.patch=8", "data.size=[24, 24]", "text.image.size=24"])
    assert load_recipe(tiny(), ["denoiser.network.patch=4", "data.size=[24, 24]", "text.image.size=24"])
    for lost in ("context_width=15", "pooled_width=15", "in_channels=3"):
        with pytest.raises(InputError, match=r"denoiser\.network"):
            load_recipe(tiny(), [f"denoiser.network.{lost}"])


def test_the_members_of_a_union_are_described_by_family():
    fields = [row.field for row in describe(DenoiserStage)]
    for recipe, family in ((UNetRecipe, "unet"), (DiTRecipe, "dit")):
        assert [f for f in fields if f.startswith(f"network[{family}].")] == [
            f"network[{family}].{row.field}" for row in describe(recipe)
        ]
    assert {"network[dit].patch", "mask_padding", "loop.batch"} <= set(fields)
    assert {"autoencoder[vq].codes", "autoencoder[kl].channels"} <= {row.field for row in describe(ModelRecipe)}


def test_the_speed_benchmark_fits_the_size_and_refuses_what_its_peer_cannot_hold(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))  # scripts, not a package
    import paint

    def card(denoiser=None, autoencoder=None):
        whole = PAINTER.tiny()
        return ModelRecipe(
            autoencoder=autoencoder or whole.autoencoder.network, text=whole.text.text, pooled_width=16, mask_padding=True,
            denoiser=denoiser or whole.denoiser.network, schedule=whole.schedule, prediction="v",
        )  # fmt: skip

    assert paint.held_by_peer(card()) == (PAINTER.tiny().denoiser.network, PAINTER.tiny().autoencoder.network)
    with pytest.raises(InputError, match="U-Net with cross-attention; given 'dit'"):
        paint.held_by_peer(card(tiny().denoiser.network))
    with pytest.raises(InputError, match="KL autoencoder; given 'vq'"):
        paint.held_by_peer(card(autoencoder=VQRecipe(channels=(8, 16), blocks=1, groups=4, middle_attention=False)))
    assert [paint.painted_size(size) for size in ((28, 28), (64, 64), (60, 33))] == [(32, 32), (64, 64), (64, 40)]
    sys.modules.pop("paint")
