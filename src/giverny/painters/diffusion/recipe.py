"""What a diffusion model is made of and how it is trained: the recipe behind a TOML file, and the building of its parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, Tag, model_serializer, model_validator
from torch import Tensor, nn

from ...autoencoders.codec import LatentCodec, LatentScale, PixelCodec
from ...autoencoders.critic import CriticRecipe
from ...autoencoders.kl import KLAutoencoder, KLRecipe
from ...autoencoders.vq import VQAutoencoder, VQRecipe
from ...base.contracts import Codec, Condition, Frozen
from ...base.errors import InputError
from ...base.knobs import by_family
from ...base.tensors import unfilled
from ...checkpoints.native import fill
from ...data.loader import Fit
from ...denoisers.dit import DiT, DiTRecipe
from ...denoisers.double_unet import DoubleUNet, DoubleUNetRecipe
from ...denoisers.precondition import DiscreteDenoiser
from ...denoisers.simple_unet import Plain, SimpleUNet, SimpleUNetRecipe
from ...denoisers.unet import UNet, UNetRecipe
from ...sampling.schedules import ScheduleRecipe
from ...text.bert import BertRecipe, BertText
from ...text.clip import ClipImageRecipe, ClipRecipe, ClipText, ClipTextEncoder, ClipTextRecipe
from ...text.pair import ClipPairEncoder
from ...text.tokenizer import Tokenizer
from ...training.contrast import ContrastRecipe
from ...training.denoise import DenoiseRecipe
from ...training.loop import LoopRecipe
from ...training.pairs import PairsRecipe
from ...training.reconstruct import ReconstructRecipe
from ...training.sharpen import SharpenRecipe
from .inpainting import fed

Autoencoder = KLAutoencoder | VQAutoencoder
Backbone = UNet | DiT | SimpleUNet | DoubleUNet  # a denoiser's

AutoencoderRecipe = Annotated[Annotated[KLRecipe, Tag("kl")] | Annotated[VQRecipe, Tag("vq")], by_family("kl")]
TowerRecipe = Annotated[
    Annotated[ClipTextRecipe, Tag("clip-text")] | Annotated[BertRecipe, Tag("bert")], by_family("clip-text")
]  # of what reads
BackboneRecipe = Annotated[
    Annotated[UNetRecipe, Tag("unet")]
    | Annotated[DiTRecipe, Tag("dit")]
    | Annotated[SimpleUNetRecipe, Tag("simple")]
    | Annotated[DoubleUNetRecipe, Tag("double")],
    by_family("unet"),
]


def step_of(autoencoder: KLRecipe | VQRecipe | None, network: UNetRecipe | DiTRecipe | Plain) -> int:
    """What the sides of a picture are divisible by: pixels along a latent, times latents along a transformer's place, or along
    the lowest place of a plain U-Net."""
    along = network.patch if isinstance(network, DiTRecipe) else network.step if isinstance(network, Plain) else 1
    return (autoencoder.factor if autoencoder is not None else 1) * along


class DataRecipe(Frozen):
    source: str = Field(description="a named set (see `giverny data`) or a path to pictures")
    photographs: str | None = Field(None, description="pictures of the other kind, where denoiser.pairs learns two kinds")
    size: tuple[int, int] = Field((32, 32), description="width and height that pictures are brought to")
    channels: Literal[1, 3] = Field(3, description="1 grey, 3 colour")
    fit: Fit = Field("crop", description="how pictures are brought to size")
    flip: bool = Field(False, description="mirror half of the pictures")
    captions: Literal["first", "any", "shuffled"] = Field(
        "any", description="the first caption of a picture, or any of them; shuffled: another picture's, as a control"
    )
    share: float = Field(
        1.0, gt=0, le=1, description="part of the training pictures, of both kinds, that is used; the larger hold the smaller"
    )
    validation: int = Field(256, ge=1, description="pictures held out of training, for validation")


class StageRecipe(Frozen):
    share: float = Field(1.0, gt=0, description="part of the time budget, relative to the other stages")
    loop: LoopRecipe = LoopRecipe()


class AutoencoderStage(StageRecipe):
    network: AutoencoderRecipe
    critic: CriticRecipe | None = Field(None, description="joins where the objective says; None: no critic")
    objective: ReconstructRecipe = ReconstructRecipe()


class DecoderStage(StageRecipe):
    """The decoder taught further by a critic, to paint sharply; latents keep their meaning."""

    critic: CriticRecipe
    objective: SharpenRecipe = SharpenRecipe()


class TextStage(StageRecipe):
    """How words are read. What `learn` and `given` leave out is not trained, and takes nothing of a budget."""

    vocabulary: int = Field(1024, ge=514, description="tokens of the byte-pair tokenizer, learnt from the captions")
    words: Literal["pieces", "whole"] = Field(
        "pieces", description="whole: every caption is one token, as a class has a number; no other words are understood"
    )
    learn: bool = Field(True, description="train CLIP on the captions; false: its words' side stays as chance drew it")
    given: str | None = Field(
        None, description="a trained CLIP instead: folder in transformers' layout, or a model's with CLIP beside it; or a BERT "
        "in transformers' layout, by folder or by its name in data/weights.py; text.text has its sizes"
    )  # fmt: skip
    text: TowerRecipe
    image: ClipImageRecipe
    shared_width: int = Field(64, ge=1)
    objective: ContrastRecipe = ContrastRecipe()


class DenoiserStage(StageRecipe):
    network: BackboneRecipe
    objective: DenoiseRecipe = DenoiseRecipe()
    pairs: PairsRecipe | None = Field(None, description="learn two kinds, data.source and data.photographs, at once")
    critic: CriticRecipe | None = Field(None, description="looks at middle pieces, where pairs.adversarial is above 0")
    mask_padding: bool = Field(True, description="hide the padding after a caption from cross-attention")


def nothing_said(recipe: dict[str, Any]) -> TextStage:
    """The least there is to read words with, as chance draws it: for a denoiser that is told nothing. It is not trained."""
    data = recipe["data"]
    sizes = {"width": 8, "layers": 1, "heads": 1, "inner": 8}
    image = ClipImageRecipe(**sizes, size=data.size[0], patch=math.gcd(data.size[0], 8), channels=data.channels)
    return TextStage(vocabulary=514, learn=False, text=ClipTextRecipe(**sizes, length=8), image=image, shared_width=8)


class DiffusionRecipe(Frozen):
    """Latent diffusion in stages: autoencoder, CLIP, denoiser, and last (optional) the decoder once more, against a critic.
    Without an autoencoder it works on pixels."""

    family: Literal["diffusion"] = "diffusion"
    name: str
    title: str = ""
    licence: str = Field("", description="of the weights that come out")
    budget: float | None = Field(None, gt=0, description="seconds for all stages together; None: each stage's own steps")
    data: DataRecipe
    schedule: ScheduleRecipe = ScheduleRecipe()
    autoencoder: AutoencoderStage | None = None
    decoder: DecoderStage | None = None
    text: TextStage = Field(default_factory=nothing_said, description="left out where the denoiser is told nothing")
    denoiser: DenoiserStage
    knobs: dict[str, Any] = Field(default_factory=dict, description="the model's own painting defaults")
    prompts: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> DiffusionRecipe:
        net, text = self.denoiser.network, self.text.text
        if "text" not in self.model_fields_set and (net.cross or net.additive):
            raise ValueError("[text] is wanted, for a denoiser that is told words")
        step = step_of(self.autoencoder.network if self.autoencoder is not None else None, net)
        if self.autoencoder is not None:
            wanted = self.autoencoder.network.latent_channels
            if self.autoencoder.network.picture_channels != self.data.channels:
                raise ValueError(f"autoencoder.network.picture_channels wants to be data.channels = {self.data.channels}")
            if self.autoencoder.critic and self.autoencoder.critic.picture_channels != self.data.channels:
                raise ValueError(f"autoencoder.critic.picture_channels wants to be data.channels = {self.data.channels}")
        else:
            wanted = self.data.channels
        if any(side % step for side in self.data.size):
            patch = f" (the denoiser's patch is {net.patch})" if isinstance(net, DiTRecipe) else ""
            raise ValueError(f"data.size wants sides divisible by {step}{patch}, given {self.data.size}")
        if (net.in_channels, net.out_channels) != (wanted, wanted):
            raise ValueError(f"denoiser.network wants in_channels = out_channels = {wanted}")
        if self.decoder is not None:
            if self.autoencoder is None:
                raise ValueError("a decoder stage wants an autoencoder stage before it")
            if self.decoder.critic.picture_channels != self.data.channels:
                raise ValueError(f"decoder.critic.picture_channels wants to be data.channels = {self.data.channels}")
        if net.cross and net.context_width != text.width:
            raise ValueError(f"denoiser.network.context_width wants to be text.text.width = {text.width}")
        if net.additive and net.pooled_width != self.text.shared_width:
            raise ValueError(f"denoiser.network.pooled_width wants to be text.shared_width = {self.text.shared_width}")
        if isinstance(text, BertRecipe) and (self.text.given is None or self.text.shared_width != text.width):
            raise ValueError("a BERT is not trained here: name it in text.given, and let text.shared_width be its width")
        if self.text.given is not None and (self.text.words == "whole" or not self.text.learn):
            raise ValueError("text.given brings its own words and is not trained: leave text.words and text.learn as they are")
        if self.autoencoder is not None and self.autoencoder.objective.perceptual > 0 and not self.trains_text:
            raise ValueError("autoencoder.objective.perceptual looks with CLIP's picture tower, which is not trained here")
        seen = self.text.image
        if self.trains_text and (seen.channels, (seen.size,) * 2) != (self.data.channels, self.data.size):
            raise ValueError(f"text.image wants size and channels of data, {self.data.size} and {self.data.channels}")
        return self

    @model_validator(mode="after")
    def _of_two_kinds(self) -> DiffusionRecipe:
        net, pairs, critic = self.denoiser.network, self.denoiser.pairs, self.denoiser.critic
        two = isinstance(net, DoubleUNetRecipe) or (isinstance(net, SimpleUNetRecipe) and net.kinds == 2)
        other = self.data.photographs is not None
        told = {"a network of two kinds": two, "denoiser.pairs": pairs is not None, "data.photographs": other}
        if any(told.values()) != all(told.values()):
            missing = [name for name, there in told.items() if not there]
            raise ValueError(f"two kinds of pictures want {', '.join(told)}; missing: {', '.join(missing)}")
        if pairs is not None and self.autoencoder is not None:
            raise ValueError("denoiser.pairs works on pixels: leave out the autoencoder")
        if pairs is not None and pairs.sees_middle and not isinstance(net, DoubleUNetRecipe):
            raise ValueError("denoiser.pairs weighs a middle piece, which a network of family 'double' alone has")
        if (pairs is not None and pairs.adversarial > 0) != (critic is not None):
            raise ValueError("denoiser.critic and pairs.adversarial above 0 want each other")
        if critic is not None and critic.picture_channels != self.data.channels:
            raise ValueError(f"denoiser.critic.picture_channels wants to be data.channels = {self.data.channels}")
        return self

    @property
    def trains_text(self) -> bool:
        return self.text.learn and self.text.given is None

    @property
    def clip(self) -> ClipRecipe:
        """Of what is trained here, or drawn by chance."""
        assert isinstance(self.text.text, ClipTextRecipe)
        return ClipRecipe(text=self.text.text, image=self.text.image, shared_width=self.text.shared_width)


class SecondText(Frozen):
    """What Stable Diffusion XL reads with beside its first text tower, see `text/pair.py`."""

    text: ClipTextRecipe
    pad: int = Field(0, ge=0, description="the token after a text's end, which is not the first tower's")


class ModelRecipe(Frozen):
    """The part of a recipe that a finished model needs, as kept on its card."""

    autoencoder: AutoencoderRecipe | None
    scale: LatentScale = LatentScale()
    picture_channels: int = 3
    text: TowerRecipe
    image: ClipImageRecipe | None = None  # CLIP's picture tower, which does not paint; None in models without it
    pooled_width: int
    projected: bool = True  # whether pooled vectors go through a projection; not in Stable Diffusion 1 and 2
    second: SecondText | None = None  # in Stable Diffusion XL, whose pooled vector is followed by sizes (`sizes.py`)
    denoiser: BackboneRecipe
    mask_padding: bool
    schedule: ScheduleRecipe
    prediction: Literal["epsilon", "v", "sample"]

    @property
    def read_width(self) -> int:
        """Of the vectors that words come to."""
        return self.text.width + (self.second.text.width if self.second else 0)

    @model_serializer(mode="wrap")
    def _told(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Models of one text tower are written, and named, as they were before there were others."""
        return {name: value for name, value in plain(self).items() if value is not None or name != "second"}


@dataclass(frozen=True)
class Parts:
    """The networks of a diffusion model, put together; nothing in here changes while it paints."""

    recipe: ModelRecipe
    encoder: ClipTextEncoder
    network: Backbone
    denoiser: DiscreteDenoiser
    codec: Codec
    autoencoder: Autoencoder | None
    looking: nn.Module | None  # CLIP's picture side, where it is to be stored; None in a painter

    def networks(self) -> dict[str, nn.Module]:
        """What a model folder stores, by name."""
        found: dict[str, nn.Module] = {"text": self.encoder.tower, "denoiser": self.network}
        further = {"projection": self.encoder.projection, "autoencoder": self.autoencoder, "image": self.looking}
        if isinstance(self.encoder, ClipPairEncoder):
            further["text_2"] = self.encoder.second
        return found | {name: network for name, network in further.items() if network is not None}

    @property
    def step(self) -> int:
        """What the sides of a picture want to be divisible by."""
        return step_of(self.recipe.autoencoder, self.recipe.denoiser)

    def condition(self, texts: list[str]) -> Condition:
        """What the denoiser is told about these texts; sizes follow while painting (`sizes.py`)."""
        with torch.no_grad():
            encoded = self.encoder.encode(texts)
        net = self.recipe.denoiser
        return Condition(
            vectors=encoded.vectors if net.cross else None,
            mask=encoded.mask if net.cross and self.recipe.mask_padding else None,
            pooled=encoded.pooled if net.additive else None,
        )


def networks_of(recipe: ModelRecipe, weights: Mapping[str, Mapping[str, Tensor]]) -> dict[str, nn.Module]:
    """The networks that paint, by name, made over these very tensors. Raises InputError where one does not fit."""
    with unfilled():
        made: dict[str, nn.Module] = {"text": recipe.text.build(), "denoiser": recipe.denoiser.build()}
        last = recipe.second.text if recipe.second else recipe.text
        if recipe.second:
            made["text_2"] = recipe.second.text.build()
        if recipe.projected:
            made["projection"] = nn.Linear(last.width, recipe.pooled_width, bias=False)
        if recipe.autoencoder is not None:
            made["autoencoder"] = recipe.autoencoder.build()
    return {name: fill(network, weights.get(name, {}), name) for name, network in made.items()}


def assemble(
    recipe: ModelRecipe,
    tokenizer: Tokenizer,
    tower: ClipText | BertText,
    projection: nn.Linear | None,
    network: Backbone,
    autoencoder: Autoencoder | None,
    looking: nn.Module | None = None,
    second: ClipText | None = None,
) -> Parts:
    """Join trained networks, in evaluation mode."""
    for part in (tower, projection, network, autoencoder, looking, second):
        if part is not None:
            part.eval().requires_grad_(False)
    codec: Codec
    if recipe.autoencoder is not None and autoencoder is not None:
        codec = LatentCodec(autoencoder, recipe.autoencoder.latent_channels, recipe.autoencoder.factor, recipe.scale)
    else:
        codec = PixelCodec(recipe.picture_channels)
    precision = next(network.parameters()).dtype
    seen = fed(network, recipe.denoiser.in_channels, codec)
    denoiser = DiscreteDenoiser(seen, recipe.schedule.table(), recipe.prediction, precision=precision)
    encoder = ClipTextEncoder(tower, tokenizer, projection)
    if recipe.second is not None:
        assert isinstance(tower, ClipText) and second is not None and projection is not None
        encoder = ClipPairEncoder(tower, second, tokenizer, projection, recipe.second.pad)
    if recipe.text.vocabulary < tokenizer.vocabulary:
        raise InputError(f"a tokenizer of at most {recipe.text.vocabulary} tokens", str(tokenizer.vocabulary))
    return Parts(recipe, encoder, network, denoiser, codec, autoencoder, looking)
