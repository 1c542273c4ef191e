"""The packed backend paints with the plain network's numbers, whatever the shape, the condition or the time."""

import pytest
import torch

from giverny.base.contracts import Condition
from giverny.denoisers.packed import Folded, PackedUNet, available
from giverny.denoisers.unet import UNetRecipe

pytestmark = pytest.mark.skipif(not available(torch.device("cpu")), reason="this build of torch lacks oneDNN")

RECIPES = {
    "cross": UNetRecipe(channels=(16, 24), attention=(False, True), depth=(1, 2), heads=(2, 3), context_width=12, groups=4),
    "everything": UNetRecipe(
        channels=(16, 24, 32), attention=(True, False, True), depth=(1, 1, 1), head_width=8, context_width=12, groups=8,
        conditioning="both", pooled_width=10, linear_projection=True, in_channels=6, blocks=1,
    ),
    "additive": UNetRecipe(
        channels=(16,), attention=(True,), depth=(1,), heads=(4,), conditioning="additive", pooled_width=10, groups=4,
        middle_attention=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("branches", [1, 2, 3])
@pytest.mark.parametrize("times", ["one", "many"])
@pytest.mark.parametrize("words", [4, 9])  # few enough to be folded into the attention's maps, or too many
def test_packed_equals_plain(name, branches, times, words):
    recipe = RECIPES[name]
    torch.manual_seed(0)
    plain = recipe.build().eval()
    for p in plain.parameters():
        p.data += 0.05 * torch.randn_like(p)
    packed = PackedUNet(plain)
    extra = recipe.in_channels - recipe.out_channels
    for batch, height, width in ((1, 7, 7), (2, 8, 8), (2, 5, 12), (1, 7, 7)):
        rows = batch * branches
        condition = Condition(
            torch.randn(rows, words, recipe.context_width) if recipe.cross else None,
            torch.rand(rows, words).argsort(1) < 3 if recipe.cross else None,
            torch.randn(rows, recipe.pooled_width) if recipe.additive else None,
            torch.randn(rows, extra, height, width) if extra else None,
        )
        x = torch.randn(batch, recipe.out_channels, height, width)
        t = torch.full((batch,), 321.5) if times == "one" else torch.rand(batch) * 999
        with torch.inference_mode():
            prepared = plain.prepare(condition)
            expected = plain(x, t, prepared)
            given = packed(x, t, packed.prepare(condition))
            by_hand = torch.cat(
                [plain(x, t, plain.prepare(part(condition, i, batch))) for i in range(branches)]
            )  # fmt: skip
        assert given.shape == (rows, recipe.out_channels, height, width)
        assert float((given - expected).abs().max()) < 1e-5 * float(expected.abs().max())
        assert float((by_hand - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_few_words_are_folded():
    packed = PackedUNet(RECIPES["cross"].build().eval())
    with torch.inference_mode():
        few, many = (packed.prepare(Condition(torch.randn(1, n, 12))).words for n in (4, 9))
    assert all(isinstance(w, Folded) for w in few) and not any(isinstance(w, Folded) for w in many)


def part(condition, i, batch):
    cut = lambda v: None if v is None else v[i * batch : (i + 1) * batch]  # noqa: E731
    return Condition(cut(condition.vectors), cut(condition.mask), cut(condition.pooled), cut(condition.channels))


def test_a_probe_or_a_gradient_gets_the_plain_network():
    plain = RECIPES["cross"].build().eval()
    packed = PackedUNet(plain)
    x, t = torch.randn(1, 4, 8, 8, requires_grad=True), torch.tensor([5.0])
    prepared = packed.prepare(Condition(vectors=torch.randn(1, 5, 12)))
    packed(x, t, prepared).sum().backward()
    assert x.grad is not None and bool((x.grad != 0).any())
    seen = []
    with torch.inference_mode():
        packed(x, t, prepared, lambda place, weights: seen.append(place))
    assert any(place.endswith("cross") for place in seen)
