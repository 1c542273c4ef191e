"""Objectives of translation: every variant's losses, gradients and one step are those of a plain reference in float64."""

import copy

import pytest
import torch
from torch.nn import functional as F

from giverny.gans.critics import PatchRecipe, PixelCriticRecipe
from giverny.gans.generators import Projections, ResnetRecipe, UnetRecipe
from giverny.gans.history import History
from giverny.training.judged import Judged, JudgedRecipe
from giverny.training.loop import LoopRecipe, Trainer
from giverny.training.parallel import World
from giverny.training.streams import StepStreams
from giverny.training.translate import CycleRecipe, CycleTranslation, TranslateRecipe
from giverny.training.translate_patches import PatchTranslateRecipe, PatchTranslation
from giverny.training.updates import Updates

ROWS, SIDE, RATE, BETAS = 3, 24, 2e-4, (0.5, 0.999)
LOOP = LoopRecipe(
    steps=4, batch=ROWS, learning_rate=RATE, betas=BETAS, weight_decay=0, clip=None, average=0, warmup=0,
    decay="constant", precision="float64", seed=3,
)  # fmt: skip


def objective(recipe, pixel_critic=False, generator=None, seed=0):
    torch.manual_seed(seed)
    judged = recipe.judged
    pixel = PixelCriticRecipe(channels=4, widths=(1, 2, 2), image=judged.mixing_form == "image")
    critic = pixel if pixel_critic else PatchRecipe(channels=4, layers=2)
    made = [Judged(n, critic.build(), History(judged.history, (3, SIDE, SIDE)), judged) for n in ("wanted", "given")]
    if isinstance(recipe, PatchTranslateRecipe):
        forth = ResnetRecipe(channels=4, blocks=2, gain=0.1).build()
        return PatchTranslation(forth, Projections(tuple(forth.looks.values()), 8), made[0], recipe)
    generator = generator or ResnetRecipe(channels=4, blocks=1, gain=0.1)
    return CycleTranslation(generator.build(), generator.build(), *made, recipe, generator.grain)


def batch_of(step, epoch=0):
    drawn = torch.Generator().manual_seed(step)
    given, wanted = torch.rand(2, ROWS, 3, SIDE, SIDE, generator=drawn, dtype=torch.float64) * 2 - 1
    return {"given": given, "wanted": wanted, "epochs": torch.full((ROWS,), epoch)}


# -- the reference: nothing of ours but networks and draws -----------------------------------------------------------------


class Reference:
    """One iteration, written out. Networks are copies; draws are those of the step's streams, by name."""

    def __init__(self, made, step, progress, epoch):
        self.net = copy.deepcopy(dict(made.modules))
        self.recipe, self.judged, self.grain = made.recipe, made.recipe.judged, made.grain
        self.streams = StepStreams(LOOP.seed, step, 0, ROWS, dtype=torch.float64, progress=progress)
        self.progress, self.epoch = progress, epoch

    def outputs(self, name, x):
        made = self.net[f"critic_{name}"](x)
        return list(made) if isinstance(made, tuple) else [made]

    def changed(self, name, who, x):
        if not self.judged.augment:
            return x
        u = self.streams.uniform(f"augment.{name}.{who}", (ROWS, 7))
        made = []
        for picture, d in zip(x, u.tolist(), strict=True):
            if "colour" in self.judged.augment:
                picture = picture + d[0] - 0.5
                picture = picture.mean(0) + 2 * d[1] * (picture - picture.mean(0))
                picture = picture.mean() + (d[2] + 0.5) * (picture - picture.mean())
            if "translation" in self.judged.augment:
                reach = SIDE // 8
                dy, dx = (min(int(v * (2 * reach + 1)), 2 * reach) for v in d[3:5])
                picture = F.pad(picture, (reach,) * 4)[:, dy : dy + SIDE, dx : dx + SIDE]
            if "cutout" in self.judged.augment:
                half = SIDE // 4
                y, x0 = (min(int(v * (SIDE + 1)), SIDE) for v in d[5:7])
                hole = torch.ones_like(picture)
                hole[:, max(0, y - half) : y + half, max(0, x0 - half) : x0 + half] = 0
                picture = picture * hole
            made.append(picture)
        return torch.stack(made)

    def each(self, logits, target):
        """Loss per picture of one output."""
        total = 0
        for kind in self.judged.kinds:
            if kind == "squares":
                total = total + ((logits - target) ** 2).flatten(1).mean(1)
            else:
                entropy = logits.clamp(min=0) - logits * target + torch.log1p(torch.exp(-logits.abs()))
                total = total + entropy.flatten(1).mean(1)
        return total

    def mask(self, name):
        masks = []
        for share, down, across, turned in self.streams.uniform(f"mix.{name}", (ROWS, 4)).tolist():
            if self.judged.mixing == "mixup":
                masks.append(torch.full((1, SIDE, SIDE), share, dtype=torch.float64))
                continue
            half, mask = (1 - share) ** 0.5 * SIDE / 2, torch.ones(1, SIDE, SIDE, dtype=torch.float64)
            top, bottom, left, right = (
                min(max(round(c * SIDE + way * half), 0), SIDE) for c in (down, across) for way in (-1, 1)
            )
            mask[:, top:bottom, left:right] = 0
            masks.append(1 - mask if turned >= 0.5 else mask)
        return torch.stack(masks)

    def ramp(self):
        return min(1.0, self.progress / self.judged.mixing_warmup)

    def verdict(self, name, fake, real):
        outputs = self.outputs(name, self.changed(name, "made", fake))
        each = sum(self.each(out, 1.0) for out in outputs) / len(outputs)
        scores = sum(out.flatten(1).mean(1) for out in outputs) / len(outputs)
        count = max(1, round(ROWS * max(self.judged.top, self.judged.top_decay**self.epoch)))
        ranked = (-scores if self.judged.top_by == "score" else each).argsort()
        value = sum(each[i] for i in ranked[:count].tolist()) / count
        if self.judged.mixing != "none" and self.judged.mixing_form in ("printed", "image"):
            m = self.mask(name)
            one, other = m * real + (1 - m) * fake, (1 - m) * real + m * fake
            value = value + self.ramp() * self.judged.consistency * (one - other).abs().mean()
        return value, scores

    def critic(self, name, real, fake):
        history = self.net[f"history_{name}"]
        shown = []
        for picture, (whether, which) in zip(fake, self.streams.uniform(f"history.{name}", (ROWS, 2)).tolist(), strict=True):
            if history.size == 0:
                shown.append(picture)
            elif history.count < history.size:
                history.pictures[history.count] = picture
                history.count += 1
                shown.append(picture)
            elif whether < 0.5:
                shown.append(history.pictures[int(which * history.size)].clone())
                history.pictures[int(which * history.size)] = picture
            else:
                shown.append(picture)
        real, fake = self.changed(name, "real", real), self.changed(name, "fake", torch.stack(shown))
        on_real, on_fake = self.outputs(name, real), self.outputs(name, fake)
        share = self.judged.real_share
        loss = sum(share * self.each(out, 1.0).mean() for out in on_real)
        loss = loss + sum((1 - share) * self.each(out, 0.0).mean() for out in on_fake)
        if self.judged.mixing != "none" and self.judged.mixing_form == "paper":
            m = self.mask(name)
            whole, pixels = self.outputs(name, m * real + (1 - m) * fake)
            taught = (self.each(whole, 0.0).mean() + self.each(pixels, m).mean()) / 2
            steady = ((pixels - (m * on_real[1] + (1 - m) * on_fake[1])) ** 2).mean()
            loss = loss + self.ramp() * (self.judged.mask * taught + self.judged.consistency * steady)
        if self.judged.mixing != "none" and self.judged.mixing_form == "image":
            m, critic = self.mask(name), self.net[f"critic_{name}"]
            shown, kept = m * real + (1 - m) * fake, []
            critic.pixel.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
            whole = critic(shown)[0]
            image = torch.einsum("oc,bchw->bohw", critic.image.weight[:, :, 0, 0], kept[-1]) + critic.image.bias[:, None, None]
            taught = self.each(whole, 0.0).mean() / 2 + (image - shown).abs().mean() / 2
            loss = loss + self.ramp() * self.judged.mask * taught
        return loss

    def through(self, network, x, name):
        """A generator's picture of x, shown noise that is drawn under a name."""
        if self.grain:
            x = torch.cat([x, self.streams.normal(f"grain.{name}", (ROWS, self.grain, SIDE, SIDE))], 1)
        return self.net[network](x)

    def cycle_loss(self, batch):
        a, b, cycle = batch["given"], batch["wanted"], self.recipe.cycle
        fake_b, fake_a = self.through("forth", a, "forth"), self.through("back", b, "back")
        again_a, again_b = self.through("back", fake_b, "painted"), self.through("forth", fake_a, "taken")
        (verdict_b, score_b), (verdict_a, score_a) = self.verdict("wanted", fake_b, b), self.verdict("given", fake_a, a)
        loss = verdict_b + verdict_a
        end = cycle.weight if cycle.weight_end is None else cycle.weight_end
        weight = cycle.weight + (end - cycle.weight) * self.progress
        end = cycle.features if cycle.features_end is None else cycle.features_end
        gamma = cycle.features + (end - cycle.features) * self.progress
        if cycle.swapped:
            gamma = 1 - gamma
        for name, x, again, became in (("given", a, again_a, score_b), ("wanted", b, again_b, score_a)):
            critic = self.net[f"critic_{name}"]
            for i in range(ROWS):
                term = (1 - gamma) * (again[i] - x[i]).abs().mean()
                if gamma:
                    look = lambda y: critic.model[:-1](y)  # noqa: B023, E731
                    term = term + gamma * (look(again[i : i + 1]) - look(x[i : i + 1]).detach()).abs().mean()
                if cycle.weighting == "generated":
                    term = term * became[i].detach().clamp(0, 1)
                elif cycle.weighting == "printed":
                    term = term * critic(x[i : i + 1]).mean().detach().clamp(0, 1)
                loss = loss + weight * term / ROWS
        if self.recipe.identity:
            same_b, same_a = self.through("forth", b, "forth.own"), self.through("back", a, "back.own")
            loss = loss + self.recipe.identity * ((same_b - b).abs().mean() + (same_a - a).abs().mean())
        return loss, {"wanted": fake_b.detach(), "given": fake_a.detach()}

    def patch_loss(self, batch):
        a, b, forth, heads = batch["given"], batch["wanted"], self.net["forth"], self.net["projections"].heads
        fake = forth(a)
        loss = self.verdict("wanted", fake, b)[0]
        sides = [("given", a, fake, self.recipe.contrast)]
        if self.recipe.contrast_own:
            sides.append(("wanted", b, forth(b), self.recipe.contrast_own))
        for name, x, made, weight in sides:
            ours, theirs = list(forth.features(made)), list(forth.features(x))
            for index, head in enumerate(heads):
                count = ours[index].shape[2] * ours[index].shape[3]
                draws = self.streams.uniform(f"places.{name}.{index}", (ROWS, count))
                for row in range(ROWS):
                    places = draws[row].argsort(descending=True)[: self.recipe.places]
                    q, k = (head(m[index][row].flatten(1).T[places]) for m in (ours, theirs))
                    q, k = (v / v.norm(dim=1, keepdim=True).clamp(min=1e-4) for v in (q, k.detach()))
                    logits = q @ k.T / self.recipe.temperature
                    found = (logits.diag() - logits.exp().sum(1).log()).mean()
                    loss = loss - weight * found / (ROWS * len(heads))
        return loss, {"wanted": fake.detach()}

    def step(self, batch):
        """(losses, gradients by name) of both turns; moves the weights as Adam's first step does."""
        make = self.cycle_loss if "back" in self.net else self.patch_loss
        movers = [n for n in ("forth", "back", "projections") if n in self.net]
        loss, fakes = make(batch)
        told = {"generators.loss": loss.item()}
        gradients = self.moved(movers, loss)
        own = sum(self.critic(name, batch[name], fake) for name, fake in fakes.items())
        told["critics.loss"] = own.item()
        return told, gradients | self.moved([f"critic_{name}" for name in fakes], own)

    def moved(self, names, loss):
        parameters = {f"{n}.{k}": p for n in names for k, p in self.net[n].named_parameters()}
        slopes = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        found = dict(zip(parameters, slopes, strict=True))
        with torch.no_grad():
            for key, p in parameters.items():
                if found[key] is not None:  # first and second moments of a first step, their bias taken off
                    p -= RATE * found[key] / (found[key].square().sqrt() + 1e-8)
        return found


# -- variants -----------------------------------------------------------------------------------------------------------

PAPER = ("logistic",)
VARIANTS = {
    "plain": (TranslateRecipe(), False),
    "together": (TranslateRecipe(together=True), False),
    "no identity": (TranslateRecipe(identity=0), False),
    "no history": (TranslateRecipe(judged=JudgedRecipe(history=0)), False),
    "little history": (TranslateRecipe(judged=JudgedRecipe(history=2)), False),
    "real share": (TranslateRecipe(judged=JudgedRecipe(real_share=0.3)), False),
    "top-k": (TranslateRecipe(judged=JudgedRecipe(top=0.5, top_decay=0.8)), False),
    "top-k by loss": (TranslateRecipe(judged=JudgedRecipe(top=0.5, top_decay=0.8, top_by="loss")), False),
    "augmented": (TranslateRecipe(judged=JudgedRecipe(augment=("colour", "translation", "cutout"))), False),
    "pixel critic": (TranslateRecipe(judged=JudgedRecipe(kinds=PAPER)), True),
    "pixel critic, classical too": (TranslateRecipe(judged=JudgedRecipe(kinds=("logistic", "squares"))), True),
    "cutmix": (TranslateRecipe(judged=JudgedRecipe(kinds=PAPER, mixing="cutmix", history=2)), True),
    "cutmix, augmented": (TranslateRecipe(judged=JudgedRecipe(kinds=PAPER, mixing="cutmix", augment=("colour",))), True),
    "mixup": (TranslateRecipe(judged=JudgedRecipe(kinds=PAPER, mixing="mixup", mask=0.5, consistency=2.0)), True),
    "printed consistency": (TranslateRecipe(judged=JudgedRecipe(mixing="cutmix", mixing_form="printed")), False),
    "image given back": (TranslateRecipe(judged=JudgedRecipe(
        kinds=("logistic", "squares"), mixing="cutmix", mixing_form="image", mask=0.7, consistency=0.4, augment=("colour",)
    )), True),
    "better cycles": (TranslateRecipe(cycle=CycleRecipe(weight_end=1, features_end=0.9)), False),
    "swapped": (TranslateRecipe(cycle=CycleRecipe(features=0.3, swapped=True)), False),
    "weighted": (TranslateRecipe(cycle=CycleRecipe(weighting="generated")), False),
    "weighted, features": (TranslateRecipe(cycle=CycleRecipe(features=0.5, weighting="generated")), False),
    "weighted as printed": (TranslateRecipe(cycle=CycleRecipe(features=0.5, weighting="printed")), False),
    "patches": (PatchTranslateRecipe(places=10), False),
    "patches, no own": (PatchTranslateRecipe(places=1000, contrast_own=0), False),
    "patches, augmented, pixel critic": (
        PatchTranslateRecipe(places=10, judged=JudgedRecipe(kinds=PAPER, mixing="cutmix", augment=("translation",))), True
    ),
}  # fmt: skip
GRAINED = UnetRecipe(channels=4, levels=3, gain=0.1, doubling="resize", grain=2)
GENERATORS = {  # other than the usual
    "grain": GRAINED, "grain, together": GRAINED, "grain, no identity": GRAINED,
    "U-Net": UnetRecipe(channels=4, levels=3, gain=0.1),
    "batch norm": ResnetRecipe(channels=4, blocks=1, gain=0.1, norm="batch"),
}  # fmt: skip
VARIANTS |= {
    name: (TranslateRecipe(together="together" in name, identity=0 if "no identity" in name else 10), False)
    for name in GENERATORS
}


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_gradients_and_a_step_are_those_of_the_reference(name):
    recipe, pixel_critic = VARIANTS[name]
    made = objective(recipe, pixel_critic, GENERATORS.get(name))
    updates = Updates(made, LOOP, World(), torch.device("cpu"))
    updates.begin()
    for step in range(2):  # something in the history, and verdicts that differ
        updates.step(step, batch_of(step), 1.0, "float64", step / 4)
    progress, epoch = 0.6, 3
    reference = Reference(made, 2, progress, epoch)
    for optimiser in updates.optimisers.values():
        optimiser.state.clear()  # so that this is a first step
    before = {n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in made.modules.items()}
    told = updates.step(2, batch_of(2, epoch), 1.0, "float64", progress)
    losses, slopes = reference.step(batch_of(2, epoch))
    for key, wanted in losses.items():
        assert told[key] == pytest.approx(wanted, rel=1e-10), key
    moved = 0
    for module, network in made.modules.items():
        theirs = reference.net[module].state_dict()
        for key, value in network.state_dict().items():
            where = f"{module}.{key}"
            slope = slopes.get(where)
            if slope is not None and not key.endswith("bias"):  # biases before a norm have slopes of rounding errors
                grad = dict(network.named_parameters())[key].grad
                if grad is not None:  # the critics' turn has cleared the generators'
                    assert torch.allclose(grad, slope, rtol=1e-7, atol=1e-12), where
                big = slope.abs() > 1e-9  # where a slope is not rounding alone, Adam's first step is its sign
                assert torch.allclose(value[big], theirs[key][big], rtol=0, atol=1e-10), where
                moved += int((value[big] != before[module][key][big]).sum())
            elif slope is None and "running_" not in key:  # means of a batch norm hang on the order of looking
                assert torch.allclose(value.double(), theirs[key].double(), atol=1e-10), where  # histories, buffers
    assert moved > 1000


def test_gradients_of_the_generators_are_those_of_the_reference():
    """Adam's first step tells signs alone: here are the numbers, of every variant."""
    for name, (recipe, pixel_critic) in VARIANTS.items():
        made = objective(recipe, pixel_critic, GENERATORS.get(name))
        updates = Updates(made, LOOP, World(), torch.device("cpu"))
        updates.begin()
        reference = Reference(made, 2, 0.6, 3)
        updates._gradients(updates.turns[0], 2, [batch_of(2, 3)], [{}], "float64", 0.6)
        _, slopes = reference.step(batch_of(2, 3))
        seen = 0
        for module in ("forth", "back", "projections"):
            for key, p in made.modules[module].named_parameters() if module in made.modules else ():
                wanted = slopes[f"{module}.{key}"]
                if p.grad is None or wanted is None:
                    assert p.grad is None and wanted is None
                    continue
                assert torch.allclose(p.grad, wanted, rtol=1e-7, atol=1e-11), f"{module}.{key}"
                seen += 1
        assert seen >= 10


# -- what makes each variant itself -------------------------------------------------------------------------------------------


def told_of(recipe, pixel_critic=False, rows=ROWS, epoch=0, progress=0.5, generator=None):
    made = objective(recipe, pixel_critic, generator)
    for module in made.modules.values():
        module.double()
    batch = {k: v[:rows] for k, v in batch_of(0, epoch).items()}
    streams = StepStreams(0, 5, 0, rows, dtype=torch.float64, progress=progress)
    scratch = {}
    return [made.loss(turn, batch, scratch, streams)["loss"].item() for turn in ("generators", "critics")]


def test_top_k_with_one_picture_changes_nothing():
    top = TranslateRecipe(judged=JudgedRecipe(top=0.1, top_decay=0.5))
    assert told_of(top, rows=1, epoch=9) == told_of(TranslateRecipe(), rows=1, epoch=9)
    assert told_of(top, epoch=9) != told_of(TranslateRecipe(), epoch=9)
    assert told_of(top, epoch=0) == told_of(TranslateRecipe(), epoch=0)  # the first epoch keeps all


@pytest.mark.parametrize("generator", [ResnetRecipe(channels=4, blocks=1), UnetRecipe(channels=4, levels=3), GRAINED])
def test_one_pass_for_translation_and_identity_is_the_same(generator):
    one, other = (told_of(TranslateRecipe(together=t), generator=generator) for t in (False, True))
    assert one == pytest.approx(other, rel=1e-12)


def test_better_cycles_without_features_or_decay_are_the_plain_ones():
    assert told_of(TranslateRecipe(cycle=CycleRecipe(weight_end=10.0, features_end=0.0))) == told_of(TranslateRecipe())
    swapped = told_of(TranslateRecipe(cycle=CycleRecipe(features=0.0, swapped=True)))
    assert swapped == told_of(TranslateRecipe(cycle=CycleRecipe(features=1.0)))


def test_schedules_run_from_their_start_to_their_end():
    cycle = CycleRecipe(weight=10, weight_end=1, features=0, features_end=0.95)
    assert cycle.now(0.0) == (10, 0) and cycle.now(1.0) == pytest.approx((1, 0.95)) and cycle.now(0.5) == (5.5, 0.475)
    assert CycleRecipe(weight=7).now(0.3) == (7, 0)


def test_mixing_gains_its_weight_over_the_warmup():
    plain = JudgedRecipe(kinds=PAPER)
    mixing = JudgedRecipe(kinds=PAPER, mixing="cutmix", mixing_warmup=0.5)
    values = [told_of(TranslateRecipe(judged=mixing), True, progress=p)[1] for p in (0.0, 0.25, 0.5, 0.9)]
    base = told_of(TranslateRecipe(judged=plain), True)[1]
    assert values[0] == pytest.approx(base) and values[2] == pytest.approx(values[3])
    assert values[1] - base == pytest.approx((values[2] - base) / 2)


def test_a_picture_given_back_is_the_critics_business_and_its_distance_the_generators():
    def losses(**more):
        judged = JudgedRecipe(kinds=PAPER, mixing="mixup", mixing_form="image", **more)
        return told_of(TranslateRecipe(judged=judged), True)

    both, no_image, no_distance = losses(), losses(mask=0.0), losses(consistency=0.0)
    assert both[0] == no_image[0] and both[1] > no_image[1]
    assert both[0] > no_distance[0] and both[1] == no_distance[1]
    critic, x = PixelCriticRecipe(channels=4, widths=(1, 2, 2), image=True).build().eval(), torch.rand(2, 3, SIDE, SIDE)
    whole, image = critic.given_back(x)
    assert image.shape == x.shape and len(critic(x)) == 2 and torch.equal(whole, critic(x)[0])


def test_the_round_trip_moves_no_critic_and_the_critics_no_generator():
    made = objective(TranslateRecipe(cycle=CycleRecipe(features=1.0)))
    updates = Updates(made, LOOP, World(), torch.device("cpu"))
    updates.begin()
    kept = {k: p.clone() for k, p in made.modules["critic_given"].named_parameters()}
    updates._gradients(updates.turns[0], 0, [batch_of(0)], [scratch := {}], "float64", 0.5)
    assert all(p.grad is None for name in ("critic_given", "critic_wanted") for p in made.modules[name].parameters())
    assert not any(fake.requires_grad for fake in scratch["fakes"].values())
    updates._gradients(updates.turns[1], 0, [batch_of(0)], [scratch], "float64", 0.5)
    assert all(p.grad is None for p in made.forth.parameters())
    assert all(torch.equal(kept[k], p) for k, p in made.modules["critic_given"].named_parameters())


# -- stopped and resumed -------------------------------------------------------------------------------------------------------


def batches(start):
    while True:
        yield {k: v.float() if v.is_floating_point() else v for k, v in batch_of(start, start // 3).items()}
        start += 1


@pytest.mark.parametrize("name", VARIANTS)
def test_stopped_at_any_moment_a_run_becomes_the_same(name, tmp_path):
    recipe, pixel_critic = VARIANTS[name]
    loop = LOOP.model_copy(update={"steps": 8, "precision": "float32", "average": 0.9, "save_every": 3})

    def trainer(folder, resume=False):
        return Trainer(objective(recipe, pixel_critic, GENERATORS.get(name), seed=1), batches, loop, folder, resume=resume)

    whole = trainer(tmp_path / "whole")
    for _ in whole.run():
        pass
    for stop in (2, 5, 7):
        run = trainer(tmp_path / "cut", resume=True).run()
        for report in run:
            if report.step == stop:
                break
        run.close()
    last = trainer(tmp_path / "cut", resume=True)
    for _ in last.run():
        pass
    for module, network in whole.objective.modules.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, last.objective.modules[module].state_dict()[key]), f"{module}.{key}"
    for turn, optimiser in whole.optimisers.items():
        mine, theirs = optimiser.state_dict()["state"], last.optimisers[turn].state_dict()["state"]
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[i][m], theirs[i][m]) for i in mine for m in mine[i])
    assert all(torch.equal(v, last.averages[m][k]) for m, part in whole.averages.items() for k, v in part.items())
    if recipe.judged.history:
        assert last.objective.modules["history_wanted"].count > 0


def test_what_was_timed_or_taken_back_leaves_no_picture_in_a_history():
    made = objective(TranslateRecipe(judged=JudgedRecipe(history=4)))
    updates = Updates(made, LOOP.model_copy(update={"precision": "float32"}), World(), torch.device("cpu"))
    updates.begin()
    batch = next(batches(0))
    updates.time(batch, "float32", lambda: 0.0)
    history = made.modules["history_wanted"]
    assert history.count == 0 and not history.pictures.any()
    made.modules["critic_given"].model[0].weight.data.fill_(float("nan"))
    assert updates.step(0, batch, 1.0, "float32")["skipped"] == 1 and history.count == 0


UNET = UnetRecipe(channels=4, levels=3, gain=0.1)


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("name", ["plain", "little history", "augmented", "better cycles", "patches", "unet", "grain"])
def test_a_batch_in_parts_is_the_whole_batch(name, precision):
    """Each draw is a row's own, histories take rows in order, and one picture alone has the gradients it has among others."""
    recipe, pixel_critic = VARIANTS.get(name, VARIANTS["plain"])
    ends = []
    for parts in (1, ROWS):
        made = objective(recipe, pixel_critic, UNET if name == "unet" else GENERATORS.get(name))
        updates = Updates(
            made, LOOP.model_copy(update={"accumulate": parts, "precision": precision}), World(), torch.device("cpu")
        )
        updates.begin()
        slopes = []
        batch = updates._parts(updates.ready(batch_of(0)))
        scratch = [{} for _ in batch]
        for turn in updates.turns:
            slopes.append(updates._gradients(turn, 0, batch, scratch, precision, 0.5)["loss"])
            slopes += [p.grad.double().clone() for p in updates.parameters[turn.name] if p.grad is not None]
        ends.append(slopes)
    for one, other in zip(*ends, strict=True):
        one, other = torch.as_tensor(one), torch.as_tensor(other)
        # biases before a norm have slopes of rounding errors
        close, dead = {"float64": (1e-9, 1e-12), "float32": (2e-3, 1e-4)}[precision]
        assert (one - other).norm() <= close * one.norm() + dead


@pytest.mark.parametrize("name", ["plain", "cutmix", "augmented", "weighted as printed", "patches"])
def test_in_bfloat16_losses_are_nearly_the_same(name):
    recipe, pixel_critic = VARIANTS[name]
    ends = []
    for precision in ("float32", "bfloat16"):
        updates = Updates(
            objective(recipe, pixel_critic), LOOP.model_copy(update={"precision": precision}), World(), torch.device("cpu")
        )
        updates.begin()
        told = updates.step(0, next(batches(0)), 1.0, precision, 0.5)
        ends.append([told["generators.loss"], told["critics.loss"]])
        assert not told["skipped"]
    assert ends[0] == pytest.approx(ends[1], rel=0.05)
