"""The training scripts for real, on toy data, in seconds: losses, oracle, fitting, cloning, resuming."""

import json
import math
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from factories import mostly_long
from kdtw_fast.training import losses, optimisation, oracle, recipes
from kdtw_fast.training.checkpoints import load_checkpoint
from kdtw_fast.training.evaluate import scores
from kdtw_fast.training.frames import Frame
from kdtw_fast.training.models import load_student, new_t5
from kdtw_fast.training.settings import Data, Model, Optimiser, RunSettings
from kdtw_fast.training.tasks import Task, read_examples, teacher_trajectories
from toy_training import SHAPE, fit, oracle_positions, toy_examples, toy_recipe
from transformers import AutoTokenizer, T5ForConditionalGeneration

from kdtw_fast.budgets import BUDGETS, STUDENT_PROMPT, TEACHER_PROMPT
from kdtw_fast.decoders.base import Decoder
from kdtw_fast.modeling import TrainingWheelsT5

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
    asked = oracle_positions(divergence, kept, fractions, rounding)
    assert asked.sum(1).tolist() == counts
    assert not asked[:, 5].any()  # the highest, but padding
    by_rank = [1, 3, 2, 4, 0]
    for row, count in zip(asked, counts, strict=True):
        assert sorted(by_rank[:count]) == row.nonzero().flatten().tolist()
    with pytest.raises(ValueError, match="'ceil'"):
        oracle_positions(divergence, kept, fractions, "ceil")


def test_oracle_breaks_ties_to_the_left():
    asked = oracle_positions(torch.ones(1, 4), torch.ones(1, 4, dtype=torch.bool), torch.tensor([0.5]))
    assert asked.tolist() == [[True, True, False, False]]
    assert oracle.shift_marks(asked).tolist() == [[False, True, True, False]]


def test_scores():
    same = ["the package contains the files of the library"] * 2
    assert scores(same, same)["bleu"] == 100.0 and scores(same, same)["rouge2"] == 100.0
    assert "tok:13a" in scores(same, same)["signature"]
    with pytest.raises(ValueError, match="got 1 and 2"):
        scores(same[:1], same)


# ---------------------------------------------------------------- fitting


def test_fast_operators_keep_the_maths_and_the_names(toy):
    model = T5ForConditionalGeneration.from_pretrained(toy / "teacher/model").eval()
    names = list(model.state_dict())
    ids = torch.tensor([[5, 6, 7, 1], [8, 9, 1, 0]])
    call = {"input_ids": ids, "attention_mask": (ids != 0).long(), "decoder_input_ids": ids}
    with torch.no_grad():
        before = model(**call).logits
        optimisation.use_fast_operators(model, 0.1)
        after = model(**call).logits
    assert list(model.state_dict()) == names
    assert torch.allclose(before, after, atol=1e-5)


def test_row_dropout_shares_its_mask_along_time():
    dropped = optimisation.RowDropout(0.5).train()(torch.ones(3, 4, 64))
    assert torch.equal(dropped, dropped[:, :1].expand(-1, 4, -1))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(optimisation.RowDropout(0.5).eval()(torch.ones(1, 2, 3)), torch.ones(1, 2, 3))


def test_each_tensors_rate_follows_its_initial_rms():
    model = new_t5(Model(**SHAPE), 70, seed=0)
    query = next(p for name, p in model.named_parameters() if name.endswith("SelfAttention.q.weight"))
    for scaled, scale in ((True, float(query.detach().pow(2).mean().sqrt())), (False, 1.0)):
        optimiser = optimisation.make_optimiser(model, Optimiser(rate=0.1, scaled=scaled))
        group = next(g for g in optimiser.param_groups if g["params"][0] is query)
        assert group["lr"] == pytest.approx(0.1 * scale, rel=1e-5)
    settings = Optimiser(rate=1.0, warmup=10)
    rates = [optimisation.rate_at(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1.0 and rates[99] == pytest.approx(1 / 90)
    assert optimisation.rate_at(99, 100, Optimiser(rate=1.0, warmup=10, decay=False)) == 1.0


def algorithm_state(out):
    return load_checkpoint(out)["algorithm"]


def same(one, other):
    """Whether two states hold the same bits."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def run_in_two(run, tmp_path, part, steps):
    """Run to `steps` directly, and again with a stop after `part` of them."""
    run(tmp_path / "whole", steps)
    run(tmp_path / "parts", part)
    assert load_checkpoint(tmp_path / "parts")["step"] == part
    run(tmp_path / "parts", steps)
    return algorithm_state(tmp_path / "whole"), algorithm_state(tmp_path / "parts")


def test_fit_resumes_to_the_bit(toy, tmp_path):
    # constant rate: a run stopped early must not have decayed
    def run(out, steps):
        fit(toy, out=out, steps=steps, optimiser__decay="false")

    whole, parts = run_in_two(run, tmp_path, 3, 6)
    assert same(whole, parts)
    lines = [json.loads(line) for line in (tmp_path / "parts/metrics.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines].count("start") == 1


def test_fit_learns_and_ships_a_plain_t5(toy, tmp_path):
    table = fit(toy, out=tmp_path / "run", steps=60, bf16="false", dropout=0).table
    assert table[0]["validation_loss"] < 0.7 * math.log(340)
    model = T5ForConditionalGeneration.from_pretrained(tmp_path / "run/model")
    assert model.config.teacher_prompt == TEACHER_PROMPT
    assert model.config.vocab_size % 32 == 0


@pytest.mark.parametrize("way", [{"distill": 0.5}, {"distill": 1}, {"targets": "teacher"}])
def test_fit_learns_from_a_teacher(toy, tmp_path, way):
    told = {"role": "student", "teacher__path": toy / "teacher/model", **way}
    table = fit(toy, out=tmp_path / "run", **told).table
    assert math.isfinite(table[0]["validation_loss"])
    with pytest.raises(ValueError, match=r"teacher\.path"):
        fit(toy, out=tmp_path / "other", **{**told, "teacher__path": "''"})


def test_fit_refuses_a_checkpoint_of_other_settings(toy):
    with pytest.raises(ValueError, match=r"teacher\.d_ff: 24 there, 32 now"):
        fit(toy, out=toy / "teacher", steps=150, dropout=0.0, bf16="false", teacher__d_ff=32)


@pytest.mark.parametrize("values, words", [({"role": "tutor"}, "'tutor'"), ({"distill": 1.5}, "1.5")])
def test_settings_are_checked(toy, values, words):
    with pytest.raises(ValueError, match=words):
        fit(toy, out=toy / "nowhere", **values)


# ---------------------------------------------------------------- phase 1


def test_cloning_resumes_to_the_bit_and_ships_a_student(toy, tmp_path):
    tables = {}

    def run(out, steps):
        recipe = toy_recipe(
            toy,
            "debian-de-en/phase1",
            out=out,
            steps=steps,
            optimiser__decay="false",
            trajectories_file=tmp_path / "t.jsonl",
        )
        tables[out.name] = recipes.train(recipe, quiet=True).table

    whole, parts = run_in_two(run, tmp_path, 4, 6)
    assert same(whole, parts)
    assert tables["whole"] == tables["parts"]
    assert [row["asked"] for row in tables["whole"]] == [budget.fraction for budget in BUDGETS]
    assert all(0 <= row["achieved"] <= 1 for row in tables["whole"])
    student = TrainingWheelsT5.from_pretrained(tmp_path / "whole/model")
    assert student.config.student_prompt == STUDENT_PROMPT
    T5ForConditionalGeneration.from_pretrained(tmp_path / "whole/model")


@pytest.mark.long
def test_cloning_teaches_to_ask_more_with_a_larger_budget(toy, tmp_path):
    recipe = toy_recipe(
        toy,
        "debian-de-en/phase1",
        **{"out": tmp_path, "steps": 300, "target_tokens": 256, "abstain": 1.0, "bf16": "false", "sample_every": 0},
        **{"optimiser__warmup": 10, "optimiser__rate": 2e-2, "validate_every": 0},
    )
    used = [row["achieved"] for row in recipes.train(recipe, quiet=True).table]
    assert used[0] <= 0.15 and used[-1] >= used[0] + 0.2


def test_trajectories_go_on_where_they_stopped(toy, tmp_path, caplog):
    tokenizer = AutoTokenizer.from_pretrained(toy / "tokenizer")
    teacher = T5ForConditionalGeneration.from_pretrained(toy / "teacher/model").eval()
    task = Task(RunSettings(data=Data(folder=str(toy / "data")), max_new_tokens=12), tokenizer)
    rows = Frame(tokenizer).encode(toy_examples(10))
    cache = tmp_path / "trajectories.jsonl"
    with caplog.at_level("INFO", logger=teacher_trajectories.__module__):
        whole = teacher_trajectories(teacher, task, rows, cache, chunk=4)
    told = [record.getMessage() for record in caplog.records if "has written" in record.getMessage()]
    assert len(told) > 1 and re.fullmatch(r"the teacher has written 4 of \d+ outputs", told[0]), told
    lines = cache.read_text().splitlines(keepends=True)
    assert len(lines) == 11  # the first says what they were made of
    for end in ("".join(lines[:6]) + lines[6][:4], lines[0][:9], ""):  # killed while writing
        cache.write_text(end)
        assert teacher_trajectories(teacher, task, rows, cache, chunk=4) == whole
        assert cache.read_text().splitlines(keepends=True) == lines
    longer = Task(RunSettings(data=Data(folder=str(toy / "data")), max_new_tokens=13), tokenizer)
    with pytest.raises(ValueError, match="another teacher, of other special tokens, another prompt or length"):
        teacher_trajectories(teacher, longer, rows, cache)


@pytest.mark.parametrize(
    ("field", "value"), [("eos_token_id", [1, 30]), ("decoder_start_token_id", 5), ("forced_bos_token_id", 7)]
)
def test_trajectories_of_other_special_tokens_are_not_shared(field, value, toy, tmp_path):
    """The same weights, prompt and length, but other outputs."""
    tokenizer = AutoTokenizer.from_pretrained(toy / "tokenizer")
    task = Task(RunSettings(data=Data(folder=str(toy / "data")), max_new_tokens=12), tokenizer)
    rows, cache = Frame(tokenizer).encode(toy_examples(4)), tmp_path / "trajectories.jsonl"
    teacher = T5ForConditionalGeneration.from_pretrained(toy / "teacher/model").eval()
    teacher_trajectories(teacher, task, rows, cache)
    for config in (teacher.config, teacher.generation_config):
        setattr(config, field, value)
    with pytest.raises(ValueError, match="of other special tokens"):
        teacher_trajectories(teacher, task, rows, cache)


@pytest.mark.parametrize(
    "damage", ["{}", "[]", '{"made_by": null}', "HEADER\ngarbage", "\xff\xfe", "HEADER\n5", '["a", [5]]']
)
def test_a_damaged_file_of_trajectories_is_a_sentence(damage, toy, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(toy / "tokenizer")
    task = Task(RunSettings(data=Data(folder=str(toy / "data")), max_new_tokens=8), tokenizer)
    rows, cache = Frame(tokenizer).encode(toy_examples(2)), tmp_path / "trajectories.jsonl"
    teacher = T5ForConditionalGeneration.from_pretrained(toy / "teacher/model").eval()
    teacher_trajectories(teacher, task, rows, cache)
    header = cache.read_text().splitlines()[0]
    cache.write_bytes((damage.replace("HEADER", header) + "\n").encode("latin-1"))
    with pytest.raises(ValueError, match=r"trajectories.jsonl, line \d, is not what holds a teacher's outputs"):
        teacher_trajectories(teacher, task, rows, cache)


def test_a_text_that_is_none_is_named(toy, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"source": "a\\ud800", "target": "b"}\n')
    with pytest.raises(
        ValueError, match=r"train.jsonl: the source .* has a lone surrogate \('\\ud800'\) at character 1"
    ):
        read_examples(Data(folder=str(tmp_path)), "train")


def test_recipes_share_trajectories_even_at_once(toy, tmp_path):
    """Each has rows of its own, some of them both: every row gets its own output, once."""
    tokenizer = AutoTokenizer.from_pretrained(toy / "tokenizer")
    teacher = T5ForConditionalGeneration.from_pretrained(toy / "teacher/model").eval()
    task = Task(RunSettings(data=Data(folder=str(toy / "data")), max_new_tokens=12), tokenizer)
    rows, cache = Frame(tokenizer).encode(toy_examples(24)), tmp_path / "trajectories.jsonl"
    parts = [rows[:16], rows[8:], rows[::-1]]
    alone = [teacher_trajectories(teacher, task, part, tmp_path / f"{i}.jsonl") for i, part in enumerate(parts)]
    with ThreadPoolExecutor(3) as pool:
        at_once = list(pool.map(lambda part: teacher_trajectories(teacher, task, part, cache, chunk=2), parts))
    assert at_once == alone
    keys = [json.loads(line)[0] for line in cache.read_text().splitlines()[1:]]
    assert len(keys) == len(set(keys)) == len({row.source for row in rows})


def with_several_ends(folder, out, ends):
    """A model that ends its outputs with either of two ids."""
    shutil.copytree(folder, out)
    for name in ("config.json", "generation_config.json"):
        if (out / name).exists():
            values = json.loads((out / name).read_text())
            (out / name).write_text(json.dumps(values | {"eos_token_id": ends}))
    return out


SEVERAL_ENDS = ["phase2", "teacher", "sequence-kd", "phase1", "gkd", "skd", "minillm"]
SEVERAL_ENDS += ["on-policy-kd", "phase1-teachers", "phase2-teachers"]


@pytest.mark.parametrize("ends", [[1, 30], [30, 1]], ids=["tokenizer's first", "another first"])
@pytest.mark.parametrize("name", mostly_long(SEVERAL_ENDS))
def test_models_with_several_ends_train(name, ends, toy, tmp_path, monkeypatch):
    sources = []

    for name_of, real in (("generate", Decoder.generate), ("stream", Decoder.stream)):

        def recorded(self, inputs, *args, real=real, **options):
            theirs = options.get("teacher_inputs") or {"input_ids": []}
            inputs = list(inputs)
            sources.extend(row for row in (*inputs, *theirs["input_ids"]) if isinstance(row, list))
            return real(self, inputs, *args, **options)

        monkeypatch.setattr(Decoder, name_of, recorded)
    places = {
        f"{role}__path": with_several_ends(toy / role / "model", tmp_path / role, ends)
        for role in ("student", "teacher")
    }
    if name.endswith("-teachers"):
        places["teachers"] = f"[{{path: {places['teacher__path']}}}]"
    small = {"steps": 2, "max_new_tokens": 8} | ({"tasks": 4} if name.startswith("phase2") else {})
    recipe = toy_recipe(toy, f"debian-de-en/{name}", out=tmp_path / "run", **places, **small)
    assert recipes.train(recipe, quiet=True).step == 2
    assert T5ForConditionalGeneration.from_pretrained(tmp_path / "run/model").config.eos_token_id == ends
    assert {source[-1] for source in sources} == {1}  # behind sources stands the tokenizer's, which comes first or not


def test_oracle_curve_runs_from_student_to_teacher(toy):
    tokenizer = AutoTokenizer.from_pretrained(toy / "tokenizer")
    teacher = T5ForConditionalGeneration.from_pretrained(toy / "teacher/model").eval()
    student = load_student(toy / "student/model", len(tokenizer)).eval()
    examples = toy_examples(6, 60)
    rows = Frame(tokenizer).encode(examples)
    curve = oracle.oracle_curve(
        student, teacher, Frame(tokenizer), rows, [e.target for e in examples], max_new_tokens=12
    )
    assert [row["fraction"] for row in curve] == [budget.fraction for budget in BUDGETS]
    assert curve[0]["achieved"] == 0 and curve[-1]["achieved"] > 0
