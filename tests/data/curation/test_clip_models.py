"""Embeddings and captions by models of transformers: tiny random ones, saved by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from vwm.data.clip_models import load_clip_models
from vwm.data.curation.captions import CaptionModel
from vwm.data.curation.embeddings import EmbeddingModel
from vwm.data.frame_reading import read_episode_frames
from vwm.data.shard_index import list_shards, load_shard_index
from vwm.data.shard_reading import read_array
from vwm.data.video_encoding import write_video
from vwm.tokenizers.corpus import ingest_videos
from vwm.tokenizers.corpus_models import CorpusModels

LAYERS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SMALL = {"size": {"height": 16, "width": 16}}
WORDS = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", "a", "red", "ball", "rolls"]


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)


def describe(model: Any, frames: np.ndarray) -> Any:
    with load_clip_models([model]) as [function]:
        return function(frames)


def save(folder: Path, *parts: Any) -> Path:
    for part in parts:
        part.save_pretrained(folder)
    return folder


def seeded(make: Any, config: Any) -> Any:
    torch.manual_seed(0)
    return make(config).eval()


def test_the_embedding_of_a_clip_is_the_mean_over_eight_frames_of_a_vision_model(frames, tmp_path):
    config = transformers.ViTConfig(image_size=16, patch_size=8, **LAYERS)
    model, processor = seeded(transformers.ViTModel, config), transformers.ViTImageProcessor(**SMALL)
    found = describe(EmbeddingModel.of_folder(save(tmp_path, model, processor)), frames).arrays["embedding.npy"]
    chosen = [frames[i] for i in (0, 1, 2, 3, 5, 6, 7, 8)]
    with torch.no_grad():
        vectors = model(**processor(chosen, return_tensors="pt")).pooler_output
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, vectors.mean(0), atol=1e-6)


def test_a_model_without_trained_pooling_gives_the_mean_of_its_tokens(frames, tmp_path):
    config = transformers.ViTConfig(image_size=16, patch_size=8, **LAYERS)
    torch.manual_seed(0)
    model, processor = transformers.ViTModel(config, add_pooling_layer=False), transformers.ViTImageProcessor(**SMALL)
    folder = EmbeddingModel.of_folder(save(tmp_path, model, processor))
    found = [describe(folder, frames).arrays["embedding.npy"], folder.load()(frames).arrays["embedding.npy"]]
    with torch.no_grad():
        tokens = model.eval()(**processor([frames[i] for i in (0, 1, 2, 3, 5, 6, 7, 8)], return_tensors="pt"))[0]
    np.testing.assert_allclose(found, [tokens.mean((0, 1))] * 2, atol=1e-6)  # twice: no random pooling layer


def test_a_model_of_texts_and_pictures_gives_the_vector_that_it_compares_with_texts(frames, tmp_path):
    vision = {"image_size": 16, "patch_size": 8, **LAYERS}
    text = {"vocab_size": 8, "max_position_embeddings": 8, **LAYERS}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
    model = seeded(transformers.CLIPModel, config)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    found = describe(EmbeddingModel.of_folder(save(tmp_path, model, processor)), frames).arrays["embedding.npy"]
    with torch.no_grad():
        pixels = processor([frames[i] for i in (0, 1, 2, 3, 5, 6, 7, 8)], return_tensors="pt").pixel_values
        expected = model.visual_projection(model.vision_model(pixels).pooler_output).mean(0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_model_of_videos_sees_the_frames_as_one_video(frames, tmp_path):
    config = transformers.VJEPA2Config(
        crop_size=16, patch_size=8, frames_per_clip=8, pred_hidden_size=16, pred_num_attention_heads=2,
        pred_num_hidden_layers=1, pred_num_mask_tokens=1, mlp_ratio=1, **LAYERS,
    )  # fmt: skip
    model = seeded(transformers.VJEPA2Model, config)
    processor = transformers.VJEPA2VideoProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    found = describe(EmbeddingModel.of_folder(save(tmp_path, model, processor)), frames).arrays["embedding.npy"]
    with torch.no_grad():
        video = processor(frames[[0, 1, 2, 3, 5, 6, 7, 8]], return_tensors="pt")
        expected = model(**video).last_hidden_state.mean((0, 1))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def make_text_tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)


def test_a_model_of_pictures_captions_the_middle_frame(frames, tmp_path):
    ends = {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0}
    text = {"vocab_size": 8, "max_position_embeddings": 128, "encoder_hidden_size": 16, "projection_dim": 8} | ends
    text["initializer_range"] = 1.0
    vision = {"image_size": 16, "patch_size": 8, "initializer_range": 1.0}
    config = transformers.BlipConfig(text_config=text | LAYERS, vision_config=vision | LAYERS, projection_dim=8)
    model = seeded(transformers.BlipForConditionalGeneration, config)
    model.text_decoder.cls.predictions.bias.data[:4] = -100.0  # no special tokens, which captions leave out
    processor = transformers.BlipProcessor(transformers.BlipImageProcessor(**SMALL), make_text_tokenizer())
    caption = CaptionModel.of_folder(save(tmp_path, model, processor), prompt="")
    found = describe(caption, frames).meta["caption"]
    pixels = processor(images=frames[4], return_tensors="pt").pixel_values
    tokens = model.generate(pixel_values=pixels, max_new_tokens=96, do_sample=False)
    assert found == processor.batch_decode(tokens, skip_special_tokens=True)[0]
    assert len(found.split()) == 96 and found != describe(caption, frames[::-1] // 2).meta["caption"]


def test_a_model_of_videos_that_follows_instructions_gets_the_frames_and_the_prompt(frames, tmp_path):
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    words = make_text_tokenizer()
    words.add_special_tokens({"additional_special_tokens": marks})
    number = {mark: words.convert_tokens_to_ids(mark) for mark in marks}
    text = {"vocab_size": 12, "num_key_value_heads": 2, "initializer_range": 1.0, "bos_token_id": 1, "eos_token_id": 2}
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    config = transformers.Qwen2VLConfig(
        text_config=LAYERS | text,
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 8, "mlp_ratio": 1},
        vision_start_token_id=number["<|vision_start|>"], vision_end_token_id=number["<|vision_end|>"],
        image_token_id=number["<|image_pad|>"], video_token_id=number["<|video_pad|>"],
    )  # fmt: skip
    model = seeded(transformers.Qwen2VLForConditionalGeneration, config)
    model.generation_config.suppress_tokens = [*range(4), *number.values()]
    size = {"shortest_edge": 16 * 16, "longest_edge": 8 * 16 * 16}
    sizes = {"size": size, "patch_size": 8}
    template = (
        "{% for part in messages[0]['content'] %}{% if part['type'] == 'video' %}"
        "<|vision_start|> <|video_pad|> <|vision_end|> {% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    )
    processor = transformers.Qwen2VLProcessor(
        transformers.Qwen2VLImageProcessor(**sizes), words, transformers.Qwen2VLVideoProcessor(**sizes), template
    )
    save(tmp_path, model, processor)
    captions = [describe(CaptionModel.of_folder(tmp_path, p), frames).meta["caption"] for p in ("a ball", "rolls")]
    assert [len(caption.split()) for caption in captions] == [96, 96] and captions[0] != captions[1]
    assert describe(CaptionModel.of_folder(tmp_path, "rolls"), frames // 2).meta["caption"] != captions[1]


def test_errors_name_the_folder_and_what_it_lacks(frames, tmp_path):
    with pytest.raises(ValueError, match=r"nothing: is no folder"):
        EmbeddingModel.of_folder(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"has no config\.json; give a folder that save_pretrained"):
        CaptionModel.of_folder(tmp_path, "")
    config = transformers.ViTConfig(image_size=16, patch_size=8, **LAYERS)
    model, processor = transformers.ViTModel(config), transformers.ViTImageProcessor(**SMALL)
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if "layernorm" not in k})
    with pytest.raises(ValueError, match=r"AutoImageProcessor cannot load it|its weights lack layernorm\.bias"):
        EmbeddingModel.of_folder(save(tmp_path, processor)).load()


def test_the_fingerprint_changes_with_the_weights_and_the_prompt(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = CaptionModel.of_folder(tmp_path, "what?")
    assert CaptionModel.of_folder(tmp_path, "what?") == before
    assert CaptionModel.of_folder(tmp_path, "why?").fingerprint != before.fingerprint
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert CaptionModel.of_folder(tmp_path, "what?").fingerprint != before.fingerprint


def test_an_ingest_stores_the_embedding_next_to_the_frames_and_keeps_it_when_videos_are_added(tmp_path, capsys):
    config = transformers.ViTConfig(image_size=16, patch_size=8, **LAYERS)
    save(tmp_path / "vit", seeded(transformers.ViTModel, config), transformers.ViTImageProcessor(**SMALL))
    source, out = tmp_path / "in", tmp_path / "out"
    models = CorpusModels(embed=tmp_path / "vit")
    for number in range(2):
        rng = np.random.default_rng(number)
        write_video(source / f"{number}.mp4", rng.integers(0, 256, (9, 16, 16, 3), dtype=np.uint8), fps=9)
        ingest_videos(source, out, size=16, workers=0, models=models)
    assert "9 frames in 1 episode, 1 shard" in capsys.readouterr().out.splitlines()[-2]
    embed = EmbeddingModel.of_folder(tmp_path / "vit")
    for shard in list_shards(out):
        [entry] = load_shard_index(shard).episodes
        expected = describe(embed, read_episode_frames(shard, entry)).arrays["embedding.npy"]
        np.testing.assert_array_equal(read_array(shard, entry, "embedding"), expected)
    with pytest.raises(
        ValueError, match=r"made with other settings \(models was \{'embedding': '\w+'\} and is now \{\}"
    ):
        ingest_videos(source, out, size=16, workers=0)
