"""Networks that look: against what the published code computes on the same weights, and against plain arithmetic."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from giverny.base.errors import InputError
from giverny.base.tensors import read_tensors
from giverny.data.weights import WEIGHTS, weights_of
from giverny.perception.inception import TAPS, FIDInception
from giverny.perception.instruments import BATCH, colours, inception, perceptual_distance, small_pixels, vgg
from giverny.perception.resizers import RESIZERS, get_resizer
from giverny.perception.vgg import LPIPS, VGG16, WIDTHS
from giverny.perception.vgg import TAPS as LEVELS


def drawn(network, seed):
    """Every tensor from one stream, with sizes that keep signals alive."""
    stream, state = torch.Generator().manual_seed(seed), {}
    for key, value in network.state_dict().items():
        if not value.is_floating_point():
            state[key] = value
        elif key.endswith(("running_var", "bn.weight")):
            state[key] = torch.rand(value.shape, generator=stream) + 0.5
        elif value.dim() > 1:
            state[key] = torch.randn(value.shape, generator=stream) * (2 / value[0].numel()) ** 0.5
        else:
            state[key] = torch.randn(value.shape, generator=stream) * 0.1
    network.load_state_dict(state)
    return network, stream


@pytest.fixture(scope="module")
def looking():
    return drawn(FIDInception(), 11)


# What pytorch-fid 0.3.0 (its patched Inception over torchvision 0.29.2's blocks) makes of the same weights and pictures: the
# sum over two pictures of all features, and the first three of the first picture. Ours were equal to the bit on that machine.
GOLDEN = {
    "64": (156.00116, (0.6689658, 1.5997550, 0.0067884)),
    "192": (485.89631, (0.0, 0.1205683, 2.6625099)),
    "768": (6404.47765, (11.4873486, 1.0380065, 6.6979709)),
    "2048": (27733.61771, (2.7960727, 2.6695333, 7.4107723)),
    "logits": (-28.81984, (8.3871584, -2.1981852, 0.3735550)),
}


def test_inception_is_that_of_fid(looking):
    network, stream = looking
    stream = torch.Generator().set_state(stream.get_state())
    found = network(torch.rand(2, 3, 299, 299, generator=stream) * 2 - 1, list(GOLDEN))
    for tap, (total, first) in GOLDEN.items():
        assert found[tap].shape == (2, TAPS[tap])
        assert found[tap][0, :3].tolist() == pytest.approx(first, rel=1e-3, abs=1e-3), tap
        assert float(found[tap].double().sum()) == pytest.approx(total, rel=1e-4, abs=0.05), tap


def test_inception_computes_no_more_than_is_asked(looking):
    network, _ = looking
    called = []
    hooks = [m.register_forward_hook(lambda *_: called.append(1)) for m in (network.Mixed_5b, network.Mixed_7c)]
    network(torch.zeros(1, 3, 80, 80), ["64"])
    assert not called
    for hook in hooks:
        hook.remove()
    with pytest.raises(InputError, match="75 pixels"):
        network(torch.zeros(1, 3, 74, 299))
    with pytest.raises(InputError, match="tap of Inception"):
        network(torch.zeros(1, 3, 80, 80), ["1024"])


def test_vgg_has_the_published_shape():
    with torch.device("meta"):
        network = VGG16(tops=True)
    assert sum(p.numel() for p in network.parameters()) == 138_357_544  # Simonyan and Zisserman 2015, table 2: 138 M
    names = [k for k in network.state_dict() if k.startswith("features")]
    assert names[0] == "features.0.weight" and names[-1] == "features.28.bias" and len(names) == 26
    assert [k for k in network.state_dict() if k.startswith("classifier")][-2:] == ["classifier.6.weight", "classifier.6.bias"]


def test_vgg_levels_are_a_chain_of_convolutions():
    network, stream = drawn(VGG16(), 3)
    x = torch.randn(2, 3, 40, 33, generator=stream)
    found = network.levels(x, ("relu1_2", "relu3_3"))
    h, convolutions = x, [m for m in network.features if isinstance(m, torch.nn.Conv2d)]
    expected = []
    for _, count in WIDTHS[:3]:
        for _ in range(count):
            layer = convolutions.pop(0)
            h = F.relu(F.conv2d(h, layer.weight, layer.bias, padding=1))
        expected.append(h)
        h = F.max_pool2d(h, 2)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[2])
    assert len(network.levels(x)) == len(LEVELS)


def test_lpips_is_the_textbook_sum():
    network, stream = drawn(LPIPS(), 7)
    for level in range(5):  # published ones are not negative
        getattr(network, f"lin{level}").weight.data.abs_()
    a, b = (torch.rand(3, 3, 48, 40, generator=stream) * 2 - 1 for _ in range(2))
    found = network(a, b)
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    total = torch.zeros(3, dtype=torch.float64)
    sides = [network.net.levels((x - shift) / scale) for x in (a, b)]
    for level, (one, two) in enumerate(zip(*sides, strict=True)):
        one, two = (h.double() / h.double().norm(dim=1, keepdim=True) for h in (one, two))
        weight = getattr(network, f"lin{level}").weight.double().view(1, -1, 1, 1)
        total += (weight * (one - two) ** 2).sum(1).mean((1, 2))
    torch.testing.assert_close(found.double(), total, rtol=1e-4, atol=1e-6)
    assert network(a, a).abs().max() == 0 and found.min() > 0
    with pytest.raises(InputError, match="pairs of pictures"):
        network(a, b[:2])


@pytest.mark.xdist_group("oracles")
def test_lpips_layers_load_from_the_published_file():
    """The package's own weights of the layers above VGG16, as torchmetrics ships them."""
    import torchmetrics

    file = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/vgg.pth"
    tensors = {k.replace(".model.1.", "."): v for k, v in read_tensors(file).items()}
    own = {k: v for k, v in LPIPS().state_dict().items() if k.startswith("lin")}
    assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in own.items()}
    assert WEIGHTS["lpips-vgg"].files[0].checksum == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"


# ---------------------------------------------------------------------------------------------------------------------
# Resizers


@pytest.fixture
def chance():
    return np.random.default_rng(int(np.random.default_rng().integers(1 << 31)))


@pytest.mark.parametrize("name", list(RESIZERS))
def test_resizers_keep_flat_pictures_flat_and_right_sized_ones_as_they_are(name, chance):
    flat = np.full((2, 13, 29, 3), 77, np.uint8)
    found = get_resizer(name)(flat, 20)
    assert found.shape == (2, 3, 20, 20) and found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full_like(found, 77.0), atol=1e-4, rtol=0)
    same = chance.integers(0, 256, (1, 20, 20, 3), dtype=np.uint8)
    torch.testing.assert_close(get_resizer(name)(same, 20), torch.from_numpy(same).permute(0, 3, 1, 2).float())


def test_clean_is_pillow_in_float_without_rounding(chance):
    pixels = chance.integers(0, 256, (1, 50, 31, 3), dtype=np.uint8)
    found = get_resizer("clean")(pixels, 17)[0]
    for channel in range(3):
        plane = Image.fromarray(pixels[0, :, :, channel].astype(np.float32)).resize((17, 17), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(found[channel].numpy(), np.asarray(plane))
    assert (found != found.round()).any()


def test_tensorflow_takes_its_corner(chance):
    """Pixel i lies at i * size / side of the picture; between pixels the mixture is linear."""
    pixels = chance.integers(0, 256, (1, 10, 7, 3), dtype=np.uint8)
    found = get_resizer("tensorflow")(pixels, 23)[0, 1].numpy()
    plane = pixels[0, :, :, 1].astype(np.float64)
    for y, x in ((0, 0), (5, 9), (22, 22), (11, 3)):
        v, u = y * 10 / 23, x * 7 / 23
        v0, u0 = int(v), int(u)
        v1, u1 = min(v0 + 1, 9), min(u0 + 1, 6)
        top = plane[v0, u0] * (1 - u + u0) + plane[v0, u1] * (u - u0)
        low = plane[v1, u0] * (1 - u + u0) + plane[v1, u1] * (u - u0)
        assert found[y, x] == pytest.approx(top * (1 - v + v0) + low * (v - v0), abs=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Instruments


def test_an_instrument_sees_a_picture_alike_in_any_company(looking, chance):
    network, _ = looking
    instrument = inception(network, "drawn", "pytorch", "64")
    pixels = chance.integers(0, 256, (BATCH + 3, 24, 30, 3), dtype=np.uint8)
    together = instrument(pixels)
    assert together.shape == (BATCH + 3, 64) and instrument.width == 64
    assert torch.equal(instrument(pixels[5:6])[0], together[5]) and torch.equal(
        instrument(pixels[::-1].copy())[-1], together[0]
    )
    told = instrument.conditions()
    assert told["features"] == "inception-64" and told["resizer"] == "pytorch" and told["looked_at"] == "299 x 299"


def test_vgg_is_an_instrument_of_its_second_hidden_layer(chance):
    network, _ = drawn(VGG16(tops=True, width=32), 5)
    instrument = vgg(network, "drawn")
    assert instrument(chance.integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)).shape == (2, 32)
    with pytest.raises(InputError, match="upper layers"):
        vgg(VGG16(), "drawn")


def test_small_pixels_are_the_picture_made_small(chance):
    pixels = chance.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    found = small_pixels()(pixels)
    np.testing.assert_allclose(found.numpy(), pixels.transpose(0, 3, 1, 2).reshape(3, -1) / 255, atol=1e-6)


def test_grey_pictures_are_looked_at_in_colour(chance):
    grey = chance.integers(0, 256, (2, 9, 9, 1), dtype=np.uint8)
    assert torch.equal(small_pixels()(grey), small_pixels()(grey.repeat(3, axis=3)))
    for bad in (grey[..., 0], grey.astype(np.float32), grey[:0], np.zeros((1, 4, 4, 4), np.uint8)):
        with pytest.raises(InputError, match="uint8"):
            colours(bad)


def test_distances_of_pairs_do_not_depend_on_their_batch(chance):
    network, _ = drawn(LPIPS(), 7)
    ours, theirs = (chance.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8) for _ in range(2))
    found = perceptual_distance(network, ours, theirs)
    assert found.shape == (3,) and torch.allclose(found[1:2], perceptual_distance(network, ours[1:2], theirs[1:2]), rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def test_weights_by_path_run_no_code(tmp_path):
    from safetensors.torch import save_file

    tensors = {"a": torch.arange(3.0)}
    save_file(tensors, tmp_path / "w.safetensors")
    torch.save(tensors, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        assert torch.equal(weights_of(str(tmp_path / name))["a"], tensors["a"])

    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "bad.pth").write_bytes(pickle.dumps(Hostile()))
    (tmp_path / "short.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:40])
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("bad.pth", "short.pth", "list.pth"):
        with pytest.raises(InputError):
            weights_of(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(InputError, match="published weights"):
        weights_of("inceptoin")


def test_published_weights_have_addresses_and_checksums():
    for entry in WEIGHTS.values():
        for file in entry.files:
            assert entry.public and file.checksum.startswith("sha256:") and len(file.checksum) == 71 and file.bytes > 0
            stem = file.name.rsplit("-", 1)[-1].removesuffix(".pth")
            assert len(stem) != 8 or file.checksum.removeprefix("sha256:").startswith(stem)
