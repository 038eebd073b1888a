"""What the experiments share: options, rows in a file, statistics, drawing."""

import math
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest

from train.errors import UserError
from train.experiments.harness import options, results, show, statistics, style

POINTS = [{"variant": "sm", "eps": eps} for eps in (0.1, 0.2, 0.3, 0.4)]


def test_results_hold_whole_points(tmp_path):
    table = results.Results(tmp_path)
    rows = [{"seed": 0, "accuracy": 0.5}, {"seed": 1, "accuracy": math.nan}]
    table.add(POINTS[0], rows)
    table.add(POINTS[1], [{"seed": 0, "other": 3}])
    again = results.Results(tmp_path)
    assert again.has(POINTS[0]) and not again.has(POINTS[2])
    rows = again.rows()
    assert len(rows) == len(table.rows()) == 3
    assert [row["seed"] for row in rows] == [0, 1, 0]
    assert rows[2]["other"] == 3 and math.isnan(rows[2]["accuracy"])


def test_a_point_is_added_once(tmp_path):
    first, second = results.Results(tmp_path), results.Results(tmp_path)
    first.add(POINTS[0], [{"seed": 0, "accuracy": 0.5}])
    second.add(POINTS[0], [{"seed": 0, "accuracy": 0.7}])
    assert [row["accuracy"] for row in first.rows()] == [0.5]


def _add_points(folder, number, barrier):
    table = results.Results(folder)
    barrier.wait()
    for i in range(20):
        table.add({"process": number, "i": i}, [{"seed": s} for s in range(3)])


def test_two_processes_in_one_folder_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    processes = [
        context.Process(target=_add_points, args=(tmp_path, number, barrier))
        for number in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    rows = results.Results(tmp_path).rows()
    found = sorted((row["process"], row["i"], row["seed"]) for row in rows)
    assert found == [(n, i, s) for n in range(2) for i in range(20) for s in range(3)]


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "its first line does not name the column 'point'"),
        (b"seed,accuracy\n0,0.5\n", "does not name the column 'point'"),
        (b"point,variant,seed,accuracy\nvariant=sm,sm,0\n", "line 2 does not have 4"),
        (b"point,seed\nvariant=sm,0,1,2\n", "line 2 does not have 2 cells"),
        (b"point,seed\n\xff\xfe\x00,0\n", "is damaged"),
        (b'point,seed\n"variant=sm,0\n', "is damaged"),
    ],
)
def test_damaged_results_end_in_one_line(content, reason, tmp_path):
    (tmp_path / "results.csv").write_bytes(content)
    (tmp_path / "about.json").write_text('{"experiment": "less_data"}')
    with pytest.raises(UserError, match=reason):
        results.Results(tmp_path).has(POINTS[0])
    with pytest.raises(SystemExit, match=reason) as stop:
        show.main([str(tmp_path)])
    assert "\n" not in str(stop.value) and "results.csv" in str(stop.value)


@pytest.mark.parametrize("name", options.NAMES)
def test_incomplete_results_end_in_one_line(name, tmp_path):
    """One point of one variant, with a column that nobody asks for."""
    results.Results(tmp_path).add(POINTS[0], [{"seed": 0, "number": 1}])
    with pytest.raises(UserError, match="lacks rows or columns") as error:
        show.show(name, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "about, message",
    [
        ("", "about.json is damaged"),
        ("[1]", "about.json is damaged"),
        ('{"experiment": "nothing"}', "is none of boundary2d"),
        (None, "is none of boundary2d"),
    ],
)
def test_show_wants_the_folder_of_an_experiment(about, message, tmp_path):
    folder = tmp_path / "somewhere"
    results.Results(_made(folder)).add(POINTS[0], [{"seed": 0}])
    if about is not None:
        (folder / "about.json").write_text(about)
    with pytest.raises(SystemExit, match=message):
        show.main([str(folder)])


def _made(folder):
    folder.mkdir()
    return folder


def test_show_needs_results(tmp_path):
    with pytest.raises(SystemExit, match="holds no results.csv"):
        show.main([str(tmp_path)])
    with pytest.raises(SystemExit, match="usage"):
        show.main([])


@pytest.mark.parametrize("what", ("a file", "damaged"))
def test_command_refuses_a_folder_in_one_line(what, tmp_path):
    out = tmp_path / "out"
    arguments = ["multistability", "--quick", "--out", str(out)]
    if what == "a file":
        out.write_text("")
    else:
        _, chosen = options.parse(arguments)
        chosen.folder("multistability").mkdir(parents=True)
        (chosen.folder("multistability") / "results.csv").write_text("x\n")
    run = subprocess.run(
        [sys.executable, "-m", "train.experiments", *arguments],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert str(out) in line


def test_crossing_and_curve():
    x, y = np.array([0.1, 0.5, 1.0]), np.array([0.6, 0.8, 0.9])
    assert statistics.crossing(x, y, 0.7) == pytest.approx(0.3)
    assert statistics.crossing(x, y, 0.5) == 0.1
    assert statistics.crossing(x, y, 0.95) is None
    rows = [{"x": 1.0, "y": v} for v in (1.0, 2.0, 3.0)] + [{"x": 0.0, "y": math.nan}]
    xs, middle, low, high = statistics.curve(rows, "x", "y", coverage=1)
    assert list(xs) == [0, 1]
    assert middle[1] == 2 and (low[1], high[1]) == (1, 3)
    assert math.isnan(middle[0])


def rows_of(values):
    return [{"seed": seed, "best": value} for seed, value in enumerate(values)]


def test_differences_are_paired_by_seed():
    """The seeds differ by far more than the models, whose difference is resolved."""
    rng = np.random.default_rng(0)
    seeds = rng.normal(size=20)
    first = rows_of(seeds + 0.1 + 0.02 * rng.normal(size=20))
    second = rows_of(seeds)[::-1]
    difference = statistics.paired_difference(first, second, "best")
    values = [a["best"] - b["best"] for a, b in zip(first, second[::-1])]
    assert difference.mean == pytest.approx(np.mean(values))
    # The normal interval, which bootstrap approaches: 1.96 standard errors.
    error = 1.96 * np.std(values, ddof=1) / math.sqrt(20)
    assert difference.low == pytest.approx(np.mean(values) - error, abs=0.2 * error)
    assert difference.high == pytest.approx(np.mean(values) + error, abs=0.2 * error)
    assert difference.seeds == 20
    assert difference.is_positive and not difference.is_negative


def test_differences_leave_out_what_is_not_finite():
    first, second = rows_of([1.0, math.nan, 3.0, 4.0]), rows_of([0.5, 1.0, 2.5])
    difference = statistics.paired_difference(first, second, "best")
    assert (difference.mean, difference.low, difference.high) == (0.5, 0.5, 0.5)
    assert difference.seeds == 2
    one = statistics.paired_difference(first, second[:1], "best")
    assert one.mean == 0.5 and math.isnan(one.low) and one.seeds == 1
    none = statistics.paired_difference(first, [], "best")
    assert math.isnan(none.mean) and none.seeds == 0
    assert style.points(one) == "+50.00 [one seed]" and style.points(none) == "-"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nothing"], "invalid choice"),
        (["pgd", "--images", "0"], "images must be at least 1"),
        (["pgd", "--fixed-lams", "0.1"], "fixed_lams must be negative"),
        (["pgd", "--fixed-lams", "nan"], "fixed_lams must be negative"),
        (["pgd", "--fixed-lams=-inf"], "fixed_lams must be negative"),
        (["pgd", "--seeds", "0"], "seeds must be at least 1"),
        (["pgd", "--dataset", "letters"], "dataset must be one of"),
        (["pgd", "--out", ""], "out must be the name of a folder"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        options.parse(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_numbers_choose_the_folder():
    base = options.Options()
    same = options.Options(data_dir="elsewhere")
    other = options.Options(epochs=3)
    assert base.folder("pgd") == same.folder("pgd") != other.folder("pgd")
    names, chosen = options.parse(["all", "--quick", "--seeds", "1"])
    assert names == options.NAMES and chosen.seeds == 1
    assert chosen.epochs == options.QUICK["epochs"]
