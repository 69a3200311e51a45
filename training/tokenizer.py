"""A joint sentencepiece unigram vocabulary as a Hugging Face fast tokenizer (pad 0, eos 1, unk 2, bytes for the rest).

Words are cut at blanks, so a prompt's tokens and a text's tokens can be concatenated.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kdtw_fast.budgets import BUDGETS, STUDENT_PROMPT, TEACHER_PROMPT, student_prompt
from kdtw_fast.files import putting_into

from .debian import read_jsonl

PROMPT_REPEATS = 2000


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 4064, prompts: Iterable[str] = ()
) -> PreTrainedTokenizerFast:
    """Fit a unigram vocabulary (at most `vocab_size` pieces) on `texts` and on `prompts`, which are repeated."""
    lines = [*texts, *(prompt for prompt in prompts for _ in range(PROMPT_REPEATS))]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        model_type="unigram",
        vocab_size=vocab_size,
        character_coverage=0.9998,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=True,
        max_sentence_length=20000,
        split_digits=True,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        eos_piece="</s>",
        unk_piece="<unk>",
        num_threads=1,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    return to_fast_tokenizer(vocabulary)


def to_fast_tokenizer(vocabulary: list[tuple[str, float]]) -> PreTrainedTokenizerFast:
    """The Hugging Face tokenizer of a unigram vocabulary whose first pieces are <pad>, </s> and <unk>."""
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always", split=True),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always", split=True), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def padded_vocabulary(tokenizer_size: int, multiple: int = 32) -> int:
    """Rows of a model's vocabulary: the next multiple above the tokenizer's size, so one row at least is spare."""
    return (tokenizer_size // multiple + 1) * multiple


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/debian/translation"), help="folder with train.jsonl")
    parser.add_argument("--out", type=Path, default=Path("runs/tokenizer"))
    parser.add_argument("--vocab-size", type=int, default=4064)
    parser.add_argument("--student-prompt", default=STUDENT_PROMPT)
    parser.add_argument("--teacher-prompt", default=TEACHER_PROMPT)
    args = parser.parse_args()
    rows = read_jsonl(args.data / "train.jsonl")
    prompts = [student_prompt(budget, args.student_prompt) for budget in BUDGETS] + [args.teacher_prompt]
    tokenizer = train_tokenizer([text for row in rows for text in (row.source, row.target)], args.vocab_size, prompts)
    with putting_into(args.out) as folder:
        tokenizer.save_pretrained(folder)
    sides = {side: [len(tokenizer(getattr(row, side)).input_ids) for row in rows] for side in ("source", "target")}
    report = {
        "pieces": len(tokenizer),
        "mean_tokens": {side: round(sum(n) / len(n), 2) for side, n in sides.items()},
        "prompt_tokens": {prompt: len(tokenizer(prompt, add_special_tokens=False).input_ids) for prompt in prompts},
    }
    print(json.dumps(report, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
