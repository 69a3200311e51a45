"""The training scripts for real, on toy data, in seconds: losses, oracle, fitting, cloning, resuming."""

import json
import math

import pytest
import torch
from kdtw_fast.training import behaviour_cloning as cloning
from kdtw_fast.training import fit as fitting
from kdtw_fast.training import losses, oracle
from kdtw_fast.training.debian import Example, write_jsonl
from kdtw_fast.training.evaluate import scores
from kdtw_fast.training.tokenizer import train_tokenizer
from transformers import T5ForConditionalGeneration

from kdtw_fast.budgets import BUDGETS, STUDENT_PROMPT, TEACHER_PROMPT, student_prompt
from kdtw_fast.modeling import TrainingWheelsT5

GERMAN = ["das", "paket", "enthält", "dateien", "für", "die", "bibliothek", "und", "ein", "programm", "mit", "spielen"]
ENGLISH = ["the", "package", "contains", "files", "for", "the", "library", "and", "a", "program", "with", "games"]
SMALL = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
QUICK = {"steps": 6, "warmup": 2, "target_tokens": 128, "checkpoint_every": 3, "validation_rows": 4, "threads": 1}


def toy_examples(count, offset=0):
    rows = []
    for i in range(offset, offset + count):
        words = [(i * 7 + j * (1 + i % 3)) % len(GERMAN) for j in range(2 + i % 9)]
        rows.append(Example(" ".join(GERMAN[w] for w in words), " ".join(ENGLISH[w] for w in words), f"p{i}"))
    return rows


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Data, tokenizer, a fitted teacher and a fitted student."""
    root = tmp_path_factory.mktemp("toy")
    write_jsonl(root / "data/train.jsonl", toy_examples(60))
    write_jsonl(root / "data/validation.jsonl", toy_examples(6, 60))
    texts = [text for row in toy_examples(60) for text in (row.source, row.target)]
    prompts = [TEACHER_PROMPT, *(student_prompt(budget) for budget in BUDGETS)]
    train_tokenizer(texts, 340, prompts).save_pretrained(root / "tokenizer")
    for role in ("teacher", "student"):
        steps = 150 if role == "teacher" else 6  # a teacher that ends its sentences
        settings = fitting.Settings(role=role, **SMALL, **{**QUICK, "steps": steps}, dropout=0.0, bf16=False)
        fitting.fit(root / "data", root / "tokenizer", root / role, settings, quiet=True)
    return root


# ---------------------------------------------------------------- losses and oracle, as pure functions


def test_divergence_is_the_kl_without_tau():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 7, generator=generator), torch.randn(2, 3, 7, generator=generator)
    tau = 5
    others = [0, 1, 2, 3, 4, 6]
    p, pi = teacher[..., others].softmax(-1), student[..., others].softmax(-1)
    expected = (p * (p / pi).log()).sum(-1)
    assert torch.allclose(losses.position_divergence(student, teacher, tau), expected, atol=1e-6)
    changed = student.clone()
    changed[..., tau] = 50.0
    assert torch.allclose(losses.position_divergence(changed, teacher, tau), expected, atol=1e-6)
    same = losses.position_divergence(torch.cat((teacher, student[..., :1]), -1), teacher, tau=7)
    assert torch.allclose(same, torch.zeros(2, 3), atol=1e-6)  # a teacher without the student's last row
    with pytest.raises(ValueError, match="differ in shape"):
        losses.position_divergence(student[..., :4], teacher, tau)


def test_behaviour_cloning_loss_by_hand():
    student = torch.log(torch.tensor([[[0.2, 0.3, 0.5], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]]]))
    teacher = torch.log(torch.tensor([[[0.5, 0.5, 1e-9], [0.25, 0.75, 1e-9], [0.9, 0.1, 1e-9]]]))
    asked = torch.tensor([[True, False, False]])
    kept = torch.tensor([[True, True, False]])
    parts = losses.behaviour_cloning(student, teacher, asked, kept, tau=2, abstain=0.0)
    kl = 0.25 * math.log(0.25 / 0.75) + 0.75 * math.log(0.75 / 0.25)
    assert float(parts["ask"]) == pytest.approx(-math.log(0.5) / 2, rel=1e-5)
    assert float(parts["divergence"]) == pytest.approx(kl / 2, rel=1e-5)
    assert float(parts["loss"]) == pytest.approx((kl - math.log(0.5)) / 2, rel=1e-5)
    parts = losses.behaviour_cloning(student, teacher, asked, kept, tau=2, abstain=1.0)
    assert float(parts["loss"]) == pytest.approx((kl - math.log(0.5) - math.log(0.8)) / 2, rel=1e-5)


def test_abstaining_is_what_keeps_tau_down():
    student = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(1))
    nowhere, kept = torch.zeros(1, 4, dtype=torch.bool), torch.ones(1, 4, dtype=torch.bool)
    for abstain, pushed in ((0.0, False), (1.0, True)):
        loss = losses.behaviour_cloning(student, teacher, nowhere, kept, tau=8, abstain=abstain)["loss"]
        (gradient,) = torch.autograd.grad(loss, student)
        assert bool((gradient[..., 8] > 1e-6).all()) is pushed


def test_distillation_is_zero_at_the_teacher_and_ignores_padding():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, -100], [3, -100, -100]])
    assert float(losses.distillation(logits, logits, labels)) == pytest.approx(0, abs=1e-6)
    other = logits.clone()
    other[labels == -100] += torch.randn(3, 5)
    assert float(losses.distillation(other, logits, labels)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("rounding, counts", [("nearest", [0, 1, 2, 3]), ("floor", [0, 0, 2, 2])])
def test_oracle_asks_at_the_top_positions(rounding, counts):
    divergence = torch.tensor([[0.1, 5.0, 0.3, 4.0, 0.2, 9.0]]).repeat(4, 1)
    kept = torch.tensor([[True] * 5 + [False]]).repeat(4, 1)
    fractions = torch.tensor([0.0, 0.1, 0.4, 0.5])
    asked = oracle.oracle_positions(divergence, kept, fractions, rounding)
    assert asked.sum(1).tolist() == counts
    assert not asked[:, 5].any()  # the highest, but padding
    by_rank = [1, 3, 2, 4, 0]
    for row, count in zip(asked, counts, strict=True):
        assert sorted(by_rank[:count]) == row.nonzero().flatten().tolist()
    with pytest.raises(ValueError, match="'ceil'"):
        oracle.oracle_positions(divergence, kept, fractions, "ceil")


def test_oracle_breaks_ties_to_the_left():
    asked = oracle.oracle_positions(torch.ones(1, 4), torch.ones(1, 4, dtype=torch.bool), torch.tensor([0.5]))
    assert asked.tolist() == [[True, True, False, False]]
    assert oracle.shift_marks(asked).tolist() == [[False, True, True, False]]


def test_scores():
    same = ["the package contains the files of the library"] * 2
    assert scores(same, same)["bleu"] == 100.0 and scores(same, same)["rouge2"] == 100.0
    assert "tok:13a" in scores(same, same)["signature"]
    with pytest.raises(ValueError, match="got 1 and 2"):
        scores(same[:1], same)


# ---------------------------------------------------------------- fitting


def test_quicken_keeps_the_maths_and_the_names(toy):
    model = T5ForConditionalGeneration.from_pretrained(toy / "teacher/model").eval()
    names = list(model.state_dict())
    ids = torch.tensor([[5, 6, 7, 1], [8, 9, 1, 0]])
    call = {"input_ids": ids, "attention_mask": (ids != 0).long(), "decoder_input_ids": ids}
    with torch.no_grad():
        before = model(**call).logits
        fitting.quicken(model, 0.1)
        after = model(**call).logits
    assert list(model.state_dict()) == names
    assert torch.allclose(before, after, atol=1e-5)


def test_row_dropout_shares_its_mask_along_time():
    dropped = fitting.RowDropout(0.5).train()(torch.ones(3, 4, 64))
    assert torch.equal(dropped, dropped[:, :1].expand(-1, 4, -1))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(fitting.RowDropout(0.5).eval()(torch.ones(1, 2, 3)), torch.ones(1, 2, 3))


def test_each_tensors_rate_follows_its_initial_rms():
    model = fitting.new_model(fitting.Settings(**SMALL), 70)
    optimizer = fitting.scaled_adamw(model, 0.1, 0.0)
    query = next(p for name, p in model.named_parameters() if name.endswith("SelfAttention.q.weight"))
    group = next(g for g in optimizer.param_groups if g["params"][0] is query)
    assert group["lr"] == pytest.approx(0.1 * float(query.detach().pow(2).mean().sqrt()), rel=1e-5)
    settings = fitting.Settings(steps=100, warmup=10, rate=1.0)
    rates = [fitting.rate_at(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1.0 and rates[99] == pytest.approx(1 / 90)


def run_in_two(run, settings, out, part):
    """Run to settings.steps directly, and again with a stop after `part` steps."""
    run(out / "whole", settings)
    run(out / "parts", fitting.replace(settings, steps=part))
    state = torch.load(out / "parts/checkpoint.pt", weights_only=True)
    assert state["step"] == part
    run(out / "parts", settings)
    whole = torch.load(out / "whole/checkpoint.pt", weights_only=True)["model"]
    parts = torch.load(out / "parts/checkpoint.pt", weights_only=True)["model"]
    return whole, parts


def test_fit_resumes_to_the_bit(toy, tmp_path):
    def run(out, settings):
        fitting.fit(toy / "data", toy / "tokenizer", out, settings, quiet=True)

    # constant rate up to here: a run stopped early must not have decayed
    settings = fitting.Settings(**SMALL, **{**QUICK, "warmup": 100})
    whole, parts = run_in_two(run, settings, tmp_path, 3)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    lines = [json.loads(line) for line in (tmp_path / "parts/metrics.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines].count("start") == 1


def test_fit_learns_and_ships_a_plain_t5(toy, tmp_path):
    settings = fitting.Settings(**SMALL, **{**QUICK, "steps": 60}, bf16=False, dropout=0.0)
    found = fitting.fit(toy / "data", toy / "tokenizer", tmp_path / "run", settings, quiet=True)
    assert found["validation_loss"] < 0.7 * math.log(340)
    model = T5ForConditionalGeneration.from_pretrained(tmp_path / "run/model")
    assert model.config.teacher_prompt == TEACHER_PROMPT
    assert model.config.vocab_size % 32 == 0


def test_fit_distils(toy, tmp_path):
    settings = fitting.Settings(role="student", **SMALL, **QUICK, distill=0.5)
    found = fitting.fit(toy / "data", toy / "tokenizer", tmp_path / "s", settings, toy / "teacher/model", quiet=True)
    assert math.isfinite(found["validation_loss"])
    with pytest.raises(ValueError, match=r"distill=0.5 needs a teacher"):
        fitting.fit(toy / "data", toy / "tokenizer", tmp_path / "t", settings, quiet=True)


def test_fit_refuses_a_checkpoint_of_other_settings(toy):
    settings = fitting.Settings(**{**SMALL, "d_ff": 32}, **QUICK, dropout=0.0, bf16=False)
    with pytest.raises(ValueError, match="d_ff: 24 there, 32 now"):
        fitting.fit(toy / "data", toy / "tokenizer", toy / "teacher", settings, quiet=True)


@pytest.mark.parametrize("arguments, words", [({"role": "tutor"}, "'tutor'"), ({"distill": 1.5}, "1.5")])
def test_settings_are_checked(arguments, words):
    with pytest.raises(ValueError, match=words):
        fitting.Settings(**arguments)


# ---------------------------------------------------------------- phase 1


def test_cloning_resumes_to_the_bit_and_ships_a_student(toy, tmp_path):
    tables = {}

    def run(out, settings):
        tables[out.name] = cloning.clone(
            toy / "data", toy / "student/model", toy / "teacher/model", out, settings, quiet=True
        )

    quick = {key: value for key, value in QUICK.items() if key != "warmup"}
    whole, parts = run_in_two(run, cloning.Settings(**quick, warmup=100, max_new_tokens=24), tmp_path, 4)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert tables["whole"] == tables["parts"]
    assert [row["asked"] for row in tables["whole"]] == [budget.fraction for budget in BUDGETS]
    assert all(0 <= row["achieved"] <= 1 for row in tables["whole"])
    student = TrainingWheelsT5.from_pretrained(tmp_path / "whole/model")
    assert student.config.student_prompt == STUDENT_PROMPT
    T5ForConditionalGeneration.from_pretrained(tmp_path / "whole/model")


def test_cloning_teaches_to_ask_more_with_a_larger_budget(toy, tmp_path):
    settings = cloning.Settings(
        steps=300, warmup=10, rate=2e-2, target_tokens=256, abstain=1.0, max_new_tokens=24, bf16=False, threads=1
    )
    table = cloning.clone(toy / "data", toy / "student/model", toy / "teacher/model", tmp_path, settings, quiet=True)
    used = [row["achieved"] for row in table]
    assert used[0] <= 0.15 and used[-1] >= used[0] + 0.2


def test_trajectories_go_on_where_they_stopped(toy, tmp_path):
    tokenizer = fitting.AutoTokenizer.from_pretrained(toy / "tokenizer")
    teacher = T5ForConditionalGeneration.from_pretrained(toy / "teacher/model").eval()
    rows = fitting.encode(toy_examples(10), tokenizer)
    settings = cloning.Settings(max_new_tokens=12)
    cache = tmp_path / "trajectories.jsonl"
    whole = cloning.teacher_trajectories(teacher, tokenizer, rows, settings, cache, chunk=4)
    lines = cache.read_text().splitlines(keepends=True)
    assert len(lines) == 10
    cache.write_text("".join(lines[:5]) + lines[5][:4])  # killed while writing
    assert cloning.teacher_trajectories(teacher, tokenizer, rows, settings, cache, chunk=4) == whole
    assert cache.read_text().splitlines(keepends=True) == lines


def test_oracle_curve_runs_from_student_to_teacher(toy):
    tokenizer = fitting.AutoTokenizer.from_pretrained(toy / "tokenizer")
    teacher = T5ForConditionalGeneration.from_pretrained(toy / "teacher/model").eval()
    student = oracle.load_student(toy / "student/model", len(tokenizer)).eval()
    examples = toy_examples(6, 60)
    rows = fitting.encode(examples, tokenizer)
    curve = oracle.oracle_curve(student, teacher, tokenizer, rows, [e.target for e in examples], max_new_tokens=12)
    assert [row["fraction"] for row in curve] == [budget.fraction for budget in BUDGETS]
    assert curve[0]["achieved"] == 0 and curve[-1]["achieved"] > 0
