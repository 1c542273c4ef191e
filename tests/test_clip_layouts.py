"""CLIP from elsewhere: published layouts against transformers on random weights, and how well pictures and words find
each other against torchmetrics."""

import json
import pickle
import random
import secrets
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from giverny.base.errors import InputError
from giverny.checkpoints.clip_layouts import TEXT, VISION, from_tensors, read_clip
from giverny.checkpoints.native import fill
from giverny.data.toy import ToyShapes
from giverny.text.clip import Clip, ClipImageRecipe, ClipRecipe, ClipTextRecipe
from giverny.text.tokenizer import Tokenizer
from giverny.training.contrast import Contrast, ContrastRecipe
from giverny.training.streams import StepStreams
from test_networks import TOLERANCE, randomise, relative

pytestmark = pytest.mark.xdist_group("oracles")  # one process pays for the import of the references

ODD = (
    dict(
        hidden_size=35, num_attention_heads=5, num_hidden_layers=2, intermediate_size=51, vocab_size=23,
        max_position_embeddings=9,
    ),
    dict(
        hidden_size=21, num_attention_heads=3, num_hidden_layers=3, intermediate_size=40, image_size=20, patch_size=5,
        num_channels=1,
    ),
    19,
)  # fmt: skip
HEADS_OF_64 = (
    dict(
        hidden_size=64, num_attention_heads=1, num_hidden_layers=3, intermediate_size=96, vocab_size=40,
        max_position_embeddings=8,
    ),
    dict(hidden_size=128, num_attention_heads=2, num_hidden_layers=2, intermediate_size=72, image_size=24, patch_size=8),
    24,
)  # fmt: skip


@pytest.fixture
def seed() -> int:
    return secrets.randbelow(2**31)


def published(sizes, seed, activation="quick_gelu"):
    """A CLIPModel of transformers with every tensor drawn non-zero."""
    from transformers import CLIPConfig, CLIPModel

    text, vision, shared = sizes
    end = text["vocab_size"] - 1
    config = CLIPConfig(
        text_config=dict(text, hidden_act=activation, eos_token_id=end, bos_token_id=end - 1, pad_token_id=0),
        vision_config=dict(vision, hidden_act=activation),
        projection_dim=shared,
    )
    return randomise(CLIPModel(config), seed).eval()


def check_same(theirs, values, tensors, seed):
    """Both towers' unit features and the temperature, on words and pictures drawn anew."""
    ours = fill(Clip(ClipRecipe(**values)), tensors, "CLIP").eval()
    text, vision = theirs.config.text_config, theirs.config.vision_config
    torch.manual_seed(seed)
    end = text.vocab_size - 1
    ids = torch.randint(0, end, (3, text.max_position_embeddings))
    for row, stop in enumerate((2, 4, 7)):
        ids[row, stop:] = end
    pixels = torch.randn(3, vision.num_channels, vision.image_size, vision.image_size)
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=pixels)
        assert relative(ours.text_features(ids, end), expected.text_embeds) < TOLERANCE, f"seed {seed}"
        assert relative(ours.image_features(pixels), expected.image_embeds) < TOLERANCE, f"seed {seed}"
        assert torch.equal(ours.logit_scale, theirs.logit_scale)


def openai_layout(theirs):
    """The same weights under OpenAI's names, written down tensor by tensor from OpenAI's model, not from our tables."""
    have, out = theirs.state_dict(), {}
    for ours, before, layers in (
        ("vision_model", "visual.transformer.", theirs.config.vision_config.num_hidden_layers),
        ("text_model", "transformer.", theirs.config.text_config.num_hidden_layers),
    ):
        for i in range(layers):
            layer, block = f"{ours}.encoder.layers.{i}.", f"{before}resblocks.{i}."
            for kind in ("weight", "bias"):
                three = [have[f"{layer}self_attn.{which}_proj.{kind}"] for which in "qkv"]
                out[f"{block}attn.in_proj_{kind}"] = torch.cat(three)
                out[f"{block}attn.out_proj.{kind}"] = have[f"{layer}self_attn.out_proj.{kind}"]
                out[f"{block}ln_1.{kind}"] = have[f"{layer}layer_norm1.{kind}"]
                out[f"{block}ln_2.{kind}"] = have[f"{layer}layer_norm2.{kind}"]
                out[f"{block}mlp.c_fc.{kind}"] = have[f"{layer}mlp.fc1.{kind}"]
                out[f"{block}mlp.c_proj.{kind}"] = have[f"{layer}mlp.fc2.{kind}"]
    for kind in ("weight", "bias"):
        out[f"visual.ln_pre.{kind}"] = have[f"vision_model.pre_layrnorm.{kind}"]
        out[f"visual.ln_post.{kind}"] = have[f"vision_model.post_layernorm.{kind}"]
        out[f"ln_final.{kind}"] = have[f"text_model.final_layer_norm.{kind}"]
    out["visual.class_embedding"] = have["vision_model.embeddings.class_embedding"]
    out["visual.positional_embedding"] = have["vision_model.embeddings.position_embedding.weight"]
    out["visual.conv1.weight"] = have["vision_model.embeddings.patch_embedding.weight"]
    out["visual.proj"] = have["visual_projection.weight"].T.contiguous()
    out["positional_embedding"] = have["text_model.embeddings.position_embedding.weight"]
    out["token_embedding.weight"] = have["text_model.embeddings.token_embedding.weight"]
    out["text_projection"] = have["text_projection.weight"].T.contiguous()
    out["logit_scale"] = have["logit_scale"]
    counters = dict(input_resolution=theirs.config.vision_config.image_size, context_length=8, vocab_size=40)
    return out | {name: torch.tensor(value) for name, value in counters.items()}


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("form", ["safetensors", "pickle"])
def test_a_transformers_folder_gives_the_same_features(form, activation, seed, tmp_path):
    theirs = published(ODD, seed, activation)
    theirs.save_pretrained(tmp_path)
    if form == "pickle":  # as older versions wrote it, with the positions' numbers among the weights
        (tmp_path / "model.safetensors").unlink()
        numbers = {f"{tower}.embeddings.position_ids": torch.arange(17)[None] for tower in ("text_model", "vision_model")}
        torch.save(theirs.state_dict() | numbers, tmp_path / "pytorch_model.bin")
    values, tensors = read_clip(tmp_path)
    assert values["text"]["activation"] == values["image"]["activation"] == activation
    assert (values["text"]["heads"], values["image"]["heads"], values["image"]["size"]) == (5, 3, 20)
    check_same(theirs, values, tensors, seed)


@pytest.mark.parametrize("form", ["state.pt", "state.safetensors", "half.pt"])
def test_openais_layout_gives_the_same_features(form, seed, tmp_path):
    theirs = published(HEADS_OF_64, seed)
    if form.startswith("half"):  # as OpenAI's files store them
        theirs = theirs.half().float()
    state = openai_layout(theirs)
    if form.startswith("half"):
        state = {k: v.half() if v.is_floating_point() and k != "logit_scale" else v for k, v in state.items()}
        state["logit_scale"] = theirs.logit_scale.detach()
    save = save_file if form.endswith("safetensors") else torch.save
    save(state, tmp_path / form)
    values, tensors = read_clip(tmp_path / form)
    assert all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors.values())
    assert len({t.untyped_storage().data_ptr() for t in tensors.values()}) == len(tensors)
    check_same(theirs, values, tensors, seed)


def test_one_file_in_transformers_layout_needs_no_config(seed, tmp_path):
    theirs = published(HEADS_OF_64, seed, "gelu")
    save_file(dict(theirs.state_dict()), tmp_path / "clip.safetensors")
    check_same(theirs, *read_clip(tmp_path / "clip.safetensors", "gelu"), seed)
    assert read_clip(tmp_path / "clip.safetensors")[0]["text"]["activation"] == "quick_gelu"  # OpenAI's, where nothing is said


def test_sizes_of_vit_b_32():
    """FashionCLIP and OpenAI's ViT-B/32; the config says nothing, as transformers writes it where all is as usual."""
    from transformers import CLIPTextConfig, CLIPVisionConfig

    for said, theirs in ((TEXT, CLIPTextConfig()), (VISION, CLIPVisionConfig())):
        assert {name: getattr(theirs, name) for name in said} == said
    image = ClipImageRecipe(width=768, layers=12, heads=12, inner=3072, patch=32)
    wanted = ClipRecipe(text=ClipTextRecipe(width=512, heads=8, inner=2048), image=image, shared_width=512)
    with torch.device("meta"):
        clip = Clip(wanted)
    assert sum(p.numel() for p in clip.parameters()) == 151_277_313
    for config in ({"model_type": "clip", "text_config": {}, "vision_config": {}}, None):
        values, tensors = from_tensors(clip.state_dict(), config)
        assert ClipRecipe(**values) == wanted and tensors.keys() == clip.state_dict().keys()


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_no_file_runs_code(tmp_path):
    torch.save({"logit_scale": torch.ones(()), "bomb": Bomb(tmp_path / "went off")}, tmp_path / "clip.pt")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"bomb": Bomb(tmp_path / "went off")}, protocol=2))
    for name in ("clip.pt", "plain.bin"):
        with pytest.raises(InputError, match="tensors alone"):
            read_clip(tmp_path / name)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), tmp_path / "archive.pt")
    with pytest.raises(InputError, match="TorchScript archive, which is a program"):
        read_clip(tmp_path / "archive.pt")
    assert not (tmp_path / "went off").exists()


def test_what_does_not_fit_is_refused(seed, tmp_path):
    theirs = published(HEADS_OF_64, seed)
    state, openai = dict(theirs.state_dict()), openai_layout(theirs)
    layer = "text_model.encoder.layers.1.mlp.fc2.bias"
    for wrong, words in (
        (state | {"text_model.adapter.weight": torch.ones(2)}, "0 missing, 1 unknown .text_model.adapter.weight"),
        ({k: v for k, v in state.items() if k != layer}, f"1 missing, 0 unknown .{layer}"),
        ({k: v for k, v in state.items() if "layers.0." not in k}, "missing"),
        (openai | {"visual.transformer.resblocks.0.ls_1.gamma": torch.ones(2)}, "resblocks.0.ls_1.gamma among them"),
        (openai | {"logit_bias": torch.ones(())}, "logit_bias among them"),
        ({k: v for k, v in openai.items() if "resblocks.0.attn.in_proj_bias" not in k}, "missing"),
        ({"layer1.0.conv1.weight": torch.ones(1)}, "CLIP with two transformers"),
        (state | {"vision_model.embeddings.position_embedding.weight": torch.ones(9, 128)}, "square"),
        (state | {"text_projection.weight": torch.ones(3)}, "2 dimensions"),
    ):
        with pytest.raises(InputError, match=words):
            from_tensors(wrong)
    with pytest.raises(InputError, match="heads of 64"):
        from_tensors(published(ODD, seed).state_dict())
    with pytest.raises(InputError, match="did you mean 'gelu'"):
        from_tensors(state, activation="gelus")
    theirs.save_pretrained(tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    for change, words in (
        ({"text_config": whole["text_config"] | {"num_hidden_layers": 5}}, "num_hidden_layers = 5; given 3"),
        ({"vision_config": whole["vision_config"] | {"hidden_act": "silu"}}, "known activation; given 'silu'"),
        ({"vision_config": whole["vision_config"] | {"num_attention_heads": 3}}, "divide 128; given 3"),
        ({"text_config": whole["text_config"] | {"layer_norm_eps": 1e-6}}, "layer_norm_eps"),
        ({"text_config_dict": {}}, "hidden_size = 512; given 64"),  # goes before text_config, and says: all as usual
        ({"projection_dim": 25}, "projection_dim = 25; given 24"),
        ({"model_type": "siglip"}, "config of a CLIP; given 'siglip'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(whole | change))
        with pytest.raises(InputError, match=words):
            read_clip(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="readable config"):
        read_clip(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="readable safetensors"):
        read_clip(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model.safetensors or pytorch_model.bin; given .* without it"):
        read_clip(tmp_path)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "run.pt")
    with pytest.raises(InputError, match=r"names and tensors; given .*epoch, state_dict"):
        read_clip(tmp_path / "run.pt")
    with pytest.raises(InputError, match="not there"):
        read_clip(Path("nowhere.pt"))


@pytest.mark.parametrize("labels", ["some", "one class", "none"])
def test_validation_of_clip_equals_torchmetrics(labels, seed):
    """Recall both ways, and classification by the captions' means, of a CLIP with random weights."""
    from torchmetrics.classification import MulticlassAccuracy
    from torchmetrics.retrieval import RetrievalHitRate

    source = ToyShapes(count=40, size=8)
    samples = [source.read(i) for i in range(40)]
    rng = random.Random(seed)
    captions = [rng.choice(s.captions) for s in samples]  # some said of one picture, some of many
    tokenizer = Tokenizer.train(sorted(set(captions)), 600, 12)
    text = ClipTextRecipe(width=16, layers=1, heads=2, inner=32, length=12, vocabulary=tokenizer.vocabulary)
    image = ClipImageRecipe(width=16, layers=1, heads=2, inner=32, size=8, patch=4)
    clip = randomise(Clip(ClipRecipe(text=text, image=image, shared_width=16)), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    batch = {"pixels": torch.rand(40, 3, 8, 8, generator=generator) * 2 - 1, "captions": captions}
    if labels == "some":
        batch["labels"] = torch.randint(-1, 4, (40,), generator=generator) * 3  # classes 0, 3, 6, 9; -3: not known
    if labels == "one class":
        batch["labels"] = torch.where(torch.arange(40) < 20, 2, -1)
    contrast = Contrast(clip, tokenizer, tokenizer.end, ContrastRecipe())
    with torch.no_grad():
        given = contrast.validate(batch, StepStreams(seed, 0, 0, 40))
        names = sorted(set(captions), key=captions.index)
        words = clip.text_features(tokenizer(names).ids, tokenizer.end)
        pictures = clip.image_features(batch["pixels"])
    expected = {}
    own = torch.tensor([[names[j] == caption for j in range(len(names))] for caption in captions])
    for name, similar, right in (
        ("retrieval", pictures @ words.T, own),
        ("retrieval_back", words @ pictures.T, own.T),
    ):
        queries = torch.arange(len(similar))[:, None].expand_as(similar).flatten()
        for k, ending in ((1, ""), (5, "_5")):
            rate = RetrievalHitRate(top_k=k)
            expected[name + ending] = rate(similar.flatten(), right.flatten(), queries)
    if labels == "some":
        known = [i for i in range(40) if batch["labels"][i] >= 0]
        classes = sorted({int(batch["labels"][i]) for i in known})
        prompts = []
        for label in classes:
            said = {captions[i] for i in known if batch["labels"][i] == label}
            prompts.append(F.normalize(sum(words[names.index(c)] for c in said), dim=0))
        guess = (pictures[known] @ torch.stack(prompts).T).argmax(1)
        truth = torch.tensor([classes.index(int(batch["labels"][i])) for i in known])
        by_class = MulticlassAccuracy(len(classes), average="none")(guess, truth)
        expected |= {"zero_shot": by_class.mean(), "zero_shot_least": by_class.min()}
    assert given.keys() == expected.keys()
    for name, value in expected.items():
        assert abs(float(given[name]) - float(value)) < 1e-6, f"seed {seed}: {name}"
