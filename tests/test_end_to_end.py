"""The small recipe as its user runs it, unbroken and killed in every stage."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from random import Random

import pytest

from asr_kd.scoring.results import check_results

ROOT = Path(__file__).parents[1]
pytest.importorskip("kaldi_hmm_gmm", reason="the HMM side needs the Kaldi wheels: pip install '.[hmm]'")
pytest.importorskip("espeakng_loader", reason="the embedded corpus needs espeak-ng: pip install '.[mini]'")

TINY = "--hours-train 0.03 --hours-dev 0.01 --hours-test 0.01 --nj 2 --num-members 2 --num-seeds 2 --num-epochs 4"
TINY += " --student-epochs 6 --sweep-temperatures 1,2 --sweep-epochs 1 --sweep-seeds 2"
TINY += " --hidden-dim 32 --num-hidden-layers 1"
TINY += " --hours-unlabelled 0.02 --sequence-weight 0.5"
TINY += " --gmm-num-iters 8 --gmm-total-gauss 150 --acwts 0.1,0.3 --insertion-penalties 0,2"
STAGES = ["01_data", "02_features", "03_align", "04_train", "05_distill", "06_decode", "07_report", "08_model"]
MARK = re.compile(r"# \d{4}-\d\d-\d\d \d\d:\d\d:\d\d (stage|done)")


def command(exp: Path) -> list[str]:
    return ["bash", str(ROOT / "recipes/mini/run.sh"), "--exp", str(exp), *TINY.split()]


ENVIRONMENT = {**os.environ, "ASR_KD_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}


def digests(exp: Path) -> dict[str, str]:
    cards = sorted(exp.glob("nnet/*/seed*/net.json"))
    return {str(card.relative_to(exp)): json.loads(card.read_text())["digest"] for card in cards}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    exp = tmp_path_factory.mktemp("whole")
    done = subprocess.run(command(exp), env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (exp / "stderr").write_text(done.stderr)
    return exp


def test_the_recipe_ends_with_results_and_a_page(whole):
    results = json.loads((whole / "report/results.json").read_text())
    check_results(results)
    assert set(results["headline"]) == {"baseline", "ensemble", "student"}
    roles = {system["name"]: system["role"] for system in results["systems"]}
    assert {"member1", "member2", "baseline", "baseline-long", "ensemble-arithmetic", "student"} <= roles.keys()
    assert roles["student"] == "control"  # of untranscribed speech, which the baseline cannot use
    taught = json.loads((whole / "nnet/student/seed1/net.json").read_text())["training"]["loss"]["sequence"]
    assert [targets.get("sequence_weight") for targets in taught] == [None, 0.5]
    page = (whole / "report/index.html").read_text()
    assert "The distilled net is a control" in page
    assert "<table" in page
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    commands = (whole / "commands.txt").read_text()
    assert "asr-kd distill" in commands
    assert str(ROOT) not in commands


def test_a_second_run_makes_nothing_again(whole):
    made = {path: path.stat().st_mtime_ns for path in whole.rglob("*.h5")}
    made |= {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}
    again = subprocess.run(command(whole), env=ENVIRONMENT, capture_output=True, text=True)
    assert again.returncode == 0
    assert made == {path: path.stat().st_mtime_ns for path in made}
    assert again.stderr.count("up to date") >= 15


def test_experiments_of_the_paper_begin_where_the_recipe_ends(whole, tmp_path):
    short = ["--base", whole, "--seeds", "1", "--student-epochs", "1", "--device", "cpu"]
    compression = ["--kinds", "pruned50", "--rounds", "1", "--split", "test", "--out", tmp_path / "compression"]
    specialists = [
        "--clusterings",
        "random",
        "--num-specialists",
        "2",
        "--top-n",
        "2",
        "--out",
        tmp_path / "specialists",
    ]
    for name, options in (("compression", compression), ("specialists", specialists)):
        argv = [str(arg) for arg in ("bash", ROOT / f"recipes/paper/{name}.sh", *short, *options)]
        done = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    (row,) = json.loads((tmp_path / "compression/compression.test.json").read_text())["rows"]
    assert row["kind"] == "pruned50"
    assert row["sparsity"] == pytest.approx(0.5, abs=0.01)
    systems = {row["system"] for row in json.loads((tmp_path / "specialists/specialists.json").read_text())}
    assert {"generalist", "specialists-random", "ensemble", "specialists-distilled", "ensemble-distilled"} <= systems


def stage_seconds(exp: Path) -> dict[str, float]:
    """How long each stage took, from the whole run's marks."""
    lines = (exp / "stderr").read_text().splitlines()
    begins = [datetime.fromisoformat(line[2:21]) for line in lines if MARK.match(line)]
    return {
        stage: (end - begin).total_seconds() for stage, begin, end in zip(STAGES, begins[:-1], begins[1:], strict=True)
    }


def test_killed_at_random_moments_it_ends_with_the_same_weights(whole, tmp_path):
    """kill -9 of the whole process group at random moments of every stage, then the same command again.

    ASR_KD_KILLS (default 8, one a stage) says how many moments; ASR_KD_KILL_SEED draws other ones.
    """
    exp, random = tmp_path / "exp", Random(int(os.environ.get("ASR_KD_KILL_SEED", "1")))
    kills = [STAGES[number % len(STAGES)] for number in range(int(os.environ.get("ASR_KD_KILLS", "8")))]
    seconds, num_killed = stage_seconds(whole), 0
    for number, stage in enumerate(STAGES, 1):
        this_stage = [*command(exp), "--stage", str(number), "--stop-stage", str(number)]
        for _ in range(kills.count(stage)):
            run = subprocess.Popen(this_stage, env=ENVIRONMENT, stderr=subprocess.DEVNULL, start_new_session=True)
            try:
                run.wait(random.uniform(0.05, 0.8) * max(seconds[stage], 2.0))  # though the machine be less busy now
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)
                num_killed += 1
                run.wait()
        done = subprocess.run(this_stage, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    assert num_killed >= len(kills) // 2
    assert digests(exp) == digests(whole)
    names = ("systems", "comparisons", "gain_recovered")
    one, other = (json.loads((folder / "report/results.json").read_text()) for folder in (whole, exp))
    timings = {"train_seconds", "train_frames_per_second", "decode_rtf"}
    for results in (one, other):
        for system in results["systems"]:
            for key in timings:
                system.pop(key)
    assert [one[name] for name in names] == [other[name] for name in names]


def test_two_runs_in_one_folder_are_refused(whole):
    with open(whole / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.run(command(whole), env=ENVIRONMENT, capture_output=True, text=True)
    assert second.returncode == 1
    assert "another run is at work" in second.stderr


def test_a_stage_that_outlives_its_run_is_not_met_by_a_second_run(tmp_path):
    first_stage = [*command(tmp_path), "--stop-stage", "1", "--hours-train", "9"]
    run = subprocess.Popen(first_stage, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert any("# prepare_mini.py" in line for line in run.stderr)  # the stage is at work
        run.kill()  # run.sh alone, and not its process group
        run.wait()
        second = subprocess.run(first_stage, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        assert second.returncode == 1
        assert "another run is at work" in second.stderr
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.stderr.close()
