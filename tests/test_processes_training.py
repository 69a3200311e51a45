"""Two processes (gloo, CPU) train as one does on the same global batches."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from kdtw_fast.training import processes, recipes
from kdtw_fast.training.checkpoints import load_checkpoint
from toy_training import SHAPE, overrides, toy_recipe

VARIED = {
    # 60 rows in buckets: some batches have one row, so a process may have none
    "fit": ("debian-de-en/teacher", {"dropout": 0, **{f"teacher__{name}": value for name, value in SHAPE.items()}}),
    "phase1": ("debian-de-en/phase1", {}),
    "gkd": ("debian-de-en/gkd", {"updates_per_batch": 2}),
    "skd": ("debian-de-en/skd", {"updates_per_batch": 2}),
    "phase2": (
        "debian-de-en/phase2",
        {"tasks": 6, "on_policy_rows": 6, "oracle_rows": 3, "replay_rows": 4, "value_batches": 1, "validate_every": 0},
    ),
    "wordings": (
        "debian-de-en/phase2-paraphrases",
        {
            **{"budgets": "[light,'very high']", "tasks": 6, "on_policy_rows": 6, "oracle_rows": 3, "replay_rows": 4},
            **{"value_batches": 1, "validate_every": 0, "validation_rows": 1},
            **{"held_out_rows": 1},  # fewer than processes
        },
    ),
    "minillm": ("debian-de-en/minillm", {"updates_per_batch": 2}),
}


def settings_of(name, out):
    recipe, own = VARIED[name]
    if name == "fit":
        own = {**own, "teacher__path": "''"}
    quick = {"steps": 12, "log_every": 1, "bf16": "false", "sample_every": 0, "target_tokens": 48}
    return recipe, {**quick, **own, "out": out}


# without --multi_gpu, accelerate starts several processes on CPUs by MPI alone
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate launch": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
}


def launched(launcher, *program):
    """The output of two processes of a program."""
    command = [sys.executable, "-m", *LAUNCHERS[launcher]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*command, *map(str, program)], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def assert_same_training(one, two):
    """The same events, losses and weights, but for the order of sums."""
    rows, others = (
        [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] for out in (one, two)
    )
    assert [row["event"] for row in rows] == [row["event"] for row in others]
    assert sum(row["event"] == "step" for row in rows) == 12
    for mine, theirs in zip(rows, others, strict=True):
        if mine["event"] == "step":
            assert theirs["loss"] == pytest.approx(mine["loss"], rel=2e-4, abs=2e-5), mine["step"]
            assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=5e-3, abs=1e-4), mine["step"]
            # Of phase 2: the same episodes, so the same use and multipliers, and means over all processes' tokens.
            for name in mine:
                if name.startswith(("use/", "lambda/", "replay")):
                    assert theirs[name] == pytest.approx(mine[name], abs=1e-9), (mine["step"], name)
                elif type(mine[name]) is float and "grad_norm" not in name and not name.startswith("seconds"):
                    assert theirs[name] == pytest.approx(mine[name], rel=5e-3, abs=1e-3), (mine["step"], name)
    states = [load_checkpoint(out)["algorithm"] for out in (one, two)]
    models = [state["student"] if "student" in state else state["model"] for state in states]
    for key, value in models[0].items():
        assert float((value - models[1][key]).abs().max()) < 1e-3, key


@pytest.mark.long
def test_two_processes_are_as_one(toy, tmp_path):
    names = [name for name in VARIED if name != "fit"]
    for name in names:
        recipe, settings = settings_of(name, tmp_path / name / "one")
        recipes.train(toy_recipe(toy, recipe, **settings), quiet=True)
        two = toy_recipe(toy, recipe, **{**settings, "out": tmp_path / name / "two", "shard_teacher": "true"})
        (tmp_path / f"{name}.yaml").write_text(recipes.to_yaml(two))
    script = tmp_path / "all.py"
    script.write_text(
        "import sys\n"
        "from kdtw_fast.training import processes, recipes\n"
        "assert processes.number() == 2\n"
        "teacher = recipes.resolve(sys.argv[1]).build().teachers[0]\n"
        "parts = sum(getattr(p, 'to_local', lambda: p)().numel() for p in teacher.decoder.block.parameters())\n"
        "assert parts < 0.7 * sum(p.numel() for p in teacher.decoder.block.parameters()), parts\n"
        "for path in sys.argv[1:]:\n"
        "    recipes.train(recipes.resolve(path), quiet=True)\n"
    )
    launched("torchrun", script, *(tmp_path / f"{name}.yaml" for name in names))
    for name in names:
        assert_same_training(tmp_path / name / "one", tmp_path / name / "two")


@pytest.mark.long
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_run_the_command(toy, tmp_path, launcher):
    recipe, settings = settings_of("fit", tmp_path / "one")
    alone = toy_recipe(toy, recipe, **settings)
    table = recipes.train(alone, quiet=True).table
    (tmp_path / "two.yaml").write_text(recipes.to_yaml(alone))
    arguments = ["train", tmp_path / "two.yaml", *overrides(out=tmp_path / "two"), "--quiet"]
    written = launched(launcher, "-m", "kdtw_fast", *arguments)
    assert len(written.splitlines()) == len(table)  # one of them prints
    assert_same_training(tmp_path / "one", tmp_path / "two")


@pytest.fixture
def machines():
    """Two network namespaces with a cable between them: the commands that run programs there, the first's address."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("two network namespaces need Linux, root and ip (iproute2)")
    names = [f"kdtw{os.getpid()}{end}" for end in "ab"]

    def ip(*words):
        return subprocess.run(["ip", *words], capture_output=True, text=True)

    made = [ip("netns", "add", name) for name in names]
    try:
        cable = ("type", "veth", "peer", "name", "cable", "netns", names[1])
        made.append(ip("link", "add", "cable", "netns", names[0], *cable))
        for name, address in zip(names, ("10.77.0.1", "10.77.0.2")):
            made.append(ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable"))
            made += [ip("-n", name, "link", "set", device, "up") for device in ("lo", "cable")]
        if failed := [one for one in made if one.returncode != 0]:
            pytest.skip(f"no network namespaces here: {failed[0].stderr.strip()}")
        yield [["ip", "netns", "exec", name] for name in names], "10.77.0.1"
    finally:
        for name in names:
            ip("netns", "del", name)


@pytest.mark.long
def test_two_machines_are_as_one(toy, tmp_path, machines):
    """As documented, each machine with a folder of its own: the first one's has the run."""
    recipe, settings = settings_of("fit", tmp_path / "one")
    alone = toy_recipe(toy, recipe, **settings)
    table = recipes.train(alone, quiet=True).table
    (tmp_path / "two.yaml").write_text(recipes.to_yaml(alone))
    commands, first = machines
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"GLOO_SOCKET_IFNAME": "cable"}
    running = []
    for number, machine in enumerate(commands):
        torchrun = [
            *machine,
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes",
            "2",
            "--node_rank",
            str(number),
        ]
        torchrun += ["--nproc_per_node", "1", "--master_addr", first, "--master_port", "29500"]
        train = ["-m", "kdtw_fast", "train", tmp_path / "two.yaml", *overrides(out=tmp_path / f"at{number}"), "--quiet"]
        running.append(
            subprocess.Popen(
                [*torchrun, *map(str, train)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        )
    done = [process.communicate(timeout=600) for process in running]
    assert [process.returncode for process in running] == [0, 0], done[0][1][-3000:] + done[1][1][-3000:]
    assert [len(written.splitlines()) for written, _ in done] == [len(table), 0]
    assert_same_training(tmp_path / "one", tmp_path / "at0")
    assert not (tmp_path / "at1" / "metrics.jsonl").exists()


@pytest.mark.long
def test_a_process_may_end_while_its_sums_are_under_way(tmp_path):
    """Else gloo's threads, which let go of the tensors, find no Python any more and abort the process."""
    script = tmp_path / "end.py"
    script.write_text(
        "import torch\n"
        "from kdtw_fast.training import processes\n"
        "assert processes.number() == 2\n"
        "for size in [1] + [1 << 20] * 30:\n"
        "    torch.distributed.all_reduce(torch.ones(size), async_op=True)\n"
    )
    launched("torchrun", script)


def test_one_process_is_left_alone():
    assert (processes.number(), processes.rank(), processes.share(3), processes.total(2.5)) == (1, 0, 1.0, 2.5)
    assert processes.mine([1, 2, 3]) == processes.gathered([1, 2, 3]) == [1, 2, 3]
