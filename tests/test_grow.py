"""A model that is grown computes what it did, nearly, and can be trained and decoded as any other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from factories import T5Shape, random_t5
from kdtw_fast.training import grow
from kdtw_fast.training.models import load_plain
from transformers import T5ForConditionalGeneration

from kdtw_fast import SingleModelDecoder

SHAPE = T5Shape("tiny", d_model=32, d_kv=8, heads=4, d_ff=64, layers=2, tied=True)


def logits(model: T5ForConditionalGeneration) -> torch.Tensor:
    tokens = torch.arange(3, 19)[None]
    with torch.no_grad():
        return model.eval()(input_ids=tokens, labels=tokens.flip(1)).logits


def test_as_many_layers_are_the_same_model() -> None:
    model = random_t5(SHAPE, 100, 1)
    assert torch.equal(logits(grow.deepened(model)), logits(model))


@pytest.mark.parametrize(("encoder", "decoder"), [(3, 0), (0, 5), (7, 6)])
def test_copies_of_a_layer_share_its_step(encoder: int, decoder: int) -> None:
    """Half the steps twice differ from one step by less than leaving the step out does."""
    model = random_t5(SHAPE, 100, 2)
    for name, weight in model.named_parameters():
        if name.endswith(grow.ADDED):
            weight.data *= 0.1  # a small step: the difference is of its square
    deeper = grow.deepened(model, encoder, decoder)
    assert deeper.config.num_layers == (encoder or model.config.num_layers) == len(deeper.encoder.block)
    assert deeper.config.num_decoder_layers == (decoder or model.config.num_decoder_layers) == len(deeper.decoder.block)
    without = grow.deepened(model)
    for name, weight in without.named_parameters():
        if name.endswith(grow.ADDED):
            weight.data.zero_()
    wanted = logits(model)
    assert (logits(deeper) - wanted).abs().max() < 0.2 * (logits(without) - wanted).abs().max()


def test_fewer_layers_are_refused() -> None:
    model = random_t5(SHAPE, 100, 3)
    with pytest.raises(ValueError, match=r"the decoder has 2 layers, 1 would be fewer"):
        grow.deepened(model, decoder_layers=1)


def test_the_command_writes_a_model_that_loads_and_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    random_t5(SHAPE, 100, 4).save_pretrained(tmp_path / "small")
    random_t5(SHAPE, 100, 5).save_pretrained(tmp_path / "deep", max_shard_size="20KB")  # shards that would be read
    assert (tmp_path / "deep/model.safetensors.index.json").is_file()
    arguments = ["grow", str(tmp_path / "small"), "--encoder-layers", "5", "--out", str(tmp_path / "deep")]
    monkeypatch.setattr(sys, "argv", arguments)
    grow.main()
    assert "parameters" in capsys.readouterr().out
    model = load_plain(str(tmp_path / "deep"), "model")
    assert model.config.num_layers == 5
    assert [file.name for file in (tmp_path / "deep").glob("model*")] == ["model.safetensors"]
    decoder = SingleModelDecoder(str(tmp_path / "deep"), role="teacher")
    theirs = model.generate(torch.tensor([[5, 6, 7, 1]]), max_new_tokens=5, do_sample=False)
    ours = decoder.generate([[5, 6, 7, 1]], max_new_tokens=5).sequences
    assert [int(token) for token in ours[0]] == theirs[0].tolist()
