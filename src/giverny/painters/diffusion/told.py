"""What the denoiser is told over a run about the pictures painted together: the same all along, or as their prompts change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ...base.contracts import Condition, ConditionPlan, Request
from ...base.errors import InputError
from ...steering.between import between
from ...steering.guidance import StagedPlan, classifier_free, composed
from ...text.chunks import Inversions
from ...text.encoding import conditions, encode
from ...text.prompting import PromptPlan, PromptSettings, prompt_plan
from .knobs import DiffusionKnobs
from .recipe import Parts
from .sizes import silenced

# (steps of this run, those of the run before over the same pictures or None) -> conditions over it
Plans = Callable[[int, int | None], ConditionPlan]


def steady(knobs: DiffusionKnobs, positive: Condition, negative: Condition) -> Plans:
    """The same two conditions all along."""
    plan = classifier_free(positive, negative, knobs.guidance, (knobs.guidance_from, knobs.guidance_to))
    return lambda steps, before: plan


class Prompts:
    """The prompts of requests, read in the dialect that these knobs name. Raises InputError for what the model cannot do.

    parts: under the LoRAs that the prompts call, where these are to be encoded. inversions: words of textual inversion.
    """

    def __init__(
        self,
        parts: Parts,
        knobs: DiffusionKnobs,
        requests: Sequence[Request],
        inversions: Inversions | None = None,
        read: tuple[list[PromptPlan], list[PromptPlan]] | None = None,  # `read` of these requests, where it is known
    ) -> None:
        self.parts, self.knobs, self.requests, self.inversions = parts, knobs, requests, inversions
        self.settings = PromptSettings(
            dialect=knobs.dialect,
            emphasis=knobs.emphasis,
            clip_skip=knobs.clip_skip,
            windows=knobs.windows,
            backtrack=knobs.comma_backtrack,
            old_timelines=knobs.old_timelines,
        )
        self.read = here, there = read or self._read(knobs.steps, None)
        layers = parts.encoder.layers
        if knobs.clip_skip > layers:
            raise InputError(f"a clip_skip from 1 to {layers}, the layers of this model's text tower", str(knobs.clip_skip))
        if any(a.calls != b.calls for a, b in zip(here, there, strict=True)):
            raise InputError(
                "the same adapters at both ends of a way between prompts", "others", "write the same <...> in both"
            )
        if any(r.toward for r in requests) and any(len(plan.positive) > 1 for plan in (*here, *there)):
            raise InputError("prompts without AND for a way from one to another", "one with", "write them as one prompt")
        self.plain = all(plan.plain for plan in (*here, *there))
        self.weights = here[0].weights  # of what AND joins
        texts = {text for r in requests for text in (r.prompt, r.negative, *([r.toward.prompt] if r.toward else ()))}
        changing = not self.plain and any("[" in text for text in texts)
        self.calls = here[0].calls  # of adapters
        self.inverted = [_inverted(*told) for told in zip(here, there, strict=True)]  # words of textual inversion, by picture
        # What pictures have to share to be painted together: each of them is asked of the network at the steps it would be
        # asked alone, even where guidance is kept for some of them.
        self.shape = self.weights, self.calls, frozenset(texts) if changing else frozenset()
        self.spoken = [_spoken(*told) for told in zip(requests, here, there, strict=True)]

    @classmethod
    def joined(cls, prompts: Sequence[Prompts]) -> Prompts:
        """Those of several requests, of equal parts, knobs and shape, as one; nothing is read again."""
        first, *more = prompts
        if not more:
            return first
        vectors = {word: v for p in prompts if p.inversions for word, v in p.inversions.vectors.items()}
        inversions = Inversions(first.parts.encoder.tokenizer, vectors) if vectors else None
        read = [plan for p in prompts for plan in p.read[0]], [plan for p in prompts for plan in p.read[1]]
        return cls(first.parts, first.knobs, [r for p in prompts for r in p.requests], inversions, read)

    def _read(self, steps: int, before: int | None) -> tuple[list[PromptPlan], list[PromptPlan]]:
        """The plans of all prompts, and of what they lie on the way to; a prompt itself where that is nothing."""

        def read(prompt: str, negative: str) -> PromptPlan:
            return prompt_plan(prompt, negative, self.settings, self.parts.encoder.tokenizer, steps, before, self.inversions)

        here = [read(r.prompt, r.negative) for r in self.requests]
        there = [read(r.toward.prompt, r.negative) if r.toward else p for r, p in zip(self.requests, here, strict=True)]
        return here, there

    def plans(self, device: torch.device, precision: torch.dtype) -> Plans:
        return lambda steps, before: self._plan(steps, before, device, precision)

    def _plan(self, steps: int, before: int | None, device: torch.device, precision: torch.dtype) -> ConditionPlan:
        here, there = self._read(steps, before)
        walking = any(r.toward for r in self.requests)
        read = encode([*here, *there] if walking else here, self.parts.encoder, self.inversions)
        starts = sorted({call for plan in (*here, *there) for call in plan.stretches(steps)})
        knobs, net = self.knobs, self.parts.recipe.denoiser

        def plan_at(call: int) -> ConditionPlan:
            moments = [encoded.at(call) for encoded in read]
            if walking:  # both ends as two lines, which gives them one length
                starting, ending = moments[: len(here)], moments[len(here) :]
                moments = [((*a[0], *b[0]), a[1]) for a, b in zip(starting, ending, strict=True)]
            told, negative = conditions(moments, self.parts.recipe.mask_padding, net.cross, net.additive)
            if walking:
                told = (between(told[0], told[1], [r.toward for r in self.requests]),)
            negative = silenced(self.parts.recipe, knobs, self.requests, negative)
            positive = [(c.to(device, precision), weight) for c, weight in zip(told, self.weights, strict=True)]
            interval = knobs.guidance_from, knobs.guidance_to
            return composed(positive, negative.to(device, precision), knobs.guidance, interval)

        made: dict[object, ConditionPlan] = {}
        staged = []
        for call in starts:
            key = tuple(plan.at(call) for plan in (*here, *there))
            if key not in made:  # what takes turns is prepared once
                made[key] = plan_at(call)
            staged.append(made[key])
        return StagedPlan(starts, staged)


def _inverted(*plans: PromptPlan) -> tuple[str, ...]:
    chunks = (chunk for plan in plans for line in plan.lines for read in line.chunks for chunk in read)
    return tuple(dict.fromkeys(place.name for chunk in chunks for place in chunk.placed))


def _spoken(request: Request, here: PromptPlan, there: PromptPlan) -> Request:
    """A request whose prompts are words alone, for a CLIP that guides."""
    toward = request.toward.model_copy(update={"prompt": there.words}) if request.toward else None
    return request.model_copy(update={"prompt": here.words, "toward": toward})
