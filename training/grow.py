"""A deeper T5 out of a trained one: each layer becomes several of its kind that share its step.

`python -m kdtw_fast.training.grow FOLDER --encoder-layers 6 --out FOLDER` writes a model that `kdtw train` goes on with
(`teacher.path=`). A layer adds f(x) to its input; k copies that add f(x) / k each compute nearly the same, so that the
grown model starts about where the trained one stands. Growing by copies: Gong et al., "Efficient Training of BERT by
Progressively Stacking", ICML 2019.
"""

from __future__ import annotations

import argparse
import copy
import re
from pathlib import Path

import torch
from transformers import T5ForConditionalGeneration

from kdtw_fast.files import putting_into

from .models import load_plain

BLOCK = re.compile(r"(encoder|decoder)\.block\.(\d+)\.(.+)")
FIRST_ONLY = "layer.0.SelfAttention.relative_attention_bias.weight"
ADDED = ("SelfAttention.o.weight", "EncDecAttention.o.weight", "DenseReluDense.wo.weight")  # they end what a layer adds


def deepened(
    model: T5ForConditionalGeneration, encoder_layers: int = 0, decoder_layers: int = 0
) -> T5ForConditionalGeneration:
    """A copy of `model` with so many layers; 0 leaves a stack as it is, and the last layers become most.

    Raises ValueError for fewer layers than it has.
    """
    config = copy.deepcopy(model.config)
    bounds = {}
    for stack, name, wanted in (
        ("encoder", "num_layers", encoder_layers),
        ("decoder", "num_decoder_layers", decoder_layers),
    ):
        layers = getattr(config, name)
        if wanted and wanted < layers:
            raise ValueError(f"the {stack} has {layers} layers, {wanted} would be fewer; ask for {layers} or more")
        setattr(config, name, wanted or layers)
        bounds[stack] = [index * (wanted or layers) // layers for index in range(layers + 1)]
    grown: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict().items():
        found = BLOCK.fullmatch(name)
        if not found:
            grown[name] = weight
            continue
        stack, index, part = found[1], int(found[2]), found[3]
        first, last = bounds[stack][index : index + 2]
        for place in range(first, first + 1 if part == FIRST_ONLY else last):
            grown[f"{stack}.block.{place}.{part}"] = weight / (last - first) if part.endswith(ADDED) else weight
    deeper = T5ForConditionalGeneration(config)
    deeper.load_state_dict(grown)
    deeper.generation_config = copy.deepcopy(model.generation_config)
    return deeper


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m kdtw_fast.training.grow", description=__doc__)
    parser.add_argument("model", help="a T5's folder, or its name on the hub")
    parser.add_argument("--encoder-layers", type=int, default=0, help="layers of the encoder; 0: as many as it has")
    parser.add_argument("--decoder-layers", type=int, default=0, help="layers of the decoder; 0: as many as it has")
    parser.add_argument("--out", type=Path, required=True, help="where the grown model is written")
    args = parser.parse_args()
    if args.out.resolve() == Path(args.model).resolve():
        parser.error(f"--out {args.out} is the model that is read; name another folder")
    model = load_plain(args.model, "model")
    if not isinstance(model, T5ForConditionalGeneration):
        parser.error(f"{args.model} is a {type(model).__name__}; only a T5ForConditionalGeneration can be grown")
    try:
        deeper = deepened(model, args.encoder_layers, args.decoder_layers)
    except ValueError as error:
        parser.error(str(error))
    with putting_into(args.out) as folder:
        deeper.save_pretrained(folder)
    print(f"{args.out}: {sum(weight.numel() for weight in deeper.parameters()):,} parameters")


if __name__ == "__main__":
    main()
