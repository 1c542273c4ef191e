"""Paintings and photographs learnt in pairs: the double U-Net and its control against plain float64 references, by terms and
through one optimiser step; what the two chains and the weight of the middle mean; runs that are broken off; and the whole of it
as a model (test_contract.py runs here once more)."""

import dataclasses
import secrets
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

import test_contract as contract
import training_toys as toys
from giverny.assembly import load_recipe, open_painter, train
from giverny.autoencoders.critic import CriticRecipe
from giverny.base.contracts import Condition, Request, Start
from giverny.base.errors import InputError
from giverny.base.start import enclosed
from giverny.base.table import level_of
from giverny.checkpoints.native import read_card
from giverny.data.crops import held_out, photographs_of
from giverny.data.folders import open_source
from giverny.data.loader import Loader
from giverny.data.toy import ToyShapes
from giverny.denoisers.double_unet import As, DoubleUNetRecipe
from giverny.denoisers.precondition import KINDS
from giverny.denoisers.simple_unet import SimpleUNetRecipe
from giverny.painters.diffusion.family import PAINTER
from giverny.painters.diffusion.kinds import paired
from giverny.painters.diffusion.recipe import DataRecipe, DenoiserStage, DiffusionRecipe
from giverny.pipelines.text2image import collect
from giverny.sampling.schedules import ScheduleRecipe
from giverny.training.denoise import DenoiseRecipe
from giverny.training.loop import LoopRecipe, Trainer
from giverny.training.pairs import Critics, PairsObjective, PairsRecipe
from giverny.training.streams import StepStreams
from plain_reference import body, chain, part
from test_networks import randomise, relative

pytestmark = pytest.mark.xdist_group("contract")
TOY = dict(channels=(8, 12, 16), time_width=8)
TABLE = ScheduleRecipe(kind="linear", steps=300, beta_start=1e-4, beta_end=0.02).table()
OTHER = {"painting": "photograph", "photograph": "painting"}
CASES = {
    "strict": (DoubleUNetRecipe(**TOY), PairsRecipe()),
    "leaky, little middle": (DoubleUNetRecipe(**TOY, chain="leaky"), PairsRecipe(middle=0.1)),
    "no middle": (DoubleUNetRecipe(**TOY), PairsRecipe(middle=0)),
    "gan": (DoubleUNetRecipe(**TOY), PairsRecipe(middle=0.5, adversarial=0.7, identity=0.3, cycle=0.9)),
    "gan, leaky, no middle": (DoubleUNetRecipe(**TOY, chain="leaky"), PairsRecipe(middle=0, adversarial=1, cycle=2)),
    "single": (SimpleUNetRecipe(**TOY, kinds=2), PairsRecipe(middle=0)),
}


def batch(rows=6, seed=0, side=8):
    drawn = torch.rand(2, rows, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    return {"pixels": drawn[0], "photographs": drawn[1]}


def objective(case, seed=0, prediction="epsilon", error="squared", channels=TOY["channels"]):
    network, recipe = CASES[case]
    torch.manual_seed(seed)
    built = network.model_copy(update={"channels": channels}).build()
    critics = Critics(CriticRecipe(channels=(6, 8)).build) if recipe.adversarial else None
    denoise = DenoiseRecipe(prediction=prediction, error=error)
    return PairsObjective(built, TABLE, denoise, recipe, critics)


def written_out(case, weights, judged, given, step, seed=0, prediction="epsilon", error="squared"):
    """(loss of the denoiser, loss of the critics) as docs/monet-diffusion.md says them, for a batch at a step."""
    network, recipe = CASES[case]
    rows = len(given["pixels"])
    streams = StepStreams(seed, step, 0, rows, dtype=torch.float64)
    noise, t = streams.normal("noise", given["pixels"].shape), (streams.spread("time", rows) * 300).floor()
    a, s = TABLE[t.long()].sqrt()[:, None, None, None], (1 - TABLE[t.long()]).sqrt()[:, None, None, None]
    m, p = a * given["pixels"] + s * noise, a * given["photographs"] + s * noise
    wanted = {"epsilon": [noise, noise], "v": [a * noise - s * clean for clean in (given["pixels"], given["photographs"])]}

    def apart(ours, theirs):
        return ((ours - theirs) ** 2).mean() if error == "squared" else (ours - theirs).abs().mean()

    if case == "single":
        kinds = torch.cat([row.expand(rows, -1) for row in weights["kind.weight"]])
        eps_m, eps_p = body(part(weights, "body."), torch.cat([m, p]), t.repeat(2), True, kinds).chunk(2)
    else:
        eps_m, mid_m = chain(part(weights, "painting."), m, t, network.chain == "leaky")
        eps_p, mid_p = chain(part(weights, "photograph."), p, t, network.chain == "leaky")
    loss = apart(eps_m, wanted[prediction][0]) + apart(eps_p, wanted[prediction][1])
    if case == "single":
        return loss, None
    loss = loss + recipe.middle * ((mid_p - m).abs().mean() + (mid_m - p).abs().mean())

    def first(kind, x):
        return body(part(weights, f"{kind}.first."), x, t)

    def judge(kind, x):
        w = part(judged, f"{kind}.")
        x = torch.nn.functional.conv2d(x, w["levels.0.weight"], w["levels.0.bias"], stride=2, padding=1)
        x = torch.nn.functional.leaky_relu(x, 0.2)
        x = torch.nn.functional.conv2d(x, w["levels.1.weight"], w["levels.1.bias"], padding=1)
        return torch.nn.functional.conv2d(torch.nn.functional.leaky_relu(x, 0.2), w["score.weight"], w["score.bias"], padding=1)

    if not recipe.adversarial:
        return loss, None
    verdict = ((judge("painting", mid_p) - 1) ** 2).mean() + ((judge("photograph", mid_m) - 1) ** 2).mean()
    loss = loss + recipe.adversarial * verdict
    loss = loss + recipe.identity * ((first("photograph", m) - m).abs().mean() + (first("painting", p) - p).abs().mean())
    loss = loss + recipe.cycle * ((first("painting", mid_p) - p).abs().mean() + (first("photograph", mid_m) - m).abs().mean())
    of_m = ((judge("painting", m) - 1) ** 2).mean() + (judge("painting", mid_p.detach()) ** 2).mean()
    of_p = ((judge("photograph", p) - 1) ** 2).mean() + (judge("photograph", mid_m.detach()) ** 2).mean()
    return loss, (of_m + of_p) / 2


# -- losses and updates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prediction", "error"), [("epsilon", "squared"), ("v", "absolute")])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_the_formulas_written_out(case, prediction, error):
    seed = secrets.randbelow(2**31)
    made = objective(case, seed, prediction, error)
    for module in made.modules.values():
        randomise(module, seed).double().train()
    leaves = [
        {k: v.detach().clone().requires_grad_(v.is_floating_point()) for k, v in module.state_dict().items()}
        for module in made.modules.values()
    ]
    weights, judged = leaves[0], leaves[1] if len(leaves) > 1 else {}
    given, streams, scratch = batch(seed=seed), StepStreams(0, 5, 0, 6, dtype=torch.float64), {}
    wanted = written_out(case, weights, judged, given, 5, prediction=prediction, error=error)
    for turn in made.turns():
        ours, theirs = made.loss(turn.name, given, scratch, streams)["loss"], wanted[turn.name == "critic"]
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-10), (seed, turn.name)
        module = made.modules[turn.name]
        names = [n for n, _ in module.named_parameters()]
        grads = torch.autograd.grad(ours, list(turn.parameters), retain_graph=True, allow_unused=True)
        table = judged if turn.name == "critic" else weights
        theirs = torch.autograd.grad(theirs, [table[n] for n in names], retain_graph=True, allow_unused=True)
        for key, got, want in zip(names, grads, theirs, strict=True):
            assert (got is None) == (want is None), key
            assert got is None or relative(got, want) < 1e-7 or float((got - want).abs().max()) < 1e-12, (seed, key)


@pytest.mark.parametrize("case", CASES)
def test_one_optimiser_step_equals_adam_written_out(case, tmp_path):
    recipe = toys.loop(
        steps=1, batch=6, warmup=0, decay="constant", learning_rate=0.01, weight_decay=0.1, clip=None, average=0.5,
        precision="float64", seed=3,
    )  # fmt: skip
    made = objective(case, seed=8)
    given = batch(seed=2)
    trainer = Trainer(made, lambda start: iter([given] * 3), recipe, tmp_path)
    before = [{k: v.detach().clone() for k, v in m.state_dict().items()} for m in made.modules.values()]
    toys.finish(trainer)
    after = [m.state_dict() for m in made.modules.values()]
    leaves = [{k: v.double().requires_grad_() if v.is_floating_point() else v for k, v in s.items()} for s in before]
    judged, compared = leaves[1] if len(leaves) > 1 else {}, 0
    own = dict(made.modules["denoiser"].named_parameters())

    def moved(tensors, loss, names, rate):
        """{name: what AdamW's first step makes of it}"""
        grads = torch.autograd.grad(loss, [tensors[n] for n in names], allow_unused=True, retain_graph=True)
        found = {}
        for name, grad in zip(names, grads, strict=True):
            if grad is not None:
                kept = tensors[name] * (1 - rate * (0.1 if tensors[name].dim() > 1 else 0))
                found[name] = kept - rate * grad / (grad.abs() + 1e-8)  # bias correction leaves the gradient's sign, nearly
        return found

    if judged:  # the critic moves first, the denoiser then answers to the moved one
        told = moved(judged, written_out(case, leaves[0], judged, given, 0, seed=3)[1], list(judged), 2e-4)
        for name, tensor in told.items():
            assert torch.allclose(after[1][name], tensor, rtol=0, atol=1e-9), name
        judged = {name: tensor.detach() for name, tensor in told.items()}
    loss = written_out(case, leaves[0], judged, given, 0, seed=3)[0]
    for name, tensor in moved(leaves[0], loss, list(own), 0.01).items():
        assert torch.allclose(after[0][name], tensor, rtol=0, atol=1e-6), name
        compared += 1
    assert compared > 20


def test_without_weight_the_middle_decouples_the_kinds():
    """At middle 0 neither network depends on the other kind's pictures; with weight both do."""
    for case, apart in (("no middle", True), ("strict", False)):
        made = objective(case).modules["denoiser"]
        losses = objective(case)
        losses.network, losses.kinds = made.double().train(), made
        grads = []
        for photographs in (batch(seed=1)["photographs"], batch(seed=2)["photographs"]):
            streams = StepStreams(0, 0, 0, 6, dtype=torch.float64)
            loss = losses.loss("denoiser", {"pixels": batch()["pixels"], "photographs": photographs}, {}, streams)["loss"]
            grads.append(torch.autograd.grad(loss, list(made.painting.parameters())))
        same = all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
        assert same == apart, case


def test_each_u_net_of_a_chain_has_its_margin():
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 200.0])
    plain, wide = (randomise(DoubleUNetRecipe(**TOY, margin=m).build(), 1).eval() for m in (False, True))
    (made, middle), (other, further) = (net.say("painting", x, t) for net in (plain, wide))
    assert middle.shape == further.shape == other.shape == made.shape
    assert not torch.allclose(middle, further) and not torch.allclose(made, other)


def test_a_strict_chain_sees_the_picture_through_its_middle_alone_and_a_leaky_one_beside_it():
    for kind in ("strict", "leaky"):
        net = randomise(DoubleUNetRecipe(**TOY, chain=kind).build(), 1).eval()
        x, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 200.0])
        for way in (net.painting, net.photograph):
            way.first.conv_out.weight.data.zero_()  # a middle that says nothing
        said = [net.say("painting", seen, t) for seen in (x, -x)]
        assert torch.equal(said[0][1], said[1][1])
        assert torch.equal(said[0][0], said[1][0]) == (kind == "strict")


def test_the_attention_trial_lies_at_the_seventh_down_and_the_second_up_layer_of_two_u_nets():
    recipe = DoubleUNetRecipe(channels=(4, 8, 8, 8, 8), time_width=8, attend_down=(7,), attend_up=(2,))
    found = {n for n, m in recipe.build().named_modules() if type(m).__name__ == "PlaceAttention"}
    assert found == {f"{k}.{place}.attention" for k in KINDS for place in ("second.down.2", "first.up.1")}
    with pytest.raises(ValidationError, match="layers from 1 to 4"):
        DoubleUNetRecipe(**TOY, attend_up=(5,))


def test_the_control_is_as_large_as_the_double_network():
    for preset in (None, "source"):
        sizes = []
        for name in ("monet-double", "monet-single"):
            with torch.device("meta"):
                network = load_recipe(name, preset=preset).denoiser.network.build()
            sizes.append(sum(p.numel() for p in network.parameters()))
        assert abs(sizes[0] / sizes[1] - 1) < 0.02, sizes


def test_statistics_for_painting_are_those_of_pictures_that_are_painted_from():
    """Identity and cycle show the first U-Nets other pictures; their batch norms take no note of it."""
    seen = []
    for case in ("no middle", "gan"):
        made = objective(case, seed=4)
        network, _ = (module.double().train() for module in (made.network, made.critics or torch.nn.Module()))
        made.loss("denoiser", batch(), {}, StepStreams(0, 0, 0, 6, dtype=torch.float64))
        seen.append({n: b.clone() for n, b in network.named_buffers() if "running" in n})
    assert seen[0] and [n for n, b in seen[0].items() if not torch.equal(b, seen[1][n])] == []


# -- runs ------------------------------------------------------------------------------------------------------------------


def shapes(step, rows=8):
    """A painting is a toy shape, its photograph another one in other colours."""
    ours, theirs = toys.batch_at(step, batch=rows)["pixels"], toys.batch_at(step + 3, batch=rows)["pixels"]
    return {"pixels": ours, "photographs": theirs.flip(1)}


@pytest.mark.parametrize("case", ["strict", "gan", "single"])
def test_a_run_that_is_broken_off_becomes_the_same(case, tmp_path):
    def run(folder, steps, resume=False):
        def stream(start):
            while True:
                yield shapes(start)
                start += 1

        made = objective(case, seed=9 if resume else 0)  # a state must overwrite other weights
        return toys.finish(Trainer(made, stream, toys.loop(steps=steps, average=0.9, decay="constant"), folder, resume=resume))

    whole = run(tmp_path / "whole", 8)
    run(tmp_path / "parts", 3)
    again = run(tmp_path / "parts", 8, resume=True)
    assert whole.keys() == again.keys() and all(torch.equal(v, again[k]) for k, v in whole.items())


@pytest.mark.parametrize("case", ["strict", "single"])
def test_training_on_toy_shapes_lowers_the_held_out_loss(case, tmp_path):
    def stream(start):
        while True:
            yield shapes(start, 16)
            start += 1

    loop = toys.loop(steps=150, batch=16, warmup=5, learning_rate=5e-3, average=0.9)
    made, held = objective(case, channels=(16, 48)), shapes(100, 16)

    def error():
        for module in made.modules.values():
            module.eval()
        with torch.no_grad():
            found = made.validate(held, StepStreams(1, 0, 0, 16))
        return {k: float(v) for k, v in found.items()}

    before = error()
    trainer = Trainer(made, stream, loop, tmp_path)
    toys.finish(trainer)
    with trainer.updates.averaged():
        after = error()
    assert after["error"] < 0.9 * before["error"] and after["photographs"] < 0.9 * before["photographs"]
    assert case == "single" or after["middle"] < 0.8 * before["middle"]


# -- data ------------------------------------------------------------------------------------------------------------------


def test_pairs_are_random_and_a_function_of_seed_and_step():
    ours, theirs = ToyShapes(count=20, size=8), ToyShapes(count=26, size=8, seed=1)

    def loaders(seed):
        return (Loader(s, size=(8, 8), channels=3, batch=4, seed=seed + i, workers=0) for i, s in enumerate((ours, theirs)))

    whole = paired(*loaders(5), 0, torch.device("cpu"))
    first = [next(whole) for _ in range(12)]
    later = next(paired(*loaders(5), 11, torch.device("cpu")))
    assert all(torch.equal(first[11][k], later[k]) for k in ("pixels", "photographs"))
    beside = {}
    for seen in first:
        for painting, photograph in zip(seen["pixels"], seen["photographs"], strict=True):
            beside.setdefault(painting.numpy().tobytes(), set()).add(photograph.numpy().tobytes())
    assert max(map(len, beside.values())) > 1  # not always the same photograph
    other = next(paired(*loaders(6), 0, torch.device("cpu")))
    assert not torch.equal(other["photographs"], first[0]["photographs"])


def test_crops_of_one_photograph_are_held_out_together(tmp_path):
    for photograph in range(10):
        for crop in range(1 + photograph % 3):
            pixels = np.full((8, 8, 3), 25 * photograph, np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"photo_{photograph:03d}_{crop}.png")
    source = open_source(tmp_path)
    held, kept = held_out(source, 3, 0)
    names = photographs_of(source)
    assert len(set(names)) == 10 and sorted([*held, *kept]) == list(range(len(source)))
    assert not {names[i] for i in held} & {names[i] for i in kept}
    assert 1 <= len(held) <= 3
    Image.fromarray(pixels).save(tmp_path / "holiday.png")
    assert "holiday.png" in photographs_of(open_source(tmp_path))
    held, kept = held_out(ToyShapes(count=40, size=8), 6, 0)
    assert len(held) == 6 and len(kept) == 34


# -- a whole model ---------------------------------------------------------------------------------------------------------


def tiny():
    loop = LoopRecipe(steps=10, batch=8, warmup=2, precision="float32", save_every=5, log_every=1)
    return DiffusionRecipe(
        name="tiny-double",
        licence="Apache-2.0",
        data=DataRecipe(source="toy", photographs="toy", size=(16, 16), validation=8, flip=True),
        schedule=ScheduleRecipe(kind="linear", steps=300, beta_start=1e-4, beta_end=0.02),
        denoiser=DenoiserStage(
            network=DoubleUNetRecipe(**TOY, chain="leaky"),
            objective=DenoiseRecipe(prediction="epsilon"),
            pairs=PairsRecipe(adversarial=0.1, identity=0.1, cycle=0.1),
            critic=CriticRecipe(channels=(6, 8)),
            loop=loop,
        ),
        knobs={"sampler": "ddpm", "steps": 6, "clamp": "estimate"},
    )


@pytest.fixture
def name(monkeypatch):
    """The family that the contract's tests look up, with this recipe as its tiny one."""
    monkeypatch.setattr("giverny.painters.diffusion.family.PAINTER", dataclasses.replace(PAINTER, tiny=tiny))
    return "diffusion"


@pytest.fixture(scope="module")
def tiny_runs(tmp_path_factory):
    run = tmp_path_factory.mktemp("tiny") / "double"
    for _ in train(tiny(), run):
        pass
    return {"diffusion": run}


painter = contract.painter
globals().update({key: test for key, test in vars(contract).items() if key.startswith("test_")})


def test_what_paints_is_the_network_of_paintings_and_the_other_is_there_beside_it(tiny_runs):
    network = open_painter(tiny_runs["diffusion"]).parts.network
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 200.0])
    told = network.prepare(Condition())
    for kind in KINDS:
        noise, middle = network.say(kind, x, t)
        assert torch.equal(As(network, kind)(x, t, told), noise) and middle.shape == x.shape
        assert torch.equal(network.first(kind, x, t), middle)
    assert torch.equal(network(x, t, told), network.say("painting", x, t)[0])
    assert not torch.equal(network(x, t, told), network.say("photograph", x, t)[0])


def test_it_begins_from_photographs_and_paints_half_size_and_its_card_names_both_sets(tiny_runs, tmp_path):
    painter = open_painter(tiny_runs["diffusion"])
    given = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(given).save(tmp_path / "given.png")
    given_file = enclosed(tmp_path / "given.png")

    def painted(**asked):
        request = Request(prompt="", seed=4, id="1", **asked)
        return collect(painter.paint([request]), [request])[0].pixels

    kept = painted(start=Start(picture=given_file, strength=0.0))
    assert abs(kept.astype(int) - given).max() <= 1
    over = painted(start=Start(picture=given_file, strength=0.5))
    assert not np.array_equal(over, kept) and not np.array_equal(over, painted())
    assert painted(knobs={"upscale": 2.0, "upscale_strength": 0.0}).shape == (32, 32, 3)
    assert read_card(tiny_runs["diffusion"] / "model").data["photographs"] == {"name": "toy"}


def test_previews_show_what_is_painted_and_the_photographs_seen_in_paintings(tiny_runs):
    shown = sorted((tiny_runs["diffusion"] / "stages" / "denoiser" / "previews").glob("*.png"))
    assert shown
    width, height = Image.open(shown[-1]).size
    assert (width - 2, height - 2) == (8 * 34, 3 * 34)  # three rows of eight, twice their size and two pixels apart


def test_a_middle_without_its_noise_is_a_clean_picture_where_it_is_learnt():
    made = objective("strict")
    noise = torch.randn(8, 3, 8, 8)
    level = level_of(TABLE, 150)
    alpha, sigma = level.for_sample(noise)

    class Knows(torch.nn.Module):
        def say(self, kind, x, t):
            return x, alpha * 0.25 + sigma * noise

    made.kinds = Knows()
    streams = StepStreams(0, 0, 0, 8)
    streams_noise = streams.normal("noise", noise.shape)
    noise.copy_(streams_noise)
    _, view = made._views({"pixels": torch.zeros(8, 3, 8, 8)}, streams)
    assert torch.allclose(view, torch.full_like(view, 0.25), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("denoiser.pairs=none", "missing: denoiser.pairs"),
        ("denoiser.network={family='simple', channels=[8, 16]}", "missing: a network of two kinds"),
        ("denoiser.network={family='simple', kinds=2, channels=[8, 16]}", "family 'double' alone"),
        ("denoiser.pairs.adversarial=0", "want each other"),
        ("denoiser.network.in_channels=4", "in_channels"),
    ],
)
def test_recipes_that_make_no_sense_are_refused_in_words(change, said):
    with pytest.raises(InputError, match=said):
        load_recipe(tiny(), [change])


@pytest.mark.parametrize("name", ["monet-double", "monet-single", "monet-vanilla"])
def test_the_recipes_and_their_presets_hold(name):
    import tomllib

    from giverny.assembly.reading import find_recipe

    presets = tomllib.loads(Path(find_recipe(name)).read_text("utf-8"))["presets"]
    for preset in (None, *presets):
        assert load_recipe(name, preset=preset).name == name
