"""Option files, and the product of runs that their lists make."""

import pytest

from train import cli


def test_a_sweep_makes_the_product_of_its_lists(pictures, tmp_path, capsys):
    file = tmp_path / "sweep.toml"
    file.write_text(
        f'out = "{tmp_path}/sweep"\n[data]\ndataset = "{pictures}"\n'
        '[model]\nmodel = "sm"\nchannels = [1, 2]\n'
        "[training]\nseeds = 2\nepochs = 1\nbatch-size = 20\nlr-max = [0.01, 0.02]\n"
        'warmup_epochs = 0\n[run]\ncompile-cache = "off"\n'
    )
    arguments = ["--config", str(file), "--quiet"]
    assert len(cli.parse(arguments)) == 4
    parts = [cli.parse([*arguments, "--part", f"{i}/3"]) for i in (1, 2, 3)]
    assert sorted(run.out for part in parts for run in part) == sorted(
        run.out for run in cli.parse(arguments)
    )
    assert (
        cli.main([*arguments, "--channels", "1"]) == 0
    )  # the command line comes first
    printed = capsys.readouterr().out
    assert "run 2 of 2" in printed and "sm (lr_max=0.02)" in printed
    assert (tmp_path / "sweep" / "lr_max=0.01" / "summary.json").exists()


@pytest.mark.parametrize(
    "text, words",
    [
        ("epochs = [1,", "no TOML file"),
        ("epoch = 1", "unknown options: epoch"),
        ("epochs = []", "empty list"),
        ("epochs = [1, 1]", "the same"),
        ("epochs = [1, 0]", "at least 1"),
        ("epochs = 2\n[training]\nepochs = 3", "gives epochs twice"),
        ("[models]\nmodel = 'sm'", "unknown options: models"),
        ("[model]\nmodel = 3", "type str"),
    ],
)
def test_wrong_option_files(tmp_path, capsys, text, words):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        cli.main(["--config", str(tmp_path / "a.toml")])
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_a_sweep_finds_its_folder_again(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text('model = "sm"\nepochs = [1, 2]\n')
    arguments = ["--config", str(file)]

    def folders(*more):
        return [run.out for run in cli.parse([*arguments, *more])]

    assert folders() == folders("--quiet", "--checkpoint-seconds", "1")
    assert folders() != folders("--seeds", "3")


def test_a_failed_run_does_not_stop_a_sweep(pictures, tmp_path, capsys):
    file = tmp_path / "sweep.toml"
    file.write_text(
        f'out = "{tmp_path}/sweep"\ndataset = "{pictures}"\nmodel = "sm"\nseeds = 1\n'
        "epochs = 1\nbatch_size = 20\nwarmup_epochs = 0\nclip_norm = 0\n"
        'lr_max = [1e30, 0.01]\nlr_min = 0.01\nschedule = "constant"\n'
        'compile_cache = "off"\nquiet = true\n'
    )
    assert cli.main(["--config", str(file)]) == 1
    printed = capsys.readouterr()
    assert "1 of 2 runs failed" in printed.err and "lr_max=1e+30" in printed.err
    assert "lr_max=0.01" in printed.out or "sm " in printed.out
    assert (tmp_path / "sweep" / "lr_max=0.01" / "summary.json").exists()
