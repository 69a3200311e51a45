"""Phase 1: behaviour cloning of the oracle (Eq. 16, as corrected), the six budgets mixed in every batch.

Along the teacher's greedy trajectories the student learns to say <tau> where it diverges most from the teacher,
and to follow the teacher elsewhere. Resumable, as fit.py is.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm
from transformers import AutoTokenizer, T5ForConditionalGeneration

from kdtw_fast.budgets import BUDGETS, student_prompt
from kdtw_fast.decoders import TrainingWheelsDecoder
from kdtw_fast.modeling import TrainingWheelsT5

from .batches import IGNORED, Batches, Encoded, encode, keyed_generator, student_prompts, teacher_prompts
from .debian import Example, read_jsonl
from .evaluate import greedy, scores
from .fit import (
    FREE_SETTINGS,
    Log,
    add_settings,
    load_checkpoint,
    quicken,
    rate_at,
    save_checkpoint,
    scaled_adamw,
    set_rate,
)
from .losses import behaviour_cloning, position_divergence
from .oracle import load_student, oracle_positions, shift_marks


@dataclass(frozen=True)
class Settings:
    """Everything phase 1 depends on besides the data and the two models; saved beside the checkpoint."""

    steps: int = 200
    warmup: int = 20
    rate: float = 2e-3
    weight_decay: float = 0.0
    clip: float = 1.0
    target_tokens: int = 1536
    # Weight of -log(1 - pi(tau)) where the oracle does not ask; 0 is Eq. 16 as printed. With 1, pi(tau) is a true
    # probability, but greedy decoding then asks for about twice the budget: tau wins as soon as it beats the best
    # single token. With 3 it wins at about even odds.
    abstain: float = 3.0
    rounding: str = "nearest"  # of l x b, the number of positions where the oracle asks
    trajectories: int = 0  # how many training sources the teacher translates; 0 = all
    max_new_tokens: int = 80
    seed: int = 0
    max_source: int = 96
    bf16: bool = True
    checkpoint_every: int = 100
    validate_every: int = 1000
    validation_rows: int = 200
    threads: int = 0


def teacher_trajectories(
    teacher,
    tokenizer,
    rows: Sequence[Encoded],
    settings: Settings,
    cache: Path | None = None,
    chunk: int = 1024,
) -> list[Encoded]:
    """The teacher's greedy output for each source, in place of the reference; only outputs that reached EOS.

    With `cache` the outputs are kept in a JSONL file, so an interrupted run goes on where it stopped.
    """
    prompt = teacher_prompts(tokenizer, teacher.config.teacher_prompt)[0]
    found: list[list[int]] = []
    if cache is not None and cache.exists():
        lines = cache.read_text(encoding="utf-8").split("\n")[:-1]  # a line cut off by a kill is written again
        found = [json.loads(line) for line in lines][: len(rows)]
        cache.write_text("".join(json.dumps(ids) + "\n" for ids in found), encoding="utf-8")
    for begin in range(len(found), len(rows), chunk):
        written = greedy(teacher, rows[begin : begin + chunk], prompt, settings.max_new_tokens)
        found += written
        if cache is not None:
            with cache.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(ids) + "\n" for ids in written)
    eos = tokenizer.eos_token_id
    return [
        Encoded(row.source, tuple(ids)) for row, ids in zip(rows, found, strict=True) if len(ids) > 1 and ids[-1] == eos
    ]


def measure_budgets(
    student: TrainingWheelsT5,
    teacher,
    tokenizer,
    examples: Sequence[Example],
    max_new_tokens: int = 96,
    **options,
) -> list[dict[str, object]]:
    """Use asked and achieved, BLEU and ROUGE-2 for the six budgets, decoded natively; `options` go to generate."""
    decoder = TrainingWheelsDecoder(student, teacher, tokenizer=tokenizer)
    told = tokenizer([teacher.config.teacher_prompt + e.source for e in examples])["input_ids"]
    table: list[dict[str, object]] = []
    for budget in BUDGETS:
        prompt = student_prompt(budget, student.config.student_prompt)
        own = tokenizer([prompt + e.source for e in examples])["input_ids"]
        out = decoder.generate(own, teacher_inputs={"input_ids": told}, max_new_tokens=max_new_tokens, **options)
        written = tokenizer.batch_decode(out.sequences, skip_special_tokens=True)
        table.append(
            {
                "budget": budget.phrase,
                "asked": budget.fraction,
                "achieved": round(float(out.teacher_calls.sum() / out.lengths.sum()), 4),
                "row_mean": round(float(out.teacher_fraction.mean()), 4),
                **scores(written, [e.target for e in examples]),
            }
        )
    return table


def clone(
    data: Path, student_folder: Path, teacher_folder: Path, out: Path, settings: Settings, quiet: bool = False
) -> list[dict[str, object]]:
    """Run phase 1 until settings.steps (continuing OUT/checkpoint.pt) and save the student to OUT/model.

    Returns the last validation: use and quality for each budget.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    teacher = T5ForConditionalGeneration.from_pretrained(teacher_folder, dtype=torch.float32).eval()
    student = load_student(student_folder, len(tokenizer))
    tau = student.config.tau_token_id
    sources = read_jsonl(data / "train.jsonl")
    chosen = keyed_generator(settings.seed).permutation(len(sources))[: settings.trajectories or None]
    train = encode([sources[i] for i in chosen], tokenizer, settings.max_source)
    held_out = read_jsonl(data / "validation.jsonl")
    rows = teacher_trajectories(teacher, tokenizer, train, settings, out / "trajectories.jsonl")
    batches = Batches(
        rows,
        student_prompts(tokenizer, student.config.student_prompt),
        settings.seed,
        settings.target_tokens,
        eos,
        pad,
    )
    told_prompt = teacher_prompts(tokenizer, teacher.config.teacher_prompt)[0]
    fractions = torch.tensor([budget.fraction for budget in BUDGETS])

    optimizer = scaled_adamw(student, settings.rate, settings.weight_decay)
    quicken(student, 0.0)
    quicken(teacher, 0.0)
    start = 0
    state = load_checkpoint(out / "checkpoint.pt", asdict(settings), (*FREE_SETTINGS, "abstain"))
    if state is not None:
        student.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    log = Log(out / "metrics.jsonl")
    if start == 0:
        log.write(event="start", rows=len(rows), steps_per_epoch=batches.per_epoch, **asdict(settings))

    answering = T5ForConditionalGeneration.from_pretrained(teacher_folder, dtype=torch.float32).eval()

    def plain() -> TrainingWheelsT5:
        copy = TrainingWheelsT5(student.config)
        copy.load_state_dict(student.state_dict())
        return copy.eval()

    def validate(step: int, count: int | None) -> list[dict[str, object]]:
        table = measure_budgets(plain(), answering, tokenizer, held_out[:count])
        for row in table:
            log.write(event="validation", step=step, rows=len(held_out[:count]), **row)
        return table

    sums: dict[str, float] = {}
    began = time.time()
    student.train()
    for step in tqdm(range(start, settings.steps), initial=start, total=settings.steps, disable=quiet, mininterval=5):
        torch.manual_seed(settings.seed * 1_000_003 + step)
        set_rate(optimizer, rate_at(step, settings))
        own, told = batches[step], batches.at(step, told_prompt)
        budgets = torch.zeros(len(own.labels))
        drawn = torch.from_numpy(batches.draws(step))
        budgets[: len(drawn)] = fractions[drawn]
        kept = own.labels != IGNORED
        inputs = student._shift_right(own.labels)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bf16):
            with torch.no_grad():
                answers = teacher(told.source_ids, told.source_mask, decoder_input_ids=inputs, use_cache=False).logits
            encoded = student.get_encoder()(input_ids=own.source_ids, attention_mask=own.source_mask)
            with torch.no_grad():
                unmarked = student(
                    encoder_outputs=encoded,
                    attention_mask=own.source_mask,
                    decoder_input_ids=inputs,
                    use_cache=False,
                ).logits
            asked = oracle_positions(position_divergence(unmarked, answers, tau), kept, budgets, settings.rounding)
            logits = student(
                encoder_outputs=encoded,
                attention_mask=own.source_mask,
                decoder_input_ids=inputs,
                decoder_from_teacher=shift_marks(asked),
                use_cache=False,
            ).logits
        parts = behaviour_cloning(logits, answers, asked, kept, tau, settings.abstain)
        parts["loss"].backward()
        nn.utils.clip_grad_norm_(student.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad()
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        done = step + 1
        if done % 50 == 0:
            means = {name: round(value / 50, 4) for name, value in sums.items()}
            log.write(event="step", step=done, **means, seconds=round(time.time() - began, 1))
            sums, began = {}, time.time()
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            state = {"model": student.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(out / "checkpoint.pt", {**state, "step": done, "settings": asdict(settings)})
        if done % settings.validate_every == 0 and done != settings.steps:
            validate(done, settings.validation_rows)
    plain().save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    return validate(settings.steps, None)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("runs/debian/translation"))
    parser.add_argument("--student", type=Path, required=True, help="folder of the fitted student")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    defaults = Settings()
    add_settings(parser, defaults)
    args = vars(parser.parse_args())
    places = [args.pop(name) for name in ("data", "student", "teacher", "out")]
    for row in clone(*places, replace(defaults, **args)):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
