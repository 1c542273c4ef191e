"""BERT's encoder: the same numbers as transformers' on sizes drawn anew, published folders, a denoiser that reads with it."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from giverny.assembly import load_recipe, open_painter, train
from giverny.assembly.opening import open_clip
from giverny.base.contracts import Request
from giverny.base.errors import InputError
from giverny.checkpoints.bert_layout import is_bert, read_bert
from giverny.painters.diffusion.clips import open_reader
from giverny.painters.diffusion.family import tiny
from giverny.pipelines.text2image import collect
from giverny.text.bert import BertRecipe
from giverny.text.clip import ClipTextEncoder
from giverny.text.tokenizer import Tokenizer
from giverny.text.towers import Insert

WORDS = ["a", "red", "dress", "blue", "shirt", "##s", "photo", "of"]


def write_bert(folder: Path, width: int = 16, layers: int = 2, heads: int = 2, inner: int = 24):
    """A random BERT as transformers writes it, and that BERT."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel

    symbols = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    config = BertConfig(
        vocab_size=len(symbols), hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=inner, max_position_embeddings=20,
    )  # fmt: skip
    model = BertModel(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(std=0.5)
    model.save_pretrained(folder)
    inner_tokenizer = Inner(models.WordPiece({s: i for i, s in enumerate(symbols)}, unk_token="[UNK]"))
    inner_tokenizer.normalizer, inner_tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner_tokenizer.add_special_tokens(symbols[:4])
    inner_tokenizer.save(str(folder / "tokenizer.json"))
    return model


def test_the_encoder_is_that_of_transformers(tmp_path):
    from transformers import BertTokenizerFast

    for number in range(4):
        heads = random.randint(1, 3)
        folder = tmp_path / str(number)
        model = write_bert(folder, 8 * heads, random.randint(1, 3), heads, random.randint(4, 30))
        assert is_bert(folder)
        bert, made, width = open_reader(folder, BertRecipe(length=9))
        assert isinstance(made, BertRecipe) and made.length == 9 and width == made.width == 8 * heads
        texts = ["a red dress", "", "A photo of BLUE shirts", "a green dress of a red shirt, a blue dress of a dress"]
        tokenizer = Tokenizer.read(folder / "tokenizer.json", 9)
        encoded = ClipTextEncoder(bert.text_model, tokenizer).encode(texts)
        theirs = BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))(
            texts, padding="max_length", truncation=True, max_length=9, return_tensors="pt"
        )
        assert torch.equal(encoded.tokens, theirs["input_ids"]) and torch.equal(encoded.mask, theirs["attention_mask"].bool())
        with torch.no_grad():
            wanted = model(**theirs).last_hidden_state
        seen = encoded.mask
        scale = wanted[seen].abs().max()
        assert (encoded.vectors[seen] - wanted[seen]).abs().max() < 1e-5 * scale
        # sentence-transformers' pooling
        mean = torch.stack([row[told].mean(0) for row, told in zip(wanted, seen, strict=True)])
        assert (encoded.pooled - torch.nn.functional.normalize(mean, dim=-1)).abs().max() < 1e-5
        assert [span.word for span in encoded.spans[2]] == ["A", "photo", "of", "BLUE", "shirts"]


def test_folders_that_are_not_understood_are_refused(tmp_path):
    write_bert(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    for change, wanted in (
        ({"hidden_act": "relu"}, "hidden_act = gelu; given relu"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps"),
        ({"hidden_size": None}, "width"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(told | change))
        with pytest.raises(InputError, match=wanted):
            open_reader(tmp_path, BertRecipe(length=9))
    (tmp_path / "config.json").write_text(json.dumps(told | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match="16 missing"):
        open_reader(tmp_path, BertRecipe(length=9))
    del told["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="config of a BERT"):
        read_bert(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    write_config = {"model_type": "gpt2"}
    (tmp_path / "config.json").write_text(json.dumps(write_config))
    assert not is_bert(tmp_path) and not is_bert(tmp_path / "nowhere")


def test_a_denoiser_reads_with_a_given_bert(tmp_path):
    """Trained, stored and opened again; its words are the BERT's, unchanged; and CLIP is said to be missing where it is."""
    given = tmp_path / "bert"
    write_bert(given)
    text = {"family": "bert", "width": 16, "layers": 2, "heads": 2, "inner": 24, "vocabulary": 12, "positions": 20, "length": 9}
    recipe = _tiny(text, given=str(given))
    for _ in train(recipe, tmp_path / "run"):
        pass
    kept = load_file(str(tmp_path / "run" / "model" / "weights.safetensors"))
    bert = {k: v for k, v in load_file(str(given / "model.safetensors")).items() if not k.startswith("pooler.")}
    assert all(torch.equal(kept[f"text.{k}"], v.half()) for k, v in bert.items()) and "projection.weight" not in kept
    requests = [Request(prompt=prompt, seed=1, id=prompt) for prompt in ("a red dress", "a blue shirt", "a red dress ")]
    pictures = collect(open_painter(tmp_path / "run").paint(requests), requests)
    assert not (pictures[0].pixels == pictures[1].pixels).all() and (pictures[0].pixels == pictures[2].pixels).all()
    with pytest.raises(InputError, match="reads with a BERT"):
        open_clip(tmp_path / "run")
    with pytest.raises(InputError, match=r"name it in text\.given"):
        _tiny(text)
    with pytest.raises(InputError, match=r"text\.text and text\.shared_width as in"):
        list(train(_tiny(text | {"inner": 25}, given=str(given)), tmp_path / "other"))


def _tiny(text: dict[str, object], **more: str):
    """The smallest recipe, with other sizes of what reads."""
    told = tiny().model_dump(mode="json")
    loop = {"steps": 4, "batch": 8, "precision": "float32"}
    for stage in ("autoencoder", "decoder", "denoiser"):
        told[stage]["loop"] = loop
    return load_recipe(told | {"text": told["text"] | {"text": text, "shared_width": 16, **more}})


def test_damaged_weights_are_told_in_a_sentence(tmp_path):
    write_bert(tmp_path)
    tensors = load_file(str(tmp_path / "model.safetensors"))
    save_file({**tensors, "surprise": torch.zeros(1)}, str(tmp_path / "model.safetensors"))
    with pytest.raises(InputError, match="1 unknown"):
        open_reader(tmp_path, BertRecipe(length=9))
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="readable safetensors"):
        open_reader(tmp_path, BertRecipe(length=9))


def test_layers_from_the_end_are_those_of_transformers_and_words_can_be_put_in(tmp_path):
    model = write_bert(tmp_path, layers=3)
    tower = open_reader(tmp_path, BertRecipe(length=9))[0].text_model
    ids = torch.randint(1, 12, (2, 9))
    ids[1, 5:] = 0
    with torch.no_grad():
        hidden = model(ids, attention_mask=(ids != 0).long(), output_hidden_states=True).hidden_states
        for skip in (1, 2, 3):
            vectors, last = tower.read(ids, skip)
            seen = ids != 0
            assert (vectors[seen] - hidden[-skip][seen]).abs().max() < 1e-5 * hidden[-skip].abs().max()
            assert (last[seen] - hidden[-1][seen]).abs().max() < 1e-5 * hidden[-1].abs().max()
        own = model.embeddings.word_embeddings.weight[7]
        changed = ids.clone()
        changed[0, 2] = 7
        assert torch.equal(tower.read(ids, inserts=[Insert(0, 2, own[None])])[0], tower.read(changed)[0])
    with pytest.raises(InputError, match="from 1"):
        tower.read(ids, 4)
