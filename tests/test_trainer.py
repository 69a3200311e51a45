"""The trainer on its own: kill -9 anywhere, damaged checkpoints, signals, losses that are not finite, selection."""

import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass

import pytest
import torch
from kdtw_fast.training import checkpoints, trainer
from kdtw_fast.training.algorithm import Learning, LearningToAsk
from kdtw_fast.training.checkpoints import LATEST, PREVIOUS, load_checkpoint, save_checkpoint
from kdtw_fast.training.evaluate import best_rouge2, rank
from kdtw_fast.training.optimisation import NonFiniteLossError, seed_batch, update
from kdtw_fast.training.settings import PhaseSettings, RunSettings
from kdtw_fast.training.trainer import TooManyNonFiniteError, Trainer, alone_in


class Toy(Learning):
    """A linear model on random data, with dropout; as fast as an algorithm can be."""

    def __init__(self, spoilt=(), pause=0.0):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Dropout(0.2), torch.nn.Linear(64, 1))
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.spoilt, self.pause = spoilt, pause

    def train_batch(self, index):
        seed_batch(3, index)
        x = torch.randn(8, 64)
        loss = (self.model(x) - x.sum(1, keepdim=True)).pow(2).mean()
        if index in self.spoilt:
            loss = loss * float("nan")
        norm = update(loss, self.model, self.optimiser, 1.0, {"x": x})
        time.sleep(self.pause)
        return {"loss": float(loss.detach()), "grad_norm": norm}

    def validate(self, index, rows):
        time.sleep(self.pause)
        with torch.no_grad():
            return [{"rouge2": float(self.model[0].weight.sum()), "rows_seen": rows or -1}]

    def samples(self, index, count):
        return [{"source": "a", "text": "[b]"}] * count

    def save_model(self, folder):
        folder.mkdir()
        torch.save(self.model.state_dict(), folder / "model.pt")


@dataclass(frozen=True)
class ToySettings(RunSettings):
    tensor_of: int = 1


def settings(out, **values):
    quick = {"steps": 40, "checkpoint_every": 3, "validate_every": 8, "log_every": 5, "sample_every": 9}
    return ToySettings(out=str(out), **{**quick, **values})


def run(out, algorithm=None, **values):
    return Trainer(algorithm or Toy(), settings(out, **values), "toy", quiet=True).run()


@pytest.mark.parametrize(("theirs", "said"), [(9, "batches 4 to 9"), (0, "batches 0 to 4")])
def test_processes_go_on_from_the_same_batch(tmp_path, monkeypatch, theirs, said):
    """Another process has found another folder, where it is in this batch."""
    run(tmp_path, steps=4)
    last = max(4, theirs)
    answers = iter([last, last - min(4, theirs)])
    monkeypatch.setattr(trainer.processes, "most", lambda value: next(answers))
    with pytest.raises(ValueError, match=f"processes found {said} there"):
        run(tmp_path, steps=10)


def lines(out, *without):
    """metrics.jsonl without times."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in rows]


def weights(path):
    return {name: value.tolist() for name, value in torch.load(path).items()}


def assert_same_run(one, other):
    assert lines(one) == lines(other)
    for name in ("model", "best"):
        assert weights(one / name / "model.pt") == weights(other / name / "model.pt")
    mine, theirs = load_checkpoint(one), load_checkpoint(other)
    for key in ("step", "validated", "skipped", "best"):
        assert mine[key] == theirs[key]
    assert str(mine["algorithm"]) == str(theirs["algorithm"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return out


# ---------------------------------------------------------------- kill -9


def train_until_killed(out, where, chance):
    """A run that kills itself: some time after some batch, or inside a call of a function that writes checkpoints."""
    toy = Toy(pause=0.004)
    if where == "anywhere":
        batches, delay, train_batch = chance.randrange(5, 15), chance.uniform(0.0, 0.01), toy.train_batch
        enough = threading.Event()

        def counted(index):
            nonlocal batches
            batches -= 1
            if batches == 0:
                enough.set()
            return train_batch(index)

        toy.train_batch = counted
        threading.Thread(target=lambda: (enough.wait(), time.sleep(delay), os.kill(os.getpid(), 9))).start()
    else:
        owner, name = (torch, "save") if where == "write" else (os, where)
        real, left, part = getattr(owner, name), [chance.randrange(1, 16)], chance.random()

        def deadly(*arguments):
            left[0] -= 1
            if left[0] == 0:
                if where == "write" and hasattr(arguments[1], "write"):  # a part of what it should have written
                    real(arguments[0], whole := io.BytesIO())
                    arguments[1].write(whole.getvalue()[: int(part * whole.tell())])
                    arguments[1].flush()
                os.kill(os.getpid(), 9)
            return real(*arguments)

        setattr(owner, name, deadly)
    run(out, toy)
    os._exit(0)


@pytest.mark.parametrize("where", ["anywhere", "write", "replace", "fsync"])
def test_killed_at_random_moments_it_ends_with_the_same_bits(where, whole, tmp_path):
    chance = random.Random(where)
    deaths, reached = 0, set()
    for _ in range(5):
        child = multiprocessing.get_context("fork").Process(target=train_until_killed, args=(tmp_path, where, chance))
        child.start()
        child.join()
        chance.random()
        assert child.exitcode in (0, -signal.SIGKILL)
        deaths += child.exitcode != 0
        state = load_checkpoint(tmp_path)
        reached.add(state["step"] if state else 0)
    assert deaths >= 2 and len(reached) >= 2  # it was killed, and went on from there
    run(tmp_path)
    assert_same_run(whole, tmp_path)


# ---------------------------------------------------------------- damaged checkpoints


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_taken(damage, whole, tmp_path, caplog):
    shutil.copytree(whole, tmp_path / "run")
    out = tmp_path / "run"
    good = (out / LATEST).read_bytes()
    middle = len(good) // 2
    bad = {
        "cut": good[:middle],
        "empty": b"",
        "flipped": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
    }
    (out / LATEST).write_bytes(bad[damage])
    assert load_checkpoint(out)["step"] == 39
    assert f"refused {out / LATEST}" in caplog.text and f"going on from {out / PREVIOUS}" in caplog.text
    run(out)
    assert_same_run(whole, out)


def test_two_damaged_checkpoints_are_an_error(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for name in (LATEST, PREVIOUS):
        (tmp_path / name).write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"no whole checkpoint is left: .*checkpoint.previous.pt is damaged"):
        load_checkpoint(tmp_path)


def test_a_damaged_checkpoint_never_takes_the_place_of_the_one_before(whole, tmp_path, monkeypatch):
    for name in (LATEST, PREVIOUS):
        shutil.copy(whole / name, tmp_path / name)
    good = (tmp_path / PREVIOUS).read_bytes()
    (tmp_path / LATEST).write_bytes(good[:-1])
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(InterruptedError()))  # killed at the first name
    with pytest.raises(InterruptedError):
        save_checkpoint(tmp_path, {"step": 1})
    assert load_checkpoint(tmp_path)["step"] == 39
    monkeypatch.undo()
    save_checkpoint(tmp_path, {"step": 2})
    assert (tmp_path / PREVIOUS).read_bytes() == good and load_checkpoint(tmp_path)["step"] == 2
    save_checkpoint(tmp_path, {"step": 3})
    (tmp_path / LATEST).unlink()
    assert load_checkpoint(tmp_path)["step"] == 2


def test_a_checkpoint_is_a_torch_file(tmp_path):
    save_checkpoint(tmp_path, {"x": torch.arange(3), "name": "a", "rest": [1, None, {"b": 2.5}]})
    assert torch.load(tmp_path / LATEST, weights_only=True)["rest"] == [1, None, {"b": 2.5}]
    assert not (tmp_path / checkpoints.SCRATCH).exists()


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", ["train_batch", "validate"])
def test_a_signal_saves_and_stops(number, where, whole, tmp_path, caplog):
    algorithm = Toy()
    real, calls = getattr(algorithm, where), []

    def signalled(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return real(*arguments)

    setattr(algorithm, where, signalled)
    before = signal.getsignal(number)
    outcome = run(tmp_path, algorithm)
    assert signal.getsignal(number) is before
    assert outcome.stopped_by == number and f"{number.name}: saving and stopping" in caplog.text
    assert outcome.step == load_checkpoint(tmp_path)["step"] == (3 if where == "train_batch" else 24)
    assert not (tmp_path / "model").exists()
    run(tmp_path)
    assert_same_run(whole, tmp_path)


def test_a_signal_between_the_lines_of_a_validation_is_no_traceback(tmp_path):
    """One that comes when the table is there and the trainer does not yet say that it validates no more."""

    class Late(Trainer):
        def __setattr__(self, name, value):
            ends = name == "_validating" and not value and self.__dict__.get(name)
            if ends and self.step == 24 and self._received is None:
                os.kill(os.getpid(), signal.SIGTERM)
            super().__setattr__(name, value)

    trainer = Late(Toy(), settings(tmp_path), "toy", quiet=True)
    assert trainer.run().stopped_by == signal.SIGTERM
    assert load_checkpoint(tmp_path)["step"] == 24


# ---------------------------------------------------------------- losses that are not finite


def test_a_loss_that_is_not_finite_is_skipped_and_counted(tmp_path):
    run(tmp_path, Toy(spoilt=(4, 7)))
    found = [row for row in lines(tmp_path) if row["event"] == "non_finite"]
    assert [(row["step"], row["count"]) for row in found] == [(5, 1), (8, 2)]
    assert lines(tmp_path)[-3]["non_finite"] == 2
    saved = torch.load(tmp_path / "non_finite.pt", weights_only=True)
    assert saved["step"] == 7 and saved["x"].shape == (8, 64) and "nan" in saved["message"]
    # a skipped update leaves weights and optimiser as they were
    algorithm = Toy(spoilt=(0,))
    before = str(algorithm.state_dict())
    with pytest.raises(NonFiniteLossError):
        algorithm.train_batch(0)
    assert str(algorithm.state_dict()) == before


def test_too_many_of_them_stop_the_run(tmp_path):
    with pytest.raises(TooManyNonFiniteError, match=r"stopped at batch 6: 3 updates were not finite .*non_finite.pt"):
        run(tmp_path, Toy(spoilt=range(4, 40)), max_non_finite=2)
    assert torch.load(tmp_path / "non_finite.pt", weights_only=True)["step"] == 6


def test_a_gradient_that_is_not_finite_is_not_applied():
    model = torch.nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    loss = torch.sqrt(model(torch.zeros(1, 1))).sum()  # 0, with an infinite derivative times zero
    with pytest.raises(NonFiniteLossError, match="gradient's norm is nan at a loss of 0"):
        update(loss, model, torch.optim.SGD(model.parameters(), 1.0), 1.0, {})
    assert model.weight.item() == before


# ---------------------------------------------------------------- what is kept and written


def test_the_best_and_the_last_model_are_kept(tmp_path):
    class Rising(Toy):
        def validate(self, index, rows):
            return [{"rouge2": {8: 1.0, 16: 5.0, 24: 5.0}.get(index, 2.0)}]

    outcome = run(tmp_path, Rising())
    assert outcome.best["step"] == 16 and outcome.best["table"] == [{"rouge2": 5.0}]
    short = tmp_path / "short"
    run(short, Rising(), steps=16)
    assert weights(tmp_path / "best/model.pt") == weights(short / "model/model.pt")
    assert weights(tmp_path / "model/model.pt") != weights(short / "model/model.pt")


def test_ranks():
    table = [{"asked": 0.1, "achieved": 0.12, "rouge2": 30.0}, {"asked": 0.5, "achieved": 0.4, "rouge2": 40.0}]
    worse = [{**row, "rouge2": row["rouge2"] - 1} for row in table]
    table[1]["achieved"] = worse[1]["achieved"] = 0.49
    off, further = ([{**table[0], "achieved": use}, {**table[1], "rouge2": 99.0}] for use in (0.06, 0.2))
    assert best_rouge2(table) == (35.0,)
    assert sorted([off, table, further, worse], key=rank) == [further, off, worse, table]


def test_metrics_hold_every_batch_once(whole):
    rows = lines(whole)
    assert [row["step"] for row in rows if row["event"] == "step"] == list(range(5, 41, 5))
    assert [row["step"] for row in rows if row["event"] == "validation"] == list(range(8, 41, 8))
    assert [row["text"] for row in rows if row["event"] == "sample" and row["step"] == 9] == ["[b]"] * 3
    assert rows[0]["event"] == "start" and rows[-1]["event"] == "final"
    losses = [Toy().train_batch(0)["loss"]]
    assert rows[1]["loss"] != losses[0]  # a mean over five batches, not the first one's


def test_started_again_when_done_it_changes_nothing(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "again")
    run(tmp_path / "again")
    assert_same_run(whole, tmp_path / "again")


def test_a_folder_has_one_run_at_a_time(tmp_path):
    def hold(entered, leave):
        with alone_in(tmp_path):
            entered.set()
            leave.wait()

    fork = multiprocessing.get_context("fork")
    entered, leave = fork.Event(), fork.Event()
    other = fork.Process(target=hold, args=(entered, leave))
    other.start()
    entered.wait()
    with pytest.raises(ValueError, match=f"another run is writing to {tmp_path}; wait for its end"), alone_in(tmp_path):
        raise AssertionError
    other.kill()  # who is killed holds nothing
    other.join()
    with alone_in(tmp_path):
        pass


@pytest.mark.parametrize("terminal", [False, True])
def test_it_says_how_far_it_is(terminal, tmp_path, monkeypatch):
    class Told(Toy):
        def samples(self, index, count):
            return [{"source": "Haus", "text": "[house]", "target": "a house"}] * count

    said = io.StringIO()
    said.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(trainer, "LINE_SECONDS", 0.0)
    Trainer(Told(), settings(tmp_path, steps=10, sample_every=9), "toy").run()
    text = said.getvalue()
    assert "[9] Haus\n    written:   [house]\n    reference: a house\n" in text
    if terminal:
        assert re.search(r"100%\|.*\| 10/10 .*loss=", text)
    else:
        assert "\r" not in text
        found = [line for line in text.splitlines() if line.startswith("batch ")]
        assert len(found) >= 10  # LINE_SECONDS is 0
        assert re.match(r"batch 10 of 10, \d\d:\d\d gone, 00:00 left, loss=[\d.]+, validation=-?[\d.]+$", found[-1])
    quiet = io.StringIO()
    monkeypatch.setattr(sys, "stderr", quiet)
    run(tmp_path / "quiet", steps=10)
    assert quiet.getvalue() == ""


def test_a_missed_budget_is_said_with_what_moves_it(tmp_path, caplog):
    class Asking(Toy):
        settings = PhaseSettings(tolerance=0.02)
        moves_use = "turn the knob"
        missed = LearningToAsk.missed

        def validate(self, index, rows):
            uses = {"light": (0.1, 0.114), "moderate": (0.3, 0.35), "high": (0.4, 0.31)}
            return [{"budget": b, "asked": a, "achieved": u, "rouge2": 1.0} for b, (a, u) in uses.items()]

    run(tmp_path, Asking(), steps=2)
    assert (
        "2 of 3 budgets are missed by more than tolerance=0.02 (use minus budget): "
        '"moderate" by +5.0 points, "high" by -9.0 points; turn the knob' in caplog.text
    )


def test_no_batches_still_give_a_model(tmp_path):
    outcome = run(tmp_path, steps=0)
    assert outcome.step == 0 and (tmp_path / "model/model.pt").exists()


def test_other_settings_and_fewer_steps_are_refused(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="tensor_of: 1 there, 2 now"):
        run(out, tensor_of=2)
    with pytest.raises(ValueError, match="holds batch 40, but steps=30"):
        run(out, steps=30)
    with pytest.raises(ValueError, match="out is empty"):
        run("")
    assert run(out, steps=44, log_every=11, max_non_finite=3).step == 44


def test_tensorboard_gets_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, steps=20, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("step/loss")] == [5, 10, 15, 20]
    assert {"validation/rouge2", "final/rouge2"} <= set(events.Tags()["scalars"])


def test_wandb_must_be_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        run(tmp_path, wandb="project")


def test_wandb_gets_the_numbers(tmp_path, monkeypatch):
    class Project:
        def __init__(self, **_):
            self.rows = []

        def log(self, values, step):
            self.rows.append((step, values))

        def finish(self):
            self.rows.append("finished")

    project = Project()
    fake = type(sys)("wandb")
    fake.init = lambda **settings: project
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run(tmp_path, steps=5, wandb="project", validate_every=0)
    assert project.rows[0][0] == 5 and "step/loss" in project.rows[0][1]
    assert project.rows[-1] == "finished"
