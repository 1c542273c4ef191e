"""The VQ autoencoder and what it shares with the KL one: against diffusers, torchmetrics and loops written by hand.

Everything is drawn from a fresh seed, which a failure prints.
"""

from __future__ import annotations

import math
import multiprocessing
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import training_toys as toys
from giverny.autoencoders.critic import CriticRecipe
from giverny.autoencoders.kl import KLRecipe
from giverny.autoencoders.vq import CodebookKeeper, Codes, Quantizer, VQAutoencoder, VQRecipe
from giverny.base.errors import InputError
from giverny.base.images import to_tensor
from giverny.base.recipe import check, read_recipe, to_toml
from giverny.base.ssim import ssim
from giverny.data.toy import ToyShapes
from giverny.painters.diffusion.family import PAINTER
from giverny.painters.diffusion.recipe import DiffusionRecipe
from giverny.training.loop import Trainer
from giverny.training.parallel import World
from giverny.training.reconstruct import Reconstruct, ReconstructRecipe
from giverny.training.streams import StepStreams
from test_networks import TOLERANCE, randomise, relative, same_gradients

LEARNING = ("gradient", "average")


@pytest.fixture
def seed() -> int:
    return secrets.randbelow(2**31)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums depend on the number of threads: runs that are compared must have the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- the network ------------------------------------------------------------------------------------------------------------

VQS = {
    "shrunk": (dict(channels=(32, 64), groups=16, codes=64), (16, 16)),
    "odd_grey": (
        dict(channels=(12, 20, 28), groups=4, blocks=1, picture_channels=1, latent_channels=7, inner_channels=5, codes=37),
        (28, 44),
    ),
    "odd_flat": (
        dict(channels=(10,), groups=5, blocks=3, latent_channels=2, inner_channels=3, codes=11, middle_attention=False),
        (9, 14),
    ),
}


@pytest.mark.xdist_group("oracles")
@pytest.mark.parametrize("legacy", [False, True], ids=["plain", "legacy"])
@pytest.mark.parametrize("name", VQS)
def test_vq_equals_diffusers(name: str, legacy: bool, seed: int) -> None:
    from diffusers import VQModel

    config, (height, width) = VQS[name]
    recipe = VQRecipe(**config, learning="gradient", legacy=legacy)
    theirs = VQModel(
        in_channels=recipe.picture_channels,
        out_channels=recipe.picture_channels,
        latent_channels=recipe.inner_channels or recipe.latent_channels,
        vq_embed_dim=recipe.latent_channels,
        num_vq_embeddings=recipe.codes,
        block_out_channels=recipe.channels,
        layers_per_block=recipe.blocks,
        norm_num_groups=recipe.groups,
        down_block_types=("DownEncoderBlock2D",) * len(recipe.channels),
        up_block_types=("UpDecoderBlock2D",) * len(recipe.channels),
        mid_block_add_attention=recipe.middle_attention,
    )
    theirs.quantize.legacy = legacy
    randomise(theirs, seed).train()
    torch.manual_seed(seed)
    pixels = torch.rand(2, recipe.picture_channels, height, width) * 2 - 1
    latents = theirs.encode(pixels).latents
    met = latents.detach().movedim(1, -1).flatten(0, -2)  # codes lie among the latents, so that several are taken
    lead = 0.0
    while lead < 1e-4:  # where two codes are as near as each other, either is right
        codes = met[torch.randint(len(met), (recipe.codes,))] + 0.1 * torch.randn(recipe.codes, 1)
        near = torch.cdist(met.double(), codes.double()).topk(2, largest=False).values
        lead = float((near[:, 1] - near[:, 0]).min())
    theirs.quantize.embedding.weight.data = codes
    ours = recipe.build().train()
    ours.load_state_dict(theirs.state_dict())
    expected = theirs.decode(latents)
    belief = ours.encode(pixels)
    given, terms = ours.decode(belief.sample(torch.zeros(1))), belief.loss_terms()
    assert relative(belief.mean, latents) < TOLERANCE, f"seed {seed}"
    assert torch.equal(belief.indices.flatten(), theirs.quantize(latents)[2][2].flatten()), f"seed {seed}"
    assert belief.indices.unique().numel() > 2
    assert relative(given, expected.sample) < TOLERANCE, f"seed {seed}"
    assert relative(terms["codebook"], expected.commit_loss) < TOLERANCE, f"seed {seed}"
    (expected.sample.square().mean() + expected.commit_loss).backward()
    (given.square().mean() + terms["codebook"]).backward()
    assert {k for k, p in ours.named_parameters()} == {k for k, p in theirs.named_parameters()}
    assert same_gradients(ours, theirs) < TOLERANCE, f"seed {seed}"


@pytest.mark.parametrize("unit", [False, True])
def test_the_nearest_code_is_looked_up_and_the_gradient_passes_straight_through(unit: bool, seed: int) -> None:
    torch.manual_seed(seed)
    quantizer = Quantizer(VQRecipe(codes=13, latent_channels=5, unit=unit, learning="gradient")).double()
    nn.init.normal_(quantizer.embedding.weight)
    z = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    found = quantizer(z)
    codes = quantizer.embedding.weight.detach().numpy()
    if unit:
        codes = codes / np.linalg.norm(codes, axis=1, keepdims=True)
    for b, y, x in np.ndindex(2, 3, 4):
        place = z.detach().numpy()[b, :, y, x]
        place = place / np.linalg.norm(place) if unit else place
        wanted = codes[((codes - place) ** 2).sum(1).argmin()]
        assert np.allclose(found.detach().numpy()[b, :, y, x], wanted, atol=1e-12), f"seed {seed}"
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    assert quantizer.embedding.weight.grad is None
    straight = weight if not unit else torch.autograd.functional.vjp(quantizer.sized, z.detach(), weight)[1]
    assert torch.allclose(z.grad, straight, atol=1e-12)


def test_a_denoiser_may_miss_a_code_by_less_than_half_the_way_to_the_next(seed: int) -> None:
    torch.manual_seed(seed)
    network = vq("average").build().eval()
    nn.init.normal_(network.quantize.embedding.weight)
    codes = network.quantize.embedding.weight
    near = torch.cdist(codes, codes).fill_diagonal_(math.inf).min() / 2
    indices = torch.randint(0, len(codes), (2, 4, 4))
    exact = network.quantize.look_up(indices)
    missed = exact + 0.9 * near * torch.nn.functional.normalize(torch.randn_like(exact), dim=1)
    with torch.no_grad():
        assert relative(network.decode(missed), network.decode(exact)) < TOLERANCE, f"seed {seed}"
        assert relative(network.decode(exact.flip(2)), network.decode(exact)) > 1e-3


def test_perplexity_counts_evenly_used_codes(seed: int) -> None:
    quantizer = Quantizer(VQRecipe(codes=16, latent_channels=2))
    nn.init.normal_(quantizer.embedding.weight)
    look = lambda indices: Codes(quantizer.look_up(indices[None, None]).detach(), quantizer).figures()  # noqa: E731
    for used in (1, 4, 16):
        found = look(torch.arange(used).repeat(5))
        assert found["perplexity"].item() == pytest.approx(used, rel=1e-5)
        assert found["perplexity_share"].item() == pytest.approx(used / 16, rel=1e-5)
    uneven = look(torch.tensor([3] * 6 + [5] * 2))
    assert uneven["perplexity"].item() == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)), rel=1e-5)


# -- how a codebook learns --------------------------------------------------------------------------------------------------


def effective(keeper: CodebookKeeper, quantizer: Quantizer) -> Tensor:
    """The codebook as the next step will begin with it."""
    return torch.where(keeper.due[:, None] > 0, keeper.target, quantizer.embedding.weight.detach())


def latents_at(step: int, seed: int) -> Tensor:
    """(6, 3, 3, 3) in few heaps, so that some codes lie idle."""
    drawn = np.random.default_rng([seed, step])
    heaps = np.random.default_rng(seed).normal(size=(3, 3))
    places = heaps[drawn.integers(0, 3, (6, 3, 3))] + 0.1 * drawn.normal(size=(6, 3, 3, 3))
    return torch.from_numpy(places).movedim(-1, 1)


def keep(recipe: VQRecipe, seed: int, steps: int, parts: int = 1) -> tuple[CodebookKeeper, Quantizer, list[Tensor]]:
    torch.manual_seed(seed)
    quantizer, keeper = Quantizer(recipe).double(), CodebookKeeper(recipe).double()
    books = []
    for step in range(steps):
        for part, z in enumerate(latents_at(step, seed).chunk(parts)):
            streams = StepStreams(seed, step, part * 6 // parts, 6, dtype=torch.float64)
            keeper.learn(Codes(z, quantizer), streams, lambda x: x)
        books.append(effective(keeper, quantizer))
    return keeper, quantizer, books


@pytest.mark.parametrize("restart", [0.0, 0.9])
@pytest.mark.parametrize("learning", LEARNING)
def test_codes_follow_the_running_means_and_begin_anew_where_idle(learning: Any, restart: float, seed: int) -> None:
    """van den Oord et al. 2017, appendix A.1, with counts smoothed by 1e-5, one code after the other."""
    recipe = VQRecipe(codes=12, latent_channels=3, learning=learning, decay=0.8, restart=restart)
    _, _, books = keep(recipe, seed, 8)
    torch.manual_seed(seed)
    codes = Quantizer(recipe).double().embedding.weight.detach().numpy().copy()
    number, total, fair, restarts = np.zeros(12), np.zeros((12, 3)), 54 / 12, []
    for step in range(8):
        z = latents_at(step, seed).movedim(1, -1).reshape(-1, 3).numpy()
        nearest = [int(((codes - row) ** 2).sum(1).argmin()) for row in z]
        for k in range(12):
            mine = [row for row, code in zip(z, nearest, strict=True) if code == k]
            number[k] = 0.8 * number[k] + 0.2 * len(mine)
            total[k] = 0.8 * total[k] + 0.2 * sum(mine, np.zeros(3))
        chance = 1 - StepStreams(seed, step, 0, 6, dtype=torch.float64).uniform("restart", (6, 9)).flatten().numpy()
        waiting = [z[i] for i in np.argsort(-chance)]
        for k in range(12):
            if number[k] < restart * fair:
                number[k], fresh = fair, waiting.pop(0)
                total[k] = fair * fresh
                restarts.append(step)
                if learning == "gradient":
                    codes[k] = fresh
        if learning == "average":
            for k in np.flatnonzero(number):
                codes[k] = total[k] / ((number[k] + 1e-5) / (number.sum() + 12e-5) * number.sum())
        assert np.allclose(books[step].numpy(), codes, atol=1e-9), f"seed {seed}, step {step}"
    assert restarts.count(0) >= 6 and max(restarts) > 1 if restart else not restarts


@pytest.mark.parametrize("learning", LEARNING)
def test_a_batch_in_three_parts_teaches_what_the_whole_does(learning: Any, seed: int) -> None:
    recipe = VQRecipe(codes=12, latent_channels=3, learning=learning, decay=0.8, restart=0.9)
    whole, parts = (keep(recipe, seed, 6, n)[2] for n in (1, 3))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(whole, parts, strict=True)), f"seed {seed}"


# -- the objective ----------------------------------------------------------------------------------------------------------


def vq(learning: Any, **changes: Any) -> VQRecipe:
    sizes = {"channels": (8, 16), "blocks": 1, "groups": 4, "latent_channels": 3, "inner_channels": 4, "codes": 24}
    return VQRecipe(**(sizes | {"middle_attention": False, "learning": learning, "decay": 0.8, "restart": 0.3} | changes))


def toys_at(side: int) -> Tensor:
    """64 pictures (64, 3, side, side) that nothing here is trained on."""
    source = ToyShapes(64, side, seed=1)
    return torch.stack([to_tensor(source.read(i).pixels) for i in range(len(source))])


def eyes() -> Any:
    """A small frozen network's features."""
    torch.manual_seed(99)
    network = CriticRecipe(channels=(6, 9)).build().requires_grad_(False)
    return lambda pixels: network(pixels)[:-1]


def objective(learning: str, seed: int = 0, world: World = World(), dropout: float = 0.0, critic: bool = True) -> Reconstruct:
    seen, _ = eyes(), torch.manual_seed(seed)
    recipe = ReconstructRecipe(edges=0.5, perceptual=0.2, critic_from=0.0)
    network = vq(learning, dropout=dropout).build()
    return Reconstruct(network, recipe, CriticRecipe(channels=(8, 16)).build() if critic else None, seen, world.gather)


def trainer(learning: str, folder: Path, resume: bool = False, world: World = World(), **changes: Any) -> Trainer:
    """Where there is a state it must overwrite all of other initial weights; other ranks are to get the leader's."""
    made = {k: changes.pop(k) for k in ("dropout", "critic") if k in changes}
    seed = world.rank + (7 if resume else 0)
    taught = objective(learning, seed, world, **made)
    return Trainer(
        taught, toys.batches(world), toys.loop(**changes), folder, toys.batch_at(100), resume=resume, identity=learning,
        world=world,
    )  # fmt: skip


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def far(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


@pytest.mark.parametrize(("learning", "accumulate"), [("gradient", 1), ("average", 1), ("average", 2)])
def test_ten_steps_are_five_and_resume_and_five(learning: str, accumulate: int, tmp_path: Path) -> None:
    expected = toys.finish(trainer(learning, tmp_path / "whole", dropout=0.2, accumulate=accumulate))
    assert {"net.codebook.tally", "net.critic.score.weight", "ema.autoencoder.quantize.embedding.weight"} <= expected.keys()
    first = trainer(learning, tmp_path / "parts", dropout=0.2, accumulate=accumulate, save_every=4)
    reports = first.run()
    assert [next(reports).step for _ in range(5)] == [1, 2, 3, 4, 5]
    reports.close()
    second = trainer(learning, tmp_path / "parts", resume=True, dropout=0.2, accumulate=accumulate, save_every=4)
    assert same(toys.finish(second), expected)


def test_two_parts_of_a_batch_equal_the_whole(tmp_path: Path) -> None:
    one, two = (
        toys.finish(trainer("average", tmp_path / str(n), steps=5, precision="float64", critic=False, accumulate=n))
        for n in (1, 2)
    )
    assert far(one, two) < 1e-6


def in_two(rank: int, folder: str) -> None:
    """One of two processes: both kinds of learning, with critic and features, in float64."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for learning in LEARNING:
        made = trainer(learning, Path(folder) / learning, world=World(rank, 2), steps=4, precision="float64", save_every=4)
        torch.save(toys.finish(made), f"{folder}/{learning}-{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one_with_the_same_global_batch(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_toys"])
    children = [context.Process(target=in_two, args=(rank, str(tmp_path))) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(300)
        assert child.exitcode == 0
    for learning in LEARNING:
        one = toys.finish(trainer(learning, tmp_path / "one" / learning, steps=4, precision="float64", save_every=4))
        leader, other = (torch.load(tmp_path / f"{learning}-{rank}.pt") for rank in (0, 1))
        assert same(leader, other)
        assert far(one, leader) < 1e-5


@pytest.mark.parametrize("learning", LEARNING)
def test_a_step_that_is_not_finite_teaches_the_codebook_nothing(learning: str, tmp_path: Path) -> None:
    def spoilt(start: int) -> Iterator[Any]:
        for batch in toys.batches()(start):
            yield batch if start != 3 else batch | {"pixels": batch["pixels"] * torch.nan}
            start += 1

    usual = {"decay": "constant", "save_every": 10}
    good, bad = (trainer(learning, tmp_path / name, steps=steps, **usual) for name, steps in (("good", 3), ("bad", 4)))
    bad.batches = spoilt
    expected, given = toys.finish(good), toys.finish(bad)
    assert bad.counters.skipped == 1
    assert all(bool(v.isfinite().all()) for v in given.values())
    books = [effective(t.objective.modules["codebook"], t.objective.modules["autoencoder"].quantize) for t in (good, bad)]
    assert torch.equal(*books)
    # what was due at the start of the bad step is written, and is still due
    written = {"net.autoencoder.quantize.embedding.weight"}
    assert all(torch.equal(given[k], v) for k, v in expected.items() if k not in written)


def test_use_is_counted_exactly_in_reduced_precision(tmp_path: Path) -> None:
    """Half of 1,024 latents lie at one code: more than bfloat16 can count."""
    batches = lambda start: ({"pixels": toys.shapes()[0]} for _ in iter(int, 1))  # noqa: E731
    recipe = toys.loop(steps=3, batch=64, precision="bfloat16")
    taught = Reconstruct(vq("average", codes=2, restart=0.0).build(), ReconstructRecipe())
    toys.finish(Trainer(taught, batches, recipe, tmp_path))
    tally: Any = taught.modules["codebook"].tally
    assert float(tally[:, 0].sum()) == pytest.approx(1024 * (1 - 0.8**3), rel=1e-5) and bool(tally[:, 0].max() > 257)


@pytest.mark.parametrize("learning", LEARNING)
def test_idle_codes_that_begin_anew_keep_the_codebook_in_use(learning: str, seed: int, tmp_path: Path) -> None:
    """The gate of the house: a perplexity above 0.3 of the codebook, on pictures that were not trained on."""
    shares = {}
    for restart in (0.1, 0.0):
        torch.manual_seed(seed)
        taught = Reconstruct(vq(learning, codes=64, restart=restart).build(), ReconstructRecipe())
        recipe = toys.loop(steps=40, batch=32, learning_rate=4e-3, save_every=40, average=0.9)
        held = {"pixels": toys_at(8)}
        made = Trainer(taught, toys.batches(batch=32), recipe, tmp_path / str(restart), held)
        note = next(report.note for report in made.run() if report.step == 40)
        found = {name: float(value) for name, value in re.findall(r"valid/(\w+) ([\d.]+)", note)}
        assert found["perplexity"] == pytest.approx(64 * found["perplexity_share"], rel=1e-2)
        assert 0 < found["ssim"] < 1 and found["psnr"] > 8
        shares[restart] = found["perplexity_share"]
    assert shares[0.1] > 0.3, f"seed {seed}"
    if learning == "gradient":  # running means may find a use for idle codes by themselves, gradients never do
        assert shares[0.0] < 0.3, f"seed {seed}"


def test_the_loop_tells_the_critic_when_to_join(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = KLRecipe(channels=(8,), blocks=1, groups=4, latent_channels=2).build()
    critic = CriticRecipe(channels=(8,)).build()
    before = [p.detach().clone() for p in critic.parameters()]
    taught = Reconstruct(network, ReconstructRecipe(critic_from=0.6), critic)
    made = Trainer(taught, toys.batches(), toys.loop(steps=10), tmp_path)
    for report in made.run():
        joined = report.step > 6
        assert joined == ("autoencoder.verdict" in report.values)
        assert joined != all(torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True))


def test_the_critic_joins_at_its_share_and_weighs_as_the_other_terms_pull(seed: int) -> None:
    """Esser et al. 2021, eq. 7, computed here with one gradient of each term."""
    torch.manual_seed(seed)
    network, critic = (
        KLRecipe(channels=(8,), blocks=1, groups=4, latent_channels=2).build(),
        CriticRecipe(channels=(8,)).build(),
    )
    recipe = ReconstructRecipe(squared=0.0, kl_weight=0.0, verdict=0.3, critic_from=0.5)
    taught = Reconstruct(network, recipe, critic)
    assert [t.name for t in taught.turns()] == ["autoencoder", "critic"]
    batch = {"pixels": toys.shapes()[0][:8]}
    early, late = (StepStreams(seed, 3, 0, 8, progress=p) for p in (0.49, 0.5))
    scratch: dict[str, Any] = {}
    alone = taught.loss("autoencoder", batch, scratch, early)
    silent = taught.loss("critic", batch, scratch, early)["loss"]
    silent.backward(inputs=list(critic.parameters()))
    assert "verdict" not in alone and all(p.grad is None for p in critic.parameters())
    found = taught.loss("autoencoder", batch, scratch, late)

    belief = network.encode(batch["pixels"])
    again = network.decode(belief.sample(late.normal("belief", belief.mean.shape)))
    absolute, verdict = (again - batch["pixels"]).abs().mean(), -critic(again)[-1].mean()
    last = network.decoder.conv_out.weight
    pull, push = (torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (absolute, verdict))
    assert float(found["balance"]) == pytest.approx((pull / (push + 1e-4)).item(), rel=1e-4), f"seed {seed}"
    assert alone["loss"].item() == pytest.approx(absolute.item(), rel=1e-6)
    assert found["loss"].item() == pytest.approx((absolute + 0.3 * pull / (push + 1e-4) * verdict).item(), rel=1e-4)
    real, fake = critic(batch["pixels"])[-1], critic(again.detach())[-1]
    hinge = (1 - real).clamp(min=0).mean() / 2 + (1 + fake).clamp(min=0).mean() / 2
    judged = taught.loss("critic", batch, scratch, late)["loss"]
    assert judged.item() == pytest.approx(hinge.item(), rel=1e-5)
    judged.backward(inputs=list(critic.parameters()))
    assert all(p.grad is not None for p in critic.parameters()) and all(p.grad is None for p in network.parameters())


@pytest.mark.xdist_group("oracles")
def test_the_perceptual_distance_is_that_of_lpips_without_its_learnt_weights(seed: int) -> None:
    from torchmetrics.functional.image.lpips import _normalize_tensor, _spatial_average

    seen = eyes()
    torch.manual_seed(seed)
    network = KLRecipe(channels=(8,), blocks=1, groups=4, latent_channels=2).build()
    taught = Reconstruct(network, ReconstructRecipe(absolute=0, squared=0, kl_weight=0, perceptual=0.7), features=seen)
    pixels = toys.shapes()[0][:4]
    with torch.no_grad():
        again = network.decode(network.encode(pixels).mean).clamp(-1, 1)
    apart = [
        _spatial_average((_normalize_tensor(a) - _normalize_tensor(b)).square().sum(1, keepdim=True)).mean()
        for a, b in zip(seen(again), seen(pixels), strict=True)
    ]
    streams = StepStreams(0, 0, 0, 4)
    with torch.no_grad():
        given = taught.validate({"pixels": pixels}, streams)["perceptual"]
    assert float(given) == pytest.approx(float(sum(apart) / len(apart)), rel=1e-4), f"seed {seed}"
    found = taught.loss("autoencoder", {"pixels": pixels}, {}, streams)
    assert found["loss"].item() == pytest.approx(0.7 * found["perceptual"].item(), rel=1e-6) and found["perceptual"] > 0
    found["loss"].backward()
    assert all(bool(p.grad.any()) for p in network.decoder.parameters())
    with pytest.raises(ValueError, match="features"):
        Reconstruct(network, ReconstructRecipe(perceptual=1.0))


@pytest.mark.xdist_group("oracles")
def test_ssim_equals_torchmetrics(seed: int) -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure as theirs

    torch.manual_seed(seed)
    for shape in ((3, 3, 28, 28), (2, 1, 6, 19), (1, 4, 33, 7)):
        a = torch.rand(shape) * 2 - 1
        b = (a + 0.3 * torch.randn(shape)).clamp(-1, 1)
        expected = theirs(b, a, data_range=2.0, reduction="none")
        assert torch.allclose(ssim(b, a), expected, rtol=0, atol=1e-5), f"seed {seed}"
        assert torch.allclose(ssim(a, a), torch.ones(len(a)), atol=1e-6)
    with pytest.raises(InputError, match="6 x 6"):
        ssim(torch.zeros(1, 1, 5, 9), torch.zeros(1, 1, 5, 9))


# -- in a diffusion model -----------------------------------------------------------------------------------------------------


def tiny(**changes: Any) -> Any:
    """The tiny diffusion model with a codebook, a critic, and CLIP's features in its autoencoder's training."""
    recipe: Any = PAINTER.tiny()
    network = VQRecipe(channels=(8, 16), blocks=1, groups=4, latent_channels=4, codes=32, middle_attention=False)
    objective = ReconstructRecipe(perceptual=0.2, critic_from=0.0)
    stage = recipe.autoencoder.model_copy(
        update={"network": network, "critic": CriticRecipe(channels=(8,)), "objective": objective} | changes
    )
    return recipe.model_copy(update={"name": "tiny-vq", "autoencoder": stage})


def test_a_recipe_says_which_autoencoder_it_wants() -> None:
    text = to_toml(tiny())
    assert 'family = "vq"' in text
    assert check(DiffusionRecipe, read_recipe(text), "text") == DiffusionRecipe.model_validate(tiny().model_dump())
    plain = to_toml(PAINTER.tiny())
    assert 'family = "kl"' in plain
    unsaid = check(DiffusionRecipe, read_recipe(plain.replace('family = "kl"\n', "")), "text")
    assert unsaid.autoencoder.network == PAINTER.tiny().autoencoder.network
    with pytest.raises(InputError, match=r"autoencoder\.network: wanted a known family.*did you mean 'vq'"):
        check(DiffusionRecipe, read_recipe(text.replace('family = "vq"', 'family = "vqq"')), "text")
    with pytest.raises(InputError, match=r"autoencoder\.network\.codes: .*greater than or equal to 2"):
        check(DiffusionRecipe, read_recipe(text.replace("codes = 32", "codes = 1")), "text")
    with pytest.raises(InputError, match=r"autoencoder\.network\.codez: unknown key; did you mean 'codes'"):
        check(DiffusionRecipe, read_recipe(text.replace("codes = 32", "codez = 32")), "text")
    with pytest.raises(ValueError, match="picture_channels"):
        DiffusionRecipe.model_validate(tiny(critic=CriticRecipe(picture_channels=1)).model_dump())


def test_a_model_with_a_codebook_is_trained_opened_again_and_paints(tmp_path: Path) -> None:
    from giverny.assembly import open_painter, train
    from giverny.base.contracts import Request

    told = [(t.stage, t.happened) for t in train(tiny(), tmp_path / "run") if t.happened != "step"]
    assert [stage for stage, happened in told if happened == "finished"] == ["text", "autoencoder", "denoiser", "decoder"]
    painter: Any = open_painter(tmp_path / "run")
    network = painter.parts.autoencoder
    assert isinstance(network, VQAutoencoder) and painter.parts.recipe.autoencoder == tiny().autoencoder.network
    (picture,) = [e.artifact for e in painter.paint([Request(prompt="a red circle", seed=3)]) if hasattr(e, "artifact")]
    assert picture.pixels.shape == (16, 16, 3) and picture.pixels.std() > 0
    # latents are spread evenly around 0, and what is painted is made of codes
    pixels = toys_at(16)
    with torch.no_grad():
        latents = painter.parts.codec.encode(pixels)
        assert abs(float(latents.mean())) < 0.2 and float(latents.std()) == pytest.approx(1, abs=0.2)
        scale = painter.parts.codec.scale
        codes = network.quantize((latents / scale.scale) + scale.shift)
        rebuilt = network.decoder(network.post_quant_conv(codes))
        assert relative(painter.parts.codec.decode(latents), rebuilt) < TOLERANCE
        noisy = painter.parts.codec.encode(pixels, torch.randn_like(latents))
    assert torch.equal(noisy, latents)  # there is no doubt in them to draw from
