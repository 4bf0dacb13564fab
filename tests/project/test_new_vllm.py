"""benchmarks/new_vllm.py: jobs share GPUs, none is done twice, and what fails is said."""

import argparse
import sys

import benchmark_script
import pytest

new_vllm = benchmark_script.load("new_vllm")

# Writes down when it begins and ends, and on which GPUs.
NOTED = """
import os, sys, time
for word in ("begins", "ends"):
    with open(sys.argv[1], "a") as file:
        file.write(f"{sys.argv[2]} {word} {os.environ['CUDA_VISIBLE_DEVICES']}\\n")
    time.sleep(float(sys.argv[3]))
sys.exit(int(sys.argv[4]))
"""


@pytest.fixture
def job(tmp_path):
    def job(name, gpus, seconds=0.2, status=0, limit_s=60):
        arguments = [tmp_path / "notes", name, seconds, status]
        return new_vllm.Job(
            name, gpus, limit_s, [sys.executable, "-c", NOTED, *map(str, arguments)]
        )

    return job


def run(tmp_path, jobs, gpus=2, seconds=60):
    settings = argparse.Namespace(out=tmp_path, gpus=gpus, seconds=seconds)
    return new_vllm._run(jobs, settings)


def notes(tmp_path):
    return [line.split() for line in (tmp_path / "notes").read_text().splitlines()]


def test_no_gpu_has_two_jobs_and_jobs_begin_in_order(tmp_path, job):
    assert run(tmp_path, [job("a", 1), job("b", 2), job("c", 1), job("d", 1)]) == []
    busy = set()
    for _, word, gpus in notes(tmp_path):
        gpus = set(gpus.split(","))
        if word == "begins":
            assert not gpus & busy
            busy |= gpus
        else:
            busy -= gpus
    begun = [name for name, word, _ in notes(tmp_path) if word == "begins"]
    assert begun[:2] == ["a", "b"]
    assert sorted(begun[2:]) == ["c", "d"]
    assert sorted(path.stem for path in tmp_path.glob("*.seconds")) == ["a", "b", "c", "d"]


def test_what_fails_or_takes_too_long_is_named_and_the_others_are_done(tmp_path, job):
    wanted = [job("a", 1, status=3), job("b", 1, seconds=60, limit_s=1), job("c", 1)]
    assert sorted(run(tmp_path, wanted)) == ["a", "b"]
    assert [path.stem for path in tmp_path.glob("*.seconds")] == ["c"]
    assert "KeyboardInterrupt" in (tmp_path / "b.log").read_text()


def test_without_time_nothing_begins(tmp_path, job):
    assert run(tmp_path, [job("a", 1)], seconds=0) == ["a"]
    assert not (tmp_path / "notes").exists()


def test_what_runs_ends_with_the_script(tmp_path, monkeypatch, job):
    def interrupt(seconds):
        if (tmp_path / "notes").exists():
            raise KeyboardInterrupt
        sleep(seconds)

    sleep = new_vllm.time.sleep
    monkeypatch.setattr(new_vllm.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [job("a", 1, seconds=60)])
    assert "KeyboardInterrupt" in (tmp_path / "a.log").read_text()
    assert notes(tmp_path) == [["a", "begins", "0"]]


def test_jobs_that_need_more_gpus_are_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "cost-V1.seconds").write_text("1\n")
    arguments = ["x", "--out", str(tmp_path), "--jobs", "cost-V1", "cost-two-ranks"]
    monkeypatch.setattr(sys, "argv", arguments)
    new_vllm.main()
    assert capsys.readouterr().out == (
        "left out, as they need more GPUs: cost-two-ranks\nAll other jobs passed.\n"
    )


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch, capsys):
    for name in ("cost-V1", "cost-V2"):
        (tmp_path / f"{name}.seconds").write_text("1\n")
    monkeypatch.setattr(sys, "argv", ["x", "--out", str(tmp_path), "--jobs", "cost-V1", "cost-V2"])
    new_vllm.main()
    assert capsys.readouterr().out == "All jobs passed.\n"


def test_jobs_of_a_real_model_need_one(tmp_path):
    def names(**options):
        defaults = {"model": None, "draft": None, "questions": None, "repeats": 6}
        found = new_vllm.jobs(argparse.Namespace(out=tmp_path, **defaults | options))
        assert len({job.name for job in found}) == len(found)
        return {job.name for job in found}

    plain = names()
    real = names(model="m", questions="q")
    assert real - plain == {"collect", "n-grams-V1", "n-grams-V2"}
    assert names(model="m", questions="q", draft="d") - real == {"drafts-V1", "drafts-V2"}
