"""How a diffusion model is trained: autoencoder, CLIP, the denoiser on what these make of the data, and last, where the
recipe has it, the decoder once more against a critic. CLIP comes first where the autoencoder is judged by its features."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...autoencoders.codec import LatentScale
from ...base.contracts import Batch, Objective, Request, Source, StageJob, Trained
from ...base.errors import InputError
from ...base.files import fingerprint, fingerprint_tensors
from ...base.images import to_tensor
from ...base.runtime import derive_seed, seeded
from ...checkpoints.native import fill
from ...data.latents import LatentLoader, statistics, write_latents
from ...data.loader import Kept, Loader
from ...data.parted import ShuffledCaptions
from ...text.bert import Bert
from ...text.clip import Clip
from ...text.tokenizer import Tokenizer
from ...training.contrast import Contrast
from ...training.denoise import DenoiseObjective
from ...training.pairs import Critics, PairsObjective, PairsRecipe
from ...training.parallel import World
from ...training.plan import PACE
from ...training.reconstruct import Reconstruct
from ...training.sharpen import Sharpen
from .clips import given_folder, open_reader
from .kinds import Photographs, paired
from .painter import DiffusionPainter
from .recipe import Autoencoder, Backbone, DiffusionRecipe, ModelRecipe, Parts, StageRecipe, assemble

WORKERS = 2
PRIMING = 1024  # pictures whose principal components an autoencoder begins from, at most
PRIMING_PIXELS = 2**25  # of all of them together


@dataclass
class DiffusionWorkshop:
    """One training run of a diffusion model: gives out its stages in order, keeps what each of them made."""

    recipe: DiffusionRecipe
    source: Source
    folder: Path  # for caches
    world: World = World()
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        if self.recipe.data.captions == "shuffled":
            self.source = ShuffledCaptions(self.source)
        count, held = len(self.source), self.recipe.data.validation
        held = min(held, max(1, count // 5))
        order = np.random.default_rng(derive_seed("held out", self.source.fingerprint)).permutation(count)
        used = held + max(1, round((count - held) * self.recipe.data.share))
        self.held, self.kept = np.sort(order[:held]), np.sort(order[held:used])
        self.autoencoder: Autoencoder | None = None
        self.clip: Clip | Bert | None = None  # what reads the words
        self.tokenizer: Tokenizer | None = None
        self.denoiser: Backbone | None = None
        self.scale = LatentScale()
        other = self.recipe.data.photographs
        self.photographs = Photographs(other, self.recipe.data) if other is not None else None
        self._pictures = Kept(self.source, self.recipe.data.size, self.recipe.data.channels)  # by all stages

    # -- what the run asks for -----------------------------------------------------------------------------------------

    def shares(self) -> dict[str, float]:
        recipe = self.recipe
        first = {"autoencoder": recipe.autoencoder.share} if recipe.autoencoder is not None else {}
        text = {"text": recipe.text.share} if recipe.trains_text else {}
        last = {"decoder": recipe.decoder.share} if recipe.decoder is not None else {}
        return first | text | {"denoiser": recipe.denoiser.share} | last

    def jobs(self) -> Iterator[StageJob]:
        """Stages in order; each is asked for only after the one before has been accepted."""
        usual = {"source", "photographs"} | ({"share"} if self.recipe.data.share == 1 else set())
        recipe, data = self.recipe, [self.recipe.data.model_dump(exclude=usual), self.source.fingerprint]
        if self.photographs is not None:
            data.append(self.photographs.source.fingerprint)

        def job(name: str, stage: StageRecipe, made_with: list[Any], start: Any, keep: Any) -> StageJob:
            # Neither the share of a budget nor the pace of a loop makes another stage of it.
            own = stage.model_dump(exclude={"share": True, "loop": set(PACE)})
            return StageJob(name, stage.share, stage.loop, fingerprint([data, own, made_with]), start, keep)

        looks = recipe.autoencoder is not None and recipe.autoencoder.objective.perceptual > 0
        if looks:
            yield job("text", recipe.text, [], self._contrast, self._keep_clip)
        if recipe.autoencoder is not None:
            tower = self.clip.vision_model if looks and isinstance(self.clip, Clip) else None
            seen_by = [fingerprint_tensors(tower.state_dict())] if tower is not None else []
            yield job("autoencoder", recipe.autoencoder, seen_by, self._reconstruct, self._keep_autoencoder)
        if not recipe.trains_text:
            self.clip = self._given_clip()
        elif not looks:
            yield job("text", recipe.text, [], self._contrast, self._keep_clip)
        # Two trainings of one recipe come to different weights: what is built on them goes by the weights themselves.
        weights = [fingerprint_tensors(n.state_dict()) for n in (self.autoencoder, self.clip) if n is not None]
        self._latent_name = f"latents-{fingerprint([data, weights[:-1]])}.npy"
        yield job("denoiser", recipe.denoiser, [recipe.schedule, weights], self._denoise, self._keep_denoiser)
        if recipe.decoder is not None:
            yield job("decoder", recipe.decoder, weights[:1], self._sharpen, self._keep_autoencoder)

    def result(self) -> Trained:
        """What goes into the model folder."""
        recipe, parts = self.recipe, self.parts()
        return Trained(
            recipe.data.size, self.model_recipe().model_dump(mode="json"), parts.networks(),
            {"tokenizer.json": self._tokenizer().to_json()}, recipe.knobs, recipe.prompts,
        )  # fmt: skip

    def parts(self) -> Parts:
        """The finished networks, joined."""
        assert self.clip is not None and self.tokenizer is not None and self.denoiser is not None
        return assemble(
            self.model_recipe(),
            self.tokenizer,
            self.clip.text_model,
            self.clip.text_projection,
            self.denoiser,
            self.autoencoder,
            self.clip.looking(),
        )

    def model_recipe(self) -> ModelRecipe:
        recipe = self.recipe
        return ModelRecipe(
            autoencoder=recipe.autoencoder.network if recipe.autoencoder else None,
            scale=self.scale,
            picture_channels=recipe.data.channels,
            text=recipe.text.text.model_copy(update={"vocabulary": self._tokenizer().vocabulary}),
            image=self.clip.recipe.image if isinstance(self.clip, Clip) else None,
            pooled_width=recipe.text.shared_width,
            projected=isinstance(self.clip, Clip),
            denoiser=recipe.denoiser.network,
            mask_padding=recipe.denoiser.mask_padding,
            schedule=recipe.schedule,
            prediction=recipe.denoiser.objective.prediction,
        )

    # -- stages --------------------------------------------------------------------------------------------------------

    def _loader(self, batch: int, seed: int, subset: np.ndarray | None = None, shard: tuple[int, int] | None = None) -> Loader:
        data = self.recipe.data
        words: Literal["first", "any"] = "first" if data.captions == "first" else "any"
        return Loader(
            self.source, size=data.size, channels=data.channels, batch=batch, seed=seed, fit=data.fit, flip=data.flip,
            captions=words, workers=WORKERS, subset=subset, shard=shard or (self.world.rank, self.world.size),
            kept=self._pictures,
        )  # fmt: skip

    def _fixed(self) -> Batch:
        """The held-out pictures, always in the same order and words."""
        return self._loader(len(self.held), 0, self.held, (0, 1)).batch_at(0)

    def _batches(self, loader: Loader) -> Any:
        return lambda start: ({**b, "pixels": b["pixels"].to(self.device)} for b in loader.stream(start))

    def _reconstruct(self) -> tuple[Objective, Any, Batch]:
        stage = self.recipe.autoencoder
        assert stage is not None
        with seeded(stage.loop.seed, "autoencoder"):
            network = stage.network.build()
        if stage.network.straight:
            few = max(1, min(PRIMING, PRIMING_PIXELS // math.prod(self.recipe.data.size)))
            network.prime(self._loader(few, stage.loop.seed, self.kept, (0, 1)).batch_at(0)["pixels"])
        network.to(self.device)
        with seeded(stage.loop.seed, "critic"):
            critic = stage.critic.build().to(self.device) if stage.critic is not None else None
        features = self._features if stage.objective.perceptual else None
        loader = self._loader(stage.loop.batch, stage.loop.seed, self.kept)
        objective = Reconstruct(network, stage.objective, critic, features, self.world.gather)
        return objective, self._batches(loader), self._fixed()

    def _features(self, pixels: Tensor) -> list[Tensor]:
        """What each layer of CLIP's picture tower makes of every patch, as maps (B, width, S / patch, S / patch)."""
        assert isinstance(self.clip, Clip)
        tower = self.clip.vision_model
        side = tower.recipe.size // tower.recipe.patch
        vectors, maps = tower.pre_layrnorm(tower.embeddings(pixels)), []
        for layer in tower.encoder.layers:
            vectors = layer(vectors, False)
            maps.append(vectors[:, 1:].transpose(1, 2).unflatten(2, (side, side)))
        return maps

    def _sharpen(self) -> tuple[Objective, Any, Batch]:
        stage = self.recipe.decoder
        assert stage is not None and self.autoencoder is not None
        with seeded(stage.loop.seed, "critic"):
            critic = stage.critic.build().to(self.device)
        network = copy.deepcopy(self.autoencoder).requires_grad_(True)
        loader = self._loader(stage.loop.batch, stage.loop.seed, self.kept)
        return Sharpen(network, critic, stage.objective), self._batches(loader), self._fixed()

    def _keep_autoencoder(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        assert self.recipe.autoencoder is not None
        network = self.recipe.autoencoder.network.build()
        fill(network, tensors["autoencoder"], "autoencoder")  # a file's tensors lie on the CPU
        self.autoencoder = network.to(self.device).eval().requires_grad_(False)

    def _tokenizer(self) -> Tokenizer:
        """Learnt from every distinct caption of the data; the same data gives the same tokenizer."""
        text = self.recipe.text
        if self.tokenizer is None and text.given is not None:
            self.tokenizer = Tokenizer.read(given_folder(text.given) / "tokenizer.json", text.text.length)
        elif self.tokenizer is None:
            loader = self._loader(1, 0, shard=(0, 1))
            texts = sorted({caption for index in range(len(self.source)) for caption in loader.captions_of(index)})
            whole = text.words == "whole"
            length = text.text.length
            self.tokenizer = Tokenizer.whole(texts, length) if whole else Tokenizer.train(texts, text.vocabulary, length)
        return self.tokenizer

    def _given_clip(self) -> Clip | Bert:
        """What is not trained here: a CLIP as chance draws it, or what lies in a folder."""
        stage = self.recipe.text
        if stage.given is None:
            with seeded(stage.loop.seed, "clip"):
                return self._new_clip().eval().requires_grad_(False)
        clip, made, width = open_reader(given_folder(stage.given), stage.text)
        wanted = (stage.text.model_copy(update={"vocabulary": self._tokenizer().vocabulary}), stage.shared_width)
        if (made, width) != wanted:
            told = f"text.text and text.shared_width as in {stage.given}: {made.model_dump()}, {width}"
            raise InputError(told, f"{wanted[0].model_dump()}, {wanted[1]}")
        return clip.to(self.device).eval().requires_grad_(False)

    def _new_clip(self) -> Clip:
        clip = self.recipe.clip
        text = clip.text.model_copy(update={"vocabulary": self._tokenizer().vocabulary})
        return clip.model_copy(update={"text": text}).build().to(self.device)

    def _contrast(self) -> tuple[Objective, Any, Batch]:
        stage = self.recipe.text
        with seeded(stage.loop.seed, "clip"):
            clip = self._new_clip()
        tokenizer = self._tokenizer()
        objective = Contrast(clip, tokenizer, tokenizer.end, stage.objective, self.world.gather)
        return objective, self._batches(self._loader(stage.loop.batch, stage.loop.seed, self.kept)), self._fixed()

    def _keep_clip(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        clip = self._new_clip()
        fill(clip, tensors["clip"], "CLIP")
        self.clip = clip.to(self.device).eval().requires_grad_(False)

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Raw latents of pixels: mean and standard deviation; of pixels themselves where there is no autoencoder."""
        pixels = pixels.to(self.device)
        if self.autoencoder is None:
            return pixels, torch.zeros_like(pixels)
        belief = self.autoencoder.encode(pixels)
        return belief.mean, belief.spread

    def latents(self) -> Path:
        """The file of all latents, made if it is not there; also measures their scale."""
        path = self.folder / self._latent_name
        if self.world.leads:
            for _ in write_latents(path, self._loader(1, 0, shard=(0, 1)), self._encode):
                pass
        self.world.wait()
        if self.autoencoder is not None:
            mean, spread = statistics(path)
            self.scale = LatentScale(scale=1 / spread, shift=mean)
        return path

    def _denoise(self) -> tuple[Objective, Any, Batch]:
        stage = self.recipe.denoiser
        if stage.pairs is not None:
            return self._denoise_pairs(stage.pairs)
        path = self.latents()
        with seeded(stage.loop.seed, "denoiser"):
            network = stage.network.build().to(self.device)
        self.denoiser = network
        loader = LatentLoader(
            self._loader(stage.loop.batch, stage.loop.seed, self.kept), path, self.scale.scale, self.scale.shift
        )
        parts = self.parts()
        network.train().requires_grad_(True)
        told = stage.network.cross or stage.network.additive
        objective = DenoiseObjective(
            network, self.recipe.schedule.table(), stage.objective,
            (lambda texts: parts.condition(list(texts))) if told else None, lambda: self._preview(parts),
        )  # fmt: skip

        def batches(start: int) -> Iterator[Batch]:
            for batch in loader.stream(start):
                yield {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}

        held = loader.batch_of(np.zeros(len(self.held), dtype=np.int64), self.held)
        return objective, batches, held

    def _denoise_pairs(self, pairs: PairsRecipe) -> tuple[Objective, Any, Batch]:
        """Of paintings and photographs at once, on their pixels."""
        stage, photographs = self.recipe.denoiser, self.photographs
        assert photographs is not None
        with seeded(stage.loop.seed, "denoiser"):
            network = stage.network.build().to(self.device)
        with seeded(stage.loop.seed, "critic"):
            critics = Critics(stage.critic.build).to(self.device) if stage.critic is not None else None
        self.denoiser = network
        parts = self.parts()
        network.train().requires_grad_(True)
        objective = PairsObjective(
            network, self.recipe.schedule.table(), stage.objective, pairs, critics, lambda: self._preview(parts)
        )
        batch, seed, shard = stage.loop.batch, stage.loop.seed, (self.world.rank, self.world.size)
        ours = self._loader(batch, seed, self.kept)
        theirs = photographs.loader(batch, seed, photographs.kept, shard, WORKERS)
        return objective, lambda start: paired(ours, theirs, start, self.device), photographs.held_beside(self._fixed())

    def _preview(self, parts: Parts) -> Tensor:
        """Eight pictures per example prompt, noise fixed: what is compared from preview to preview."""
        prompts = self.recipe.prompts[:10] or ("",)
        painter = DiffusionPainter(parts, size=self.recipe.data.size, defaults=self.recipe.knobs, device=self.device)
        requests = [Request(prompt=p, seed=i, id=f"{p}/{i}") for p in prompts for i in range(8)]
        done = {e.id: e.artifact for e in painter.paint(requests) if hasattr(e, "artifact")}
        return torch.stack([to_tensor(done[r.id].pixels) for r in requests])

    def _keep_denoiser(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        if self.autoencoder is not None:
            self.latents()
        network = self.recipe.denoiser.network.build()
        fill(network, tensors["denoiser"], "denoiser")
        self.denoiser = network.to(self.device).eval().requires_grad_(False)
