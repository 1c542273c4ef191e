"""Networks of translating GANs: known sizes, the original's tensor names, what makes each of them itself."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from giverny.base.images import beside
from giverny.gans.critics import PatchRecipe, PixelCriticRecipe
from giverny.gans.generators import ResnetRecipe, UnetRecipe, from_original


def size_of(recipe):
    with torch.device("meta"):
        return sum(p.numel() for p in recipe.build().parameters())


@pytest.mark.parametrize(
    ("recipe", "parameters"),
    [
        (ResnetRecipe(blocks=9), 11_378_179),
        (ResnetRecipe(blocks=6), 7_837_699),
        (UnetRecipe(levels=8, norm="batch"), 54_413_955),
        (UnetRecipe(levels=8), 54_409_603),
        (UnetRecipe(levels=7), 41_825_667),
        (PatchRecipe(), 2_764_737),
        (PatchRecipe(norm="batch"), 2_765_633),
        (PatchRecipe(stride=2), 2_764_737),
    ],
)
def test_parameters_are_those_of_the_original(recipe, parameters):
    assert size_of(recipe) == parameters


def test_a_whole_cyclegan_has_the_known_size():
    assert 2 * size_of(ResnetRecipe()) + 2 * size_of(PatchRecipe()) == 28_285_832


@pytest.mark.parametrize(("stride", "scores", "field"), [(1, 30, 70), (2, 15, 94)])
def test_the_stride_of_the_fourth_convolution_is_the_map_of_the_source(stride, scores, field):
    with torch.device("meta"):
        assert PatchRecipe(stride=stride).build()(torch.empty(1, 3, 256, 256)).shape == (1, 1, scores, scores)
    # the receptive field, from the convolutions themselves
    convolutions = [m for m in PatchRecipe(stride=stride).build().model if isinstance(m, nn.Conv2d)]
    seen, jump = 1, 1
    for layer in convolutions:
        seen, jump = seen + (layer.kernel_size[0] - 1) * jump, jump * layer.stride[0]
    assert seen == field


@pytest.mark.parametrize("recipe", [ResnetRecipe(channels=4, blocks=2), ResnetRecipe(channels=4, blocks=1, doubling="resize")])
def test_a_residual_generator_keeps_any_size_divisible_by_four(recipe):
    network = recipe.build()
    for sides in ((8, 8), (12, 36), (64, 40)):
        made = network(torch.randn(2, 3, *sides))
        assert made.shape == (2, 3, *sides) and made.abs().max() < 1


@pytest.mark.parametrize("doubling", ["transposed", "resize"])
def test_a_unet_generator_keeps_sizes_divisible_by_its_step(doubling):
    recipe = UnetRecipe(channels=4, levels=4, doubling=doubling)
    assert recipe.build()(torch.randn(2, 3, 16, 48)).shape == (2, 3, 16, 48) and recipe.step == 16


def test_a_unet_enlarged_evenly_leaves_no_checkerboards():
    """Untrained, a picture of one colour: what a transposed convolution makes of it changes from pixel to pixel."""
    seen = {}
    for doubling in ("transposed", "resize"):
        torch.manual_seed(0)
        network = UnetRecipe(channels=8, levels=3, doubling=doubling, gain=0.2).build()
        with torch.no_grad():
            inside = network(torch.full((1, 3, 64, 64), 0.3))[..., 24:40, 24:40]
        seen[doubling] = float((inside[..., 1:] - inside[..., :-1]).abs().max())
    assert seen["resize"] < 1e-5 < 0.01 < seen["transposed"]


@pytest.mark.parametrize("kind", [ResnetRecipe, UnetRecipe])
def test_grain_is_noise_that_the_first_convolution_is_shown(kind):
    """Further channels of one convolution; with weights of 0 for them, the network without."""
    more = {"channels": 4, **({"blocks": 1} if kind is ResnetRecipe else {"levels": 3})}
    plain, grained = kind(**more).build(), kind(grain=2, **more).build()
    tensors = plain.state_dict()
    (first,) = (k for k, v in grained.state_dict().items() if v.shape != tensors[k].shape)
    assert grained.state_dict()[first].shape[1] == 5
    tensors[first] = F.pad(tensors[first], (0, 0, 0, 0, 0, 2))
    grained.load_state_dict(tensors)
    x, noise = torch.randn(2, 3, 16, 24), torch.randn(2, 2, 16, 24)
    with torch.no_grad():
        assert torch.allclose(grained(beside(x, noise)), plain(x), atol=1e-6) and torch.equal(beside(x, None), x)
        grained.get_parameter(first)[:, 3:] = 0.1
        assert not torch.allclose(grained(beside(x, noise)), grained(beside(x, noise.flip(0))), atol=1e-4)
    assert "grain" not in kind(**more).model_dump() and kind(grain=2).model_dump()["grain"] == 2  # older ones keep their name


def test_a_recipe_from_before_there_were_doublings_keeps_its_name():
    assert "doubling" not in UnetRecipe().model_dump() and UnetRecipe(doubling="resize").model_dump()["doubling"] == "resize"
    assert UnetRecipe.model_validate(UnetRecipe(doubling="resize").model_dump()).doubling == "resize"


def test_the_unet_is_the_originals_with_activations_in_place():
    """The same tensors through blocks written as the original has them: units in place, the very input handed across."""

    class Original(nn.Module):
        def __init__(self, outer, inner, below=None, outermost=False):
            super().__init__()
            self.outermost = outermost
            wide = inner if below is None else 2 * inner
            down = nn.Conv2d(outer, inner, 4, 2, 1)
            if outermost:
                parts = [down, below, nn.ReLU(True), nn.ConvTranspose2d(wide, outer, 4, 2, 1), nn.Tanh()]
            else:
                inside = [] if below is None else [nn.InstanceNorm2d(inner), below]
                up = nn.ConvTranspose2d(wide, outer, 4, 2, 1)
                parts = [nn.LeakyReLU(0.2, True), down, *inside, nn.ReLU(True), up, nn.InstanceNorm2d(outer)]
            self.model = nn.Sequential(*parts)

        def forward(self, x):
            return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)

    ours = UnetRecipe(channels=4, levels=3).build()
    original = nn.Module()
    original.model = Original(3, 4, Original(4, 8, Original(8, 16)), outermost=True)
    original.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 16, 24)
    assert torch.equal(ours(x), original.model(x.clone()))


def test_names_are_those_of_the_original():
    names = set(ResnetRecipe(channels=4).build().state_dict())
    blocks = {f"model.{i}.conv_block.{j}" for i in range(10, 19) for j in (1, 5)}
    assert names == {
        f"{layer}.{kind}"
        for layer in {"model.1", "model.4", "model.7", *blocks, "model.19", "model.22", "model.26"}
        for kind in ("weight", "bias")
    }
    dropped = ResnetRecipe(channels=4, blocks=1, dropout=True).build().state_dict()
    assert {"model.10.conv_block.1.weight", "model.10.conv_block.6.weight"} <= set(dropped)
    assert set(PatchRecipe(channels=4).build().state_dict()) == {
        f"model.{i}.{kind}" for i in (0, 2, 5, 8, 11) for kind in ("weight", "bias")
    }
    unet = set(UnetRecipe(channels=4, levels=3).build().state_dict())
    layers = ("model.model.0", "model.model.3", "model.model.1.model.1", "model.model.1.model.5")
    inner = ("model.model.1.model.3.model.1", "model.model.1.model.3.model.3")
    assert unet == {f"{layer}.{kind}" for layer in (*layers, *inner) for kind in ("weight", "bias")}


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_early_checkpoints_load_without_the_statistics_of_instance_norms(norm):
    network = ResnetRecipe(channels=4, blocks=1, norm=norm).build()
    old = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    norms = [n for n, m in network.named_modules() if isinstance(m, nn.InstanceNorm2d)]
    for name, kind in itertools.product(norms, ("running_mean", "running_var", "num_batches_tracked")):
        old[f"module.{name}.{kind}"] = torch.ones(())
    fresh = ResnetRecipe(channels=4, blocks=1, norm=norm).build()
    fresh.load_state_dict(from_original(old))
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(network.eval()(x), fresh.eval()(x))
    assert bool(norms) == (norm == "instance")


def test_initial_weights_have_the_originals_spread():
    weights = torch.cat([p.flatten() for n, p in UnetRecipe(channels=16).build().named_parameters() if n.endswith("weight")])
    assert weights.mean().abs() < 1e-3 and abs(weights.std() - 0.02) < 2e-4
    for name, p in ResnetRecipe(channels=8, norm="batch").build().named_parameters():
        assert not name.endswith("bias") or not p.any()


def test_features_are_what_the_scores_are_made_of():
    critic, x = PatchRecipe(channels=4).build(), torch.randn(2, 3, 64, 64)
    assert torch.equal(critic.model[-1](critic.features(x)), critic(x))
    generator = ResnetRecipe(channels=4, blocks=4).build()
    seen = generator.features(x)
    assert [m.shape[1] for m in seen] == list(generator.looks.values())
    for index, seen_there in zip(generator.looks, seen, strict=True):
        assert torch.equal(seen_there, generator.model[: index + 1](x))


# -- the critic of every pixel ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "size", "wide"),
    [
        ((1, 2, 4, 8, 16), 128, [(16, 8), (16, 4), (8, 2), (4, 1), (2, 1)]),
        ((1, 2, 4, 8, 8, 16), 256, [(16, 8), (16, 8), (16, 4), (8, 2), (4, 1), (2, 1)]),
    ],
)
def test_the_pixel_critic_has_the_papers_widths(widths, size, wide):
    with torch.device("meta"):
        critic = PixelCriticRecipe(channels=1, widths=widths).build()
        whole, pixels = critic(torch.empty(2, 3, size, size))
    assert whole.shape == (2, 1) and pixels.shape == (2, 1, size, size)
    assert [(b.one.in_channels, b.one.out_channels) for b in critic.back] == wide


def test_a_critic_with_norms_of_weights_sees_a_tint_and_one_with_instance_norms_hardly_does():
    """How far a picture and the same one tinted are apart in what scores are made of, beside how far different ones are."""
    apart = {}
    for norm in ("instance", "spectral"):
        torch.manual_seed(1)
        critic = PatchRecipe(channels=8, norm=norm).build().eval()
        one, other = torch.rand(2, 1, 3, 64, 64) - 0.5
        tinted = one + torch.tensor([0.3, 0.0, -0.3])[:, None, None]
        with torch.no_grad():
            of_tint, of_another = (float((critic.features(x) - critic.features(one)).norm()) for x in (tinted, other))
        apart[norm] = of_tint / of_another
    assert apart["spectral"] > 2 * apart["instance"]
    assert sum(hasattr(layer, "parametrizations") for layer in PatchRecipe(channels=8, norm="spectral").build().model) == 5


def test_every_layer_of_the_pixel_critic_but_the_last_is_normed():
    critic = PixelCriticRecipe(channels=4, widths=(1, 2)).build()
    for _ in range(400):  # each brings the estimate of the norm nearer, slowly where two directions are nearly as long
        critic(torch.randn(2, 3, 16, 16))
    critic.eval()
    normed = [m for m in critic.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m is not critic.pixel]
    assert len(normed) == 13
    for layer in normed:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-2)
    assert not hasattr(critic.pixel, "parametrizations")


def test_the_verdict_on_a_pixel_hangs_on_what_is_there():
    critic = PixelCriticRecipe(channels=8, widths=(1, 2)).build().eval()
    x = torch.randn(1, 3, 64, 64, requires_grad=True)
    (slope,) = torch.autograd.grad(critic(x)[1][0, 0, 8, 8], x)
    assert slope[..., 8, 8].abs().max() > 0 and not slope[..., 40:, 40:].any()
    assert F.relu(critic.features(x)).sum((2, 3)).shape == (1, 16)


def test_a_residual_generator_does_not_see_the_colour_of_the_whole_and_a_unet_does():
    """Its first norm takes away what all places of a map share; the U-Net hands the first maps across without a norm."""
    x, tint = torch.randn(1, 3, 32, 32, dtype=torch.float64) / 4, torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    moved = x + tint[:, None, None]
    for recipe, sees in (
        (ResnetRecipe(channels=4, blocks=1, gain=0.2), False),
        (UnetRecipe(channels=4, levels=3, gain=0.2), True),
    ):
        network = recipe.build().double()
        assert (bool((network(x) - network(moved)).abs().max() > 1e-3)) == sees
