import dataclasses
import os
import re
import threading

import pytest

from asr_kd import config
from asr_kd.cli import main
from asr_kd.commands.options import parse_seeds
from asr_kd.errors import AsrKdError


def test_files_and_dataclasses_declare_the_same_keys():
    for name, concern in config.CONCERNS.items():
        in_file = set(config.load_yaml(config.conf_dir() / f"{name}.yaml"))
        assert in_file == {field.name for field in dataclasses.fields(concern)}
        assert in_file <= set(config.help_texts())


def test_keys_are_unique_over_all_concerns():
    keys = [field.name for concern in config.CONCERNS.values() for field in dataclasses.fields(concern)]
    assert len(keys) == len(set(keys))


def test_every_preset_and_the_papers_sizes_hold_known_keys_only():
    presets = [config.conf_dir() / "paper.yaml", *(config.conf_dir().parent / "recipes").glob("*/*.yaml")]
    assert len(presets) >= 5
    for preset in presets:
        config.load_yaml(preset)


def test_later_overrides_win_and_types_are_those_of_the_key():
    resolved = config.resolve(config.DistillConfig, {"temperature": 1}, {"temperature": "5", "top_k": "8"})
    assert (resolved.temperature, resolved.top_k) == (5.0, 8)
    assert isinstance(resolved.temperature, float)
    assert config.resolve(config.DistillConfig, {"top_k": "null"}).top_k is None
    assert config.resolve(config.DistillConfig, {"sweep_temperatures": "1,2.5"}).sweep_temperatures == [1.0, 2.5]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_epochs", "2.5"),
        ("num_epochs", "many"),
        ("learning_rate", "nan"),
        ("snip_edges", "maybe"),
        ("acwts", "1,x"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(key, value):
    with pytest.raises(AsrKdError, match=key):
        config.check_value(key, value, "test")


def test_an_unknown_key_is_an_error_with_a_suggestion(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("temprature: 2\n")
    with pytest.raises(AsrKdError, match=r"bad\.yaml.*temprature.*did you mean temperature"):
        config.load_yaml(path)


def test_command_line_wins_over_file_over_defaults(tmp_path, capsys):
    path = tmp_path / "preset.yaml"
    path.write_text("hidden_dim: 64\nnum_members: 3\n")
    assert main(["config", "--config", str(path), "--num-members", "4"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert {"hidden_dim: 64", "num_members: 4", "batch_size: 256"} <= set(printed)


@pytest.mark.parametrize("argv", [["config", "--nonsense", "1"], ["nonsense"], ["config", "--hidden", "3"], []])
def test_an_unknown_option_or_command_exits_2(argv):
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    assert exit_info.value.code == 2


def test_a_users_error_is_one_line_and_exit_status_1(capsys):
    assert main(["config", "--num-epochs", "x"]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("#")]
    assert lines == ["error: --num-epochs: num_epochs is 'x', but should be a whole number"]


def test_a_value_given_by_hand_or_by_a_file_is_taken_and_not_searched(tmp_path, capsys):
    (tmp_path / "preset.yaml").write_text("temperature: 3\nsoft_weight: 0.25\nsweep_soft_weights: [0.25, 1]\n")
    assert main(["config", "--config", str(tmp_path / "preset.yaml"), "--sweep-combinations", "geometric"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert {"sweep_temperatures: [3.0]", "sweep_soft_weights: [0.25, 1.0]", "combination: arithmetic"} <= set(printed)
    assert main(["config", "--config", str(tmp_path / "preset.yaml"), "--sweep-temperatures", "1,2"]) == 0
    assert {"sweep_temperatures: [1.0, 2.0]", "temperature: 3.0"} <= set(capsys.readouterr().out.splitlines())
    assert main(["config", "--temperature", "5", "--insertion-penalties=-2,0"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert {"sweep_temperatures: [5.0]", "insertion_penalties: [-2.0, 0.0]"} <= set(printed)
    assert main(["config", "--temperature", "5", "--sweep-temperatures", "1,2"]) == 0
    assert "sweep_temperatures: [1.0, 2.0]" in capsys.readouterr().out


def test_what_needs_whole_utterances_is_not_for_targets_made_batch_by_batch(capsys):
    assert main(["config", "--sequence-weight", "0.5", "--online-targets", "true"]) == 1
    assert "error: sequence_weight 0.5: needs stored soft targets" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        *("--gmm-seed=-1", "--temperature=-1", "--temperature=inf", "--temperature=1e300", "--temperature=1e-300"),
        *("--sweep-temperatures=2,inf", "--combination=median", "--dropout=1", "--top-n=0", "--left-context=100000"),
        *("--beam=-3", "--beam=inf", "--lattice-beam=0", "--min-active=-1", "--max-active=0", "--max-active=200"),
        *("--acwts=0", "--acwts=0.1,-1", "--insertion-penalties=inf", "--sequence-weight=1.5", "--sequence-acwt=0"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_config_too(option, capsys):
    assert main(["config", option]) == 1
    key = option[2:].partition("=")[0].replace("-", "_")
    assert re.search(rf"^error: (--[a-z-]+: )?{key} ", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize(
    "content", ["a word\n", "- a list\n", "a: 1\n", "import os\n", "temperature: 3  # mine\n", "{", "\x89\n"]
)
def test_what_is_no_configuration_is_not_replaced_by_one(tmp_path, capsys, content):
    (tmp_path / "notes").write_text(content)
    assert main(["config", "--out", str(tmp_path / "notes")]) == 1
    assert "notes: exists and is no configuration that asr-kd config wrote" in capsys.readouterr().err
    assert (tmp_path / "notes").read_text() == content


def test_more_seeds_than_members_are_refused(tmp_path, capsys):
    """By who plans an experiment; another command may have no option for the seeds."""
    assert main(["config", "--num-members", "2", "--num-seeds", "3"]) == 1
    assert "num_seeds 3" in capsys.readouterr().err
    missing = [arg for name in ("feats", "ali", "dev-feats", "dev-ali", "out") for arg in (f"--{name}", str(tmp_path))]
    assert main(["train-ensemble", *missing, "--num-members", "2"]) == 1
    assert "is a folder, not a file" in capsys.readouterr().err


def test_numbers_in_yaml_are_what_they_look_like(tmp_path):
    """YAML 1.1 has 010 for 8, 1:30 for 90, NO and off for false."""
    path = tmp_path / "c.yaml"
    path.write_text("num_epochs: 010\nlearning_rate: 1e-3\nacwts: [.5, 1.]\nonline_targets: false\n")
    assert config.load_yaml(path) == {
        "num_epochs": 10,
        "learning_rate": 0.001,
        "acwts": [0.5, 1.0],
        "online_targets": False,
    }
    for text, told in (
        ("num_epochs: 1:30", "num_epochs is '1:30'"),
        ("num_epochs: 0x10", "num_epochs is '0x10'"),
        ("num_epochs: 1_0", "num_epochs is '1_0'"),
        ("online_targets: off", "online_targets is 'off'"),
        ("cmvn: NO", "cmvn is 'NO'"),
        ("cmvn: null", "cmvn is null"),
        ("num_epochs: true", "num_epochs is true"),
        ("hidden_dim: 1e30", "hidden_dim is 1e[+]30"),
    ):
        path.write_text(text)
        with pytest.raises(AsrKdError, match=f"c.yaml: {told}, but should be"):
            config.load_yaml(path)


def test_a_value_out_of_range_is_told_with_its_file(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("num_epochs: 0\n")
    assert main(["config", "--config", str(tmp_path / "c.yaml")]) == 1
    assert f"error: {tmp_path}/c.yaml: num_epochs 0: must be" in capsys.readouterr().err
    assert main(["config", "--config", str(tmp_path / "c.yaml"), "--num-epochs", "-1"]) == 1
    assert "error: num_epochs -1: must be" in capsys.readouterr().err


def test_what_is_written_is_read_again(tmp_path, capsys):
    words = ["SIL", "1e3", "010", "NO", "true", "null", "~"]
    assert main(["config", "--silence-phones", ",".join(words), "--out", str(tmp_path / "c.yaml")]) == 0
    assert config.load_yaml(tmp_path / "c.yaml") == dict(config.defaults()) | {"silence_phones": words}
    assert main(["config", "--temperature", "3", "--out", str(tmp_path / "c.yaml")]) == 0
    assert "temperature 2.0 → 3.0" in capsys.readouterr().err


def test_a_configuration_may_come_from_a_pipe(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("temperature: 3\n",))
    writer.start()
    assert main(["config", "--config", str(tmp_path / "pipe")]) == 0
    writer.join()
    assert "temperature: 3.0" in capsys.readouterr().out


def test_lists_may_have_blanks(capsys):
    assert main(["config", "--acwts", "0.1, 0.2"]) == 0
    assert "acwts: [0.1, 0.2]" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "seeds"), [("1", [1]), ("2-4", [2, 3, 4]), ("5, 1-2", [5, 1, 2])])
def test_seeds_are_numbers_and_ranges(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "1,1", "1-3,2", "3-1", "3-1,2", "1-", "-1", "a", "1" * 23, "1-99999999999"])
def test_seeds_that_say_nothing_clear_are_refused(text):
    with pytest.raises(AsrKdError, match=f"--seeds {text}: expected"):
        parse_seeds(text)


def test_a_key_that_a_file_gives_twice_is_refused(tmp_path, capsys):
    (tmp_path / "twice.yaml").write_text("hidden_dim: 3\nnum_epochs: 1\nhidden_dim: 4\n")
    assert main(["config", "--config", str(tmp_path / "twice.yaml")]) == 1
    assert "hidden_dim is there twice" in capsys.readouterr().err


def test_an_option_that_is_not_there_is_told_in_one_line_with_the_help_of_its_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["config", "--bogus", "1"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --bogus 1; see asr-kd config --help\n"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"soft_weight": -1}, "soft_weight -1.0: must be at least 0"),
        ({"soft_weight": 2}, "soft_weight 2.0: must be at most 1 where hard_weight is null"),
        ({"hard_weight": -0.5}, "hard_weight -0.5: must be null, or at least 0"),
        ({"soft_weight": 0, "hard_weight": 0}, "leave nothing to learn from"),
        ({"sweep_soft_weights": [0.5, 1.5]}, "each at least 0, and at most 1 where hard_weight is null"),
        ({"sweep_soft_weights": []}, "one or more"),
    ],
)
def test_weights_that_no_student_can_learn_by_are_refused(keys, message):
    with pytest.raises(AsrKdError, match=message):
        config.resolve(config.DistillConfig, keys)
    assert config.resolve(config.DistillConfig, {"soft_weight": 2, "hard_weight": 1}).soft_weight == 2
