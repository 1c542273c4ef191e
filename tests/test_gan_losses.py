"""Formulas of translating GANs: against ones written out here, and what makes each variant itself."""

import math

import pytest
import torch
from torch.nn import functional as F

from giverny.gans import losses
from giverny.gans.history import History


def draws(*shape, dtype=torch.float64):
    return torch.rand(*shape, dtype=dtype)


def test_least_squares_and_cross_entropy_by_their_definitions():
    logits = torch.randn(3, 1, 4, 5, dtype=torch.float64) * 3
    target = draws(3, 1, 4, 5)
    chance = 1 / (1 + torch.exp(-logits))
    entropy = -(target * torch.log(chance) + (1 - target) * torch.log(1 - chance))
    assert torch.allclose(losses.apart(logits, target, "logistic"), entropy.mean((1, 2, 3)), atol=1e-12)
    assert torch.allclose(losses.apart(logits, 1.0, "squares"), ((logits - 1) ** 2).mean((1, 2, 3)), atol=1e-12)


def test_a_verdict_is_the_mean_of_outputs_and_the_sum_of_kinds():
    whole, pixels = torch.randn(2, 1), torch.randn(2, 1, 6, 6)
    both = losses.verdicts((whole, pixels), (1.0, 0.0), ("squares", "logistic"))
    parts = [(losses.apart(whole, 1.0, k) + losses.apart(pixels, 0.0, k)) / 2 for k in ("squares", "logistic")]
    assert torch.allclose(both, parts[0] + parts[1])


# -- top-k ----------------------------------------------------------------------------------------------------------------


def test_top_k_begins_with_all_and_ends_with_the_least():
    counts = [losses.kept_of(32, epoch, 0.75, 0.99) for epoch in range(200)]
    assert counts[0] == 32 and counts[-1] == 24 and counts == sorted(counts, reverse=True)
    assert counts[10] == round(32 * 0.99**10)
    assert {losses.kept_of(1, epoch, 0.01, 0.5) for epoch in range(50)} == {1}  # a batch of one: nothing changes


def test_top_k_gives_gradient_to_the_best_alone():
    values = torch.arange(5.0, requires_grad=True)
    judged = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.0])
    losses.best(values, judged, 2).backward()
    assert values.grad.tolist() == [0, 0.5, 0, 0.5, 0]


# -- mixing ---------------------------------------------------------------------------------------------------------------


def test_a_cut_mask_is_a_box_of_the_drawn_area():
    drawn = draws(200, 4)
    drawn[:, 1:3] = 0.5  # in the middle: nothing is cut off
    masks = losses.cut_mask(drawn, (64, 96))
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    outside = torch.where(drawn[:, 3] < 0.5, masks.mean((1, 2, 3)), 1 - masks.mean((1, 2, 3)))
    assert torch.allclose(outside, drawn[:, 0], atol=0.03)  # lambda; sides are whole pixels
    for mask in masks[:20, 0]:
        box = mask == (0 if mask[0, 0] else 1)
        rows, columns = box.any(1), box.any(0)
        assert int(box.sum()) == int(rows.sum()) * int(columns.sum())


def test_cut_masks_are_half_real_in_the_mean_and_stay_inside():
    masks = losses.cut_mask(draws(4000, 4), (16, 16))
    assert abs(masks.mean() - 0.5) < 0.04  # six standard deviations
    assert masks.shape == (4000, 1, 16, 16)


def test_mixup_has_one_share_everywhere():
    drawn = draws(5, 4)
    mask = losses.flat_mask(drawn, (3, 4))
    assert torch.equal(mask, drawn[:, 0].view(5, 1, 1, 1).expand(5, 1, 3, 4))


def test_consistency_is_zero_for_a_critic_that_looks_at_single_pixels():
    real, fake = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    mask = losses.cut_mask(draws(4, 4), (8, 8))
    critic = lambda x: x.square().sum(1, keepdim=True)  # noqa: E731
    shown = losses.mixed(mask, real, fake)
    assert losses.inconsistency(critic(shown), mask, critic(real), critic(fake)) == 0
    blurred = lambda x: F.avg_pool2d(critic(x), 3, 1, 1)  # noqa: E731
    assert losses.inconsistency(blurred(shown), mask, blurred(real), blurred(fake)) > 0


def test_the_printed_form_does_not_hang_on_the_mask():
    real, fake = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    values = {float(losses.printed_inconsistency(losses.cut_mask(draws(4, 4), (8, 8)), real, fake)) for _ in range(5)}
    assert max(values) - min(values) < 1e-12
    assert max(values) == pytest.approx(float((real - fake).abs().mean()))


# -- patches --------------------------------------------------------------------------------------------------------------


def test_patch_contrast_is_the_cross_entropy_of_the_right_place():
    ours, theirs = (F.normalize(torch.randn(2, 5, 7, dtype=torch.float64), dim=-1) for _ in range(2))
    wanted = torch.zeros(2, dtype=torch.float64)
    for b in range(2):
        for i in range(5):
            terms = [math.exp(float(ours[b, i] @ theirs[b, j]) / 0.07) for j in range(5)]
            wanted[b] -= math.log(terms[i] / sum(terms)) / 5
    assert torch.allclose(losses.patch_contrast(ours, theirs, 0.07), wanted, atol=1e-12)
    assert (losses.patch_contrast(ours, ours, 0.01) < 0.1).all()
    theirs.requires_grad_()
    assert not losses.patch_contrast(ours.requires_grad_(), theirs, 0.07).sum().backward() and theirs.grad is None


def test_places_differ_and_are_as_many_as_there_are():
    assert all(len(set(row)) == 30 for row in losses.places_of(draws(4, 100), 30).tolist())
    assert all(sorted(row) == list(range(9)) for row in losses.places_of(draws(4, 9), 30).tolist())


# -- augmentation -----------------------------------------------------------------------------------------------------------


def test_nothing_asked_for_changes_nothing():
    x = torch.randn(2, 3, 8, 8)
    assert losses.augmented(x, (), draws(2, losses.DRAWS)) is x


def test_colours_change_by_their_formula():
    x, drawn = torch.randn(4, 3, 6, 6, dtype=torch.float64), draws(4, losses.DRAWS)
    for picture, made, d in zip(x, losses.augmented(x, ("colour",), drawn), drawn.tolist(), strict=True):
        wanted = picture + d[0] - 0.5
        grey = wanted.mean(0)
        wanted = torch.stack([grey + 2 * d[1] * (c - grey) for c in wanted])
        wanted = wanted.mean() + (d[2] + 0.5) * (wanted - wanted.mean())
        assert torch.allclose(made, wanted, atol=1e-12)


def test_a_moved_picture_is_itself_elsewhere_with_black_beyond():
    x, drawn = 1 + draws(60, 1, 16, 24), draws(60, losses.DRAWS)
    found = set()
    for picture, made in zip(x, losses.augmented(x, ("translation",), drawn), strict=True):
        shifts = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-3, 4)
            if torch.equal(made, F.pad(picture, (4, 4, 4, 4))[:, 4 + dy : 20 + dy, 4 + dx : 28 + dx])
        ]
        assert len(shifts) == 1
        found |= set(shifts)
    assert {dy for dy, _ in found} == set(range(-2, 3)) and {dx for _, dx in found} == set(range(-3, 4))


def test_a_hole_is_a_square_of_half_a_side_cut_off_at_the_edges():
    x, drawn = torch.ones(300, 2, 16, 16), draws(300, losses.DRAWS, dtype=torch.float32)
    made = losses.augmented(x, ("cutout",), drawn)
    holes = (made == 0).all(1)
    assert int(holes.sum((1, 2)).max()) == 64 and holes.any(2).any(1).all()
    sides = {(int(h.any(1).sum()), int(h.any(0).sum())) for h in holes}
    assert max(sides) == (8, 8) and min(a for a, _ in sides) >= 4


@pytest.mark.parametrize("change", ["colour", "translation", "cutout"])
def test_augmentation_lets_gradients_through(change):
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    drawn = draws(2, losses.DRAWS)
    assert torch.autograd.gradcheck(lambda y: losses.augmented(y, (change,), drawn), x)


# -- history ----------------------------------------------------------------------------------------------------------------


def pictures(*numbers):
    return torch.tensor([float(n) for n in numbers]).view(-1, 1, 1, 1)


def test_a_history_of_none_hands_back_what_it_is_given():
    fresh = torch.randn(3, 1, 1, 1, requires_grad=True)
    shown = History(0, (1, 1, 1)).exchange(fresh, draws(3, 2))
    assert torch.equal(shown, fresh) and not shown.requires_grad


def test_a_history_fills_first_then_exchanges_by_its_draws():
    history = History(3, (1, 1, 1))
    assert history.exchange(pictures(1, 2), draws(2, 2)).flatten().tolist() == [1, 2]
    drawn = torch.tensor([[0.0, 0.0], [0.4, 0.99], [0.6, 0.0], [0.49, 0.5]])  # the first only fills
    assert history.exchange(pictures(3, 4, 5, 6), drawn).flatten().tolist() == [3, 3, 5, 2]
    assert history.pictures.flatten().tolist() == [1, 6, 4]


def test_half_of_what_a_full_history_shows_is_old_and_any_of_it():
    history, size, rounds = History(10, (1, 1, 1)), 10, 4000
    history.exchange(pictures(*range(size)), draws(size, 2))
    ages = []
    for now in range(size, size + rounds):
        shown = int(history.exchange(pictures(now), draws(1, 2)))
        ages.append(now - shown)
    old = [age for age in ages if age]
    assert abs(len(old) / rounds - 0.5) < 0.04
    assert abs(sum(old) / len(old) - 2 * size) < 2.5  # a place is left with p = 1 / 2 size in each round


def test_a_history_is_kept_and_taken_up_with_a_state():
    one, other = History(4, (1, 2, 2)), History(4, (1, 2, 2))
    one.exchange(torch.randn(3, 1, 2, 2), draws(3, 2))
    other.load_state_dict(one.state_dict())
    fresh, drawn = torch.randn(5, 1, 2, 2), draws(5, 2)
    assert torch.equal(one.exchange(fresh, drawn), other.exchange(fresh, drawn))
    assert torch.equal(one.pictures, other.pictures)
