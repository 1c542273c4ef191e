"""Our networks against diffusers and transformers on equal random weights: outputs and gradients, in both modes.

Configurations carry odd sizes on purpose. Every tensor is drawn non-zero from a fresh seed, which a failure prints.
"""

import secrets

import pytest
import torch

from giverny.autoencoders.kl import KLAutoencoder, KLRecipe
from giverny.base.contracts import Condition
from giverny.base.errors import InputError
from giverny.denoisers.unet import UNet, UNetRecipe
from giverny.text.clip import ClipImageRecipe, ClipRecipe, ClipText, ClipTextRecipe

TOLERANCE = 1e-5  # relative to the largest value, float32

pytestmark = pytest.mark.xdist_group("oracles")  # one process pays for the import of the references


@pytest.fixture
def seed() -> int:
    return secrets.randbelow(2**31)


def randomise(module, seed):
    """Every tensor non-zero and of a size that keeps activations of unit order."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        fan = p[0].numel() if p.dim() > 1 else 1
        p.data = (
            0.7 * noise / fan**0.5
            if p.dim() > 1
            else 0.2 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        )
        p.data[p.data == 0] = 0.01  # a normal draw may be exactly 0
    return module


def relative(ours, theirs):
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


def same_gradients(ours, theirs):
    """Relative difference over all parameters' gradients together, and per tensor against the largest gradient of all.

    Some gradients are zero by symmetry (a key's bias), so a tensor's own size is no measure for it.
    """
    reference = {k: p.grad for k, p in theirs.named_parameters()}
    given = {k: p.grad for k, p in ours.named_parameters()}
    assert given.keys() <= reference.keys() and all(g is not None for g in given.values())
    largest = max(float(g.abs().max()) for g in reference.values() if g is not None)
    off = {k: float((g - reference[k]).abs().max()) / largest for k, g in given.items()}
    worst = max(off, key=off.__getitem__)
    assert off[worst] < TOLERANCE, f"{worst}: {off[worst]}"
    return relative(torch.cat([g.flatten() for g in given.values()]), torch.cat([reference[k].flatten() for k in given]))


def test_sizes_of_stable_diffusion():
    with torch.device("meta"):
        count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
        assert count(UNet(UNetRecipe())) == 859_520_964
        assert count(KLAutoencoder(KLRecipe())) == 83_653_863
        assert count(ClipText(ClipTextRecipe())) == 123_060_480
        assert count(UNet(UNetRecipe(in_channels=9))) == 859_535_364
        two = UNetRecipe(heads=None, head_width=64, context_width=1024, linear_projection=True)
        assert count(UNet(two)) == 865_910_724


UNETS = {
    "shrunk": dict(channels=(32, 64, 64, 64), heads=(8, 8, 8, 8), context_width=48, groups=16, size=(16, 16)),
    "shrunk_2x": dict(
        channels=(32, 64, 64, 64), heads=None, head_width=16, context_width=24, groups=8, linear_projection=True, size=(8, 16)
    ),
    "odd_three_levels": dict(
        channels=(24, 48, 40), attention=(False, True, True), depth=(1, 2, 1), heads=(2, 4, 5), blocks=1,
        context_width=20, groups=4, in_channels=5, out_channels=3, size=(7, 13),
    ),
    "odd_one_level": dict(
        channels=(36,), attention=(True,), depth=(2,), heads=(3,), blocks=2, context_width=17, groups=6, size=(5, 9)
    ),
}  # fmt: skip


def diffusers_unet(recipe):
    from diffusers import UNet2DConditionModel

    levels = len(recipe.channels)
    heads = tuple(recipe.heads_at(i) for i in range(levels))
    return UNet2DConditionModel(
        in_channels=recipe.in_channels,
        out_channels=recipe.out_channels,
        block_out_channels=recipe.channels,
        layers_per_block=recipe.blocks,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in recipe.attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(recipe.attention)),
        transformer_layers_per_block=recipe.depth,
        cross_attention_dim=recipe.context_width,
        attention_head_dim=heads,
        norm_num_groups=recipe.groups,
        use_linear_projection=recipe.linear_projection,
        class_embed_type="projection" if recipe.additive else None,
        projection_class_embeddings_input_dim=recipe.pooled_width if recipe.additive else None,
    )


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", UNETS)
def test_unet_equals_diffusers(name, training, seed):
    config = dict(UNETS[name])
    height, width = config.pop("size")
    recipe = UNetRecipe(**{"attention": (True, True, True, False), "depth": (1, 1, 1, 1), **config})
    check_unet(recipe, height, width, training, seed)


def test_unet_with_added_vector_equals_diffusers(seed):
    recipe = UNetRecipe(
        channels=(32, 48), attention=(True, False), depth=(1, 1), heads=(4, 4), groups=8, context_width=12,
        conditioning="both", pooled_width=10,
    )  # fmt: skip
    check_unet(recipe, 6, 10, False, seed)


def check_unet(recipe, height, width, training, seed):
    theirs = randomise(diffusers_unet(recipe), seed).train(training)
    ours = recipe.build().train(training)
    ours.load_state_dict(theirs.state_dict())
    torch.manual_seed(seed)
    x = torch.randn(3, recipe.in_channels, height, width, requires_grad=True)
    t = torch.rand(3) * 999  # fractional times
    context = torch.randn(3, 11, recipe.context_width, requires_grad=True)
    pooled = torch.randn(3, recipe.pooled_width) if recipe.additive else None
    expected = theirs(x, t, context, class_labels=pooled).sample
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    reference = x.grad.clone(), context.grad.clone()
    x.grad = context.grad = None
    given = ours(x, t, ours.prepare(Condition(vectors=context, pooled=pooled)))
    (given * weight).sum().backward()
    assert relative(given, expected) < TOLERANCE, f"seed {seed}"
    assert relative(x.grad, reference[0]) < TOLERANCE, f"seed {seed}"
    assert relative(context.grad, reference[1]) < TOLERANCE, f"seed {seed}"
    assert same_gradients(ours, theirs) < TOLERANCE, f"seed {seed}"
    with torch.inference_mode():  # the fused attention kernel, used where no gradient is asked for
        again = ours(x, t, ours.prepare(Condition(vectors=context, pooled=pooled)))
    assert training or relative(again, expected.detach()) < TOLERANCE, f"seed {seed}"


def test_unet_mask_hides_words(seed):
    recipe = UNetRecipe(channels=(32,), attention=(True,), depth=(1,), heads=(4,), groups=8, context_width=12)
    net = randomise(recipe.build(), seed).eval()
    x, t, words = torch.randn(2, 4, 6, 6), torch.tensor([3.0, 500.0]), torch.randn(2, 5, 12)
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    masked = net(x, t, net.prepare(Condition(vectors=words, mask=mask)))
    cut = net(x, t, net.prepare(Condition(vectors=words[:, :3])))
    assert relative(masked, cut) < TOLERANCE
    assert relative(masked, net(x, t, net.prepare(Condition(vectors=words)))) > 1e-3


def test_probe_sees_and_replaces_attention(seed):
    recipe = UNetRecipe(channels=(32, 32), attention=(True, True), depth=(1, 1), heads=(4, 4), groups=8, context_width=12)
    net = randomise(recipe.build(), seed).eval()
    x, t, words = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 500.0]), torch.randn(2, 5, 12)
    prepared = net.prepare(Condition(vectors=words))
    seen = {}
    watched = net(x, t, prepared, lambda place, w: seen.__setitem__(place, w))
    assert relative(watched, net(x, t, prepared)) < TOLERANCE  # watching changes nothing
    crosses = [p for p in seen if p.endswith("cross")]
    assert len(crosses) == len(net.cross_attentions()) and seen[crosses[0]].shape == (2, 4, 64, 5)
    assert torch.allclose(seen[crosses[0]].sum(-1), torch.ones(2, 4, 64), atol=1e-5)
    moved = net(x, t, prepared, lambda place, w: w.flip(-1) if place.endswith("cross") else None)
    assert relative(moved, watched) > 1e-3


def test_unet_refuses_a_foreign_condition():
    recipe = UNetRecipe(channels=(32,), attention=(True,), depth=(1,), heads=(4,), groups=8, context_width=12)
    with pytest.raises(InputError, match="width 12"):
        recipe.build().prepare(Condition(vectors=torch.randn(1, 5, 16)))


KLS = {
    "shrunk": (dict(channels=(32, 64, 64, 64), groups=16), (32, 32)),
    "odd_grey": (dict(channels=(12, 20, 28), groups=4, blocks=1, picture_channels=1, latent_channels=7), (28, 44)),
    "odd_flat": (dict(channels=(10,), groups=5, blocks=3, latent_channels=2, middle_attention=False), (9, 14)),
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", KLS)
def test_autoencoder_equals_diffusers(name, training, seed):
    from diffusers import AutoencoderKL

    config, (height, width) = KLS[name]
    recipe = KLRecipe(**config)
    theirs = AutoencoderKL(
        in_channels=recipe.picture_channels,
        out_channels=recipe.picture_channels,
        latent_channels=recipe.latent_channels,
        block_out_channels=recipe.channels,
        layers_per_block=recipe.blocks,
        norm_num_groups=recipe.groups,
        down_block_types=("DownEncoderBlock2D",) * len(recipe.channels),
        up_block_types=("UpDecoderBlock2D",) * len(recipe.channels),
        mid_block_add_attention=recipe.middle_attention,
    )
    randomise(theirs, seed).train(training)
    ours = recipe.build().train(training)
    ours.load_state_dict(theirs.state_dict())
    torch.manual_seed(seed)
    pixels = torch.rand(2, recipe.picture_channels, height, width) * 2 - 1
    expected_belief = theirs.encode(pixels).latent_dist
    noise = torch.randn_like(expected_belief.mean)
    expected = theirs.decode(expected_belief.mean + expected_belief.std * noise).sample
    belief = ours.encode(pixels)
    given = ours.decode(belief.sample(noise))
    assert relative(belief.mean, expected_belief.mean) < TOLERANCE, f"seed {seed}"
    assert relative(belief.logvar, expected_belief.logvar) < TOLERANCE, f"seed {seed}"
    assert relative(belief.divergence(), expected_belief.kl()) < TOLERANCE, f"seed {seed}"
    assert relative(given, expected) < TOLERANCE, f"seed {seed}"
    (expected.square().mean() + expected_belief.kl().mean() * 1e-3).backward()
    (given.square().mean() + belief.divergence().mean() * 1e-3).backward()
    assert same_gradients(ours, theirs) < TOLERANCE, f"seed {seed}"


CLIPS = {
    "shrunk": (
        dict(width=48, layers=3, heads=4, inner=96, vocabulary=99, length=16),
        dict(width=32, layers=2, heads=4, inner=64, size=32, patch=8),
    ),
    "odd_gelu": (
        dict(width=35, layers=1, heads=5, inner=51, vocabulary=23, length=9, activation="gelu"),
        dict(width=21, layers=3, heads=3, inner=40, size=20, patch=5, activation="gelu", channels=1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", CLIPS)
def test_clip_equals_transformers(name, training, seed):
    from transformers import CLIPConfig, CLIPModel

    text, image = CLIPS[name]
    recipe = ClipRecipe(text=ClipTextRecipe(**text), image=ClipImageRecipe(**image), shared_width=19)
    end = recipe.text.vocabulary - 1
    theirs = CLIPModel(
        CLIPConfig(
            text_config=dict(
                vocab_size=recipe.text.vocabulary, hidden_size=recipe.text.width, intermediate_size=recipe.text.inner,
                num_hidden_layers=recipe.text.layers, num_attention_heads=recipe.text.heads, eos_token_id=end,
                max_position_embeddings=recipe.text.length, hidden_act=recipe.text.activation, bos_token_id=end - 1,
            ),
            vision_config=dict(
                hidden_size=recipe.image.width, intermediate_size=recipe.image.inner, num_channels=recipe.image.channels,
                num_hidden_layers=recipe.image.layers, num_attention_heads=recipe.image.heads,
                image_size=recipe.image.size, patch_size=recipe.image.patch, hidden_act=recipe.image.activation,
            ),
            projection_dim=19,
        )
    )  # fmt: skip
    randomise(theirs, seed).train(training)
    ours = recipe.build().train(training)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.endswith("position_ids")})
    torch.manual_seed(seed)
    ids = torch.randint(0, end, (4, recipe.text.length))
    for row, stop in enumerate((2, 5, 7, 8)):
        ids[row, stop:] = end
    pixels = torch.randn(4, recipe.image.channels, recipe.image.size, recipe.image.size)
    expected = theirs(input_ids=ids, pixel_values=pixels)
    texts, pictures = ours.text_features(ids, end), ours.image_features(pixels)
    assert relative(ours.text_model(ids), expected.text_model_output.last_hidden_state) < TOLERANCE, f"seed {seed}"
    assert relative(texts, expected.text_embeds) < TOLERANCE, f"seed {seed}"
    assert relative(pictures, expected.image_embeds) < TOLERANCE, f"seed {seed}"
    logits = ours.logit_scale.exp() * texts @ pictures.T
    assert relative(logits, expected.logits_per_text) < TOLERANCE, f"seed {seed}"
    weight = torch.randn_like(logits)
    (logits * weight).sum().backward()
    (expected.logits_per_text * weight).sum().backward()
    assert same_gradients(ours, theirs) < TOLERANCE, f"seed {seed}"
