"""What a wording of the student's prompt does: use and quality for unseen phrases, unseen numbers, any checkpoint.

Nothing but the words is kept to: what is told "no" or 0 % may ask all the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdtw_fast.budgets import BUDGETS, wording_place
from kdtw_fast.decoders import TrainingWheelsDecoder
from kdtw_fast.inputs import token_ids
from kdtw_fast.loaders import load_tokenizer
from kdtw_fast.options import check_int

from .debian import Example
from .decoders import decoder_of
from .evaluate import measure_use
from .settings import Data
from .tasks import read_examples


def measure_wordings(
    decoder: TrainingWheelsDecoder,
    examples: Sequence[Example],
    templates: Sequence[str],
    phrases: Sequence[str] = (),
    percent: Sequence[int] = (),
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Use, BLEU and ROUGE-2 behind each template with each value in its place, greedy; `options` are the stream's.

    Args:
        decoder: of one teacher, with a tokenizer.
        examples: at least one.
        templates: each holds "{budget}" or "{percent}" once (see `wording_place`).
        phrases: what stands for "{budget}", any words; without any the six of the table.
        percent: what stands for "{percent}", 0 to 100; without any 0, 10, … 50.

    Yields the prompt, the use that it asks for (`asked`, None for a phrase outside the table) and what `measure_use`
    finds. Raises ValueError for a template without a place, a number out of range, values that no template has a place
    for, no examples, or a decoder without tokenizer or with several teachers.
    """
    places = [wording_place(template) for template in templates]
    for name, place, values in (("phrases", "{budget}", phrases), ("percent", "{percent}", percent)):
        if values and place not in places:
            raise ValueError(f'{name}={list(values)} are given, but no template holds "{place}"; add one that does')
    for number in percent:
        check_int("percent", number, 0, 100)
    if not examples:
        raise ValueError("there are no examples to measure on; give at least one")
    if decoder.tokenizer is None:
        raise ValueError("the decoder has no tokenizer; pass tokenizer=… (the command: --tokenizer FOLDER)")
    if len(decoder.teachers) != 1:
        raise ValueError(f"wordings are measured with one teacher, the decoder has {len(decoder.teachers)}")
    tokenizer, told = decoder.tokenizer, decoder.teachers[0].teacher_prompt or ""
    teacher_ids = token_ids(tokenizer, [told + example.source for example in examples])
    for template, place in zip(templates, places, strict=True):
        if place == "{percent}":
            values = list(map(str, percent or (round(100 * budget.fraction) for budget in BUDGETS)))
            asked = {value: int(value) / 100 for value in values}
        else:
            asked = {budget.phrase: budget.fraction for budget in BUDGETS}
            values = list(phrases or asked)
        for value in values:
            prompt = template.replace(place, value)
            ids = token_ids(tokenizer, [prompt + example.source for example in examples])
            pairs = zip(ids, teacher_ids, strict=True)
            items = ({"input_ids": own, "teacher_input_ids": theirs} for own, theirs in pairs)
            limit = max(map(len, [*ids, *teacher_ids]))
            found = measure_use(decoder, examples, items, max_source_length=limit, **options)
            yield {"prompt": prompt, "asked": asked.get(" ".join(value.split()).casefold()), **found}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: one JSON object a line for each prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True, help="folder of a student that asks")
    parser.add_argument("--teacher", required=True, help="folder of its teacher")
    parser.add_argument("--tokenizer", default=None, help="folder of their tokenizer; default: the student's")
    parser.add_argument("--data", type=Path, default=Path("runs/debian/translation"), help="folder with the examples")
    parser.add_argument("--split", default="test")
    parser.add_argument("--rows", type=int, default=0, help="the first so many examples; 0 = all")
    parser.add_argument(
        "--template",
        action="append",
        help='wording with "{budget}" or "{percent}" in it, may be given again; default: the student\'s own prompt',
    )
    parser.add_argument("--phrase", nargs="+", default=[], help="what stands for {budget}; default: the six budgets")
    parser.add_argument("--percent", nargs="+", type=int, default=[], help="what stands for {percent}; default: 0 … 50")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=None, help="default: all the processor offers")
    args = parser.parse_args(arguments)
    try:
        check_int("--rows", args.rows, 0)
        examples = read_examples(Data(folder=str(args.data)), args.split)[: args.rows or None]
        tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else None
        decoder = decoder_of(
            TrainingWheelsDecoder, args.student, args.teacher, tokenizer=tokenizer, num_threads=args.threads
        )
        templates = args.template or [decoder.student.student_prompt or ""]
        options = {"max_new_tokens": args.max_new_tokens}
        for row in measure_wordings(decoder, examples, templates, args.phrase, args.percent, **options):
            print(json.dumps(row, ensure_ascii=False), flush=True)
    except (ValueError, TypeError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
