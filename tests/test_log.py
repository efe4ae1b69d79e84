"""What a training run reports: TensorBoard, the line on the terminal, and Weights & Biases."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import psutil
import pytest
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data
from training_runs import GAME, RESUME, SMALL, TrainedRun, events, only_run, scalars, train

from kart_rewards.env.video import VideoWriter
from kart_rewards.errors import KartRewardsError
from kart_rewards.integrations import INTEGRATIONS
from kart_rewards.rewards import EpisodeRewards
from kart_rewards.scenario import load_scoring
from kart_rewards.testing import snapshot
from kart_rewards.training.checkpoints import Checkpoint
from kart_rewards.training.log import Evaluation, Log, Progress, check_wandb, memory_mb

TIMES = {"emulator_ms_per_step": 1.5, "update_ms_per_step": 0.5}


SCORING = load_scoring(INTEGRATIONS / GAME / "scenario.json", weights={"wall": -7.5, "terrain": 0.0})


def log(folder: Path, steps: int = 0) -> Log:
    options = {"gae_lambda": 0.95, "env_id": GAME}
    return Log(folder, options, SCORING, 1000, steps, compared={**options, "grey": True, "size": [84, 84]})


def info(episode_return: float, length: int, lap_seconds: float | None = None) -> dict[str, Any]:
    """The last info of an episode of a minute and a half in which the wall term charged on two frames."""
    race = {"best_lap_time_seconds": lap_seconds, "laps_completed": 2, "laps_driven": 2.5, "finished": False}
    race = {} if lap_seconds is None else race
    rewards = EpisodeRewards(SCORING.terms)
    for _ in range(2):
        rewards(snapshot(collision=1))
    return {
        "episode": {"r": episode_return, "l": length, "seconds": 90.0},
        "episode_rewards": rewards.episode_summary(),
        "race": race,
        "ram": {"laps": 130, "checkpoint": 12, "num_checkpoints": 24},
    }


@pytest.fixture(autouse=True)
def restored_excepthook() -> Iterator[None]:
    before = threading.excepthook
    yield
    threading.excepthook = before


# --------------------------------------------------------------------------------------------------------- TensorBoard
def test_an_update_is_logged(tmp_path: Path) -> None:
    written = log(tmp_path)
    written.update(32, {"value_loss": 0.5}, [(8, info(3.0, 7, 50.5)), (24, info(4.0, 9))], TIMES, 0.25)
    written.update(64, {"value_loss": 0.25}, [], TIMES, 0.125)
    written.close()
    logged = scalars(tmp_path)
    assert logged["losses/value_loss"] == [(32, 0.5), (64, 0.25)]
    assert logged["charts/learning_rate"] == [(32, 0.25), (64, 0.125)]
    assert logged["charts/episodic_return"] == [(8, 3.0), (24, 4.0)]
    assert logged["charts/episodic_length"] == [(8, 7.0), (24, 9.0)]
    assert logged["rewards/wall"] == [(8, -15.0), (24, -15.0)]
    assert logged["rewards_count/wall"] == [(8, 2.0), (24, 2.0)]
    assert logged["rewards_per_minute/wall"] == [(8, -10.0), (24, -10.0)]
    assert [value for _, value in logged["values_per_minute/wall"]] == pytest.approx([2 / 1.5] * 2)
    assert logged["rewards_per_lap/wall"] == [(8, -6.0)], "two and a half laps, and none without a race"
    assert logged["race/best_lap_time_seconds"] == [(8, 50.5)]
    assert logged["time/emulator_ms_per_step"] == [(32, 1.5), (64, 1.5)]
    assert [steps for steps, _ in logged["charts/SPS"]] == [32, 64]
    assert logged["memory/trainer_mb"][0][1] > 50


def test_options_and_terms_are_logged_as_tables(tmp_path: Path) -> None:
    log(tmp_path).close()

    def text(tag: str) -> str:
        [written] = events(tmp_path).Tensors(f"{tag}/text_summary")
        return str(written.tensor_proto.string_val[0].decode())

    assert "|gae_lambda|0.95|" in text("hyperparameters")
    assert f"|env_id|{GAME}|" in text("hyperparameters")
    terms = text("reward_terms")
    assert "|wall|-7.5|Charge every frame" in terms
    assert "|race_finished|ends the episode|" in terms


def test_a_term_of_weight_0_is_measured(tmp_path: Path) -> None:
    rewards = EpisodeRewards(SCORING.terms)
    for frame in (30, 60, 61):
        rewards(snapshot(current_frame=frame, surface=0x54))
    written = log(tmp_path)
    written.update(32, {}, [(8, {**info(3.0, 7), "episode_rewards": rewards.episode_summary()})], TIMES, 0.25)
    written.close()
    logged = scalars(tmp_path)
    assert logged["rewards_per_minute/terrain"] == [(8, 0.0)]
    assert [value for _, value in logged["values_per_minute/terrain"]] == pytest.approx([2 / 1.5])


def test_runs_can_be_compared_by_their_options_and_weights(tmp_path: Path) -> None:
    log(tmp_path).close()
    assert len(list(tmp_path.iterdir())) == 1, "all in one file"
    [(_, content)] = [
        (tag, content) for tag, content in events(tmp_path).summary_metadata.items() if tag == SESSION_START_INFO_TAG
    ]
    compared = parse_session_start_info_plugin_data(content.plugin_data.content).hparams
    assert compared["gae_lambda"].number_value == 0.95
    assert (compared["grey"].string_value, compared["size"].string_value) == ("True", "[84, 84]")
    assert compared["weight of wall"].number_value == -7.5


def test_the_best_evaluation_is_logged_by_metrics_that_all_runs_have(tmp_path: Path) -> None:
    written = log(tmp_path)
    courses: dict[str, dict[str, float]] = {
        "Level1": {"finish_rate": 1.0, "median_lap_time_seconds": 9.0, "median_return": 80.0},
        "Level2": {"finish_rate": 0.5, "median_return": 60.0},
    }
    written.evaluation(Evaluation(courses, [0.75]), 96, is_best=True)
    written.evaluation(Evaluation(courses, [0.5]), 128)
    written.close()
    logged = {tag: values for tag, values in scalars(tmp_path).items() if tag.startswith("best/")}
    assert logged == {
        "best/finish_rate": [(96, 0.75)],
        "best/median_return": [(96, 70.0)],
        "best/steps": [(96, 96.0)],
    }, "not the lap time, which one course lacks"


def test_entries_after_the_checkpoint_are_dropped_from_the_curves(tmp_path: Path) -> None:
    first = log(tmp_path)
    for steps in (32, 64, 96):
        first.scalars("losses", {"value_loss": 1.0}, steps)
    first.close()
    resumed = log(tmp_path, steps=32)
    resumed.scalars("losses", {"value_loss": 2.0}, 64)
    resumed.close()
    assert scalars(tmp_path)["losses/value_loss"] == [(32, 1.0), (64, 2.0)]


@pytest.mark.parametrize("keep_gifs", [False, True])
def test_an_evaluation_is_logged_with_its_videos(tmp_path: Path, keep_gifs: bool) -> None:
    video = tmp_path / "Level1-agent.mp4"
    with VideoWriter(video, 60) as writer:
        for shade in range(60):
            writer.append(np.full((224, 256, 3), 4 * shade, np.uint8))
    written = log(tmp_path / "run")
    metrics = {"Level1": {"finish_rate": 0.5, "episodes": 4}, "Level2": {"finish_rate": 1.0, "episodes": 4}}
    written.evaluation(Evaluation(metrics, [0.75], [video], keep_gifs), 96)
    written.close()
    logged = scalars(tmp_path / "run")
    assert logged["eval/Level1/finish_rate"] == [(96, 0.5)]
    assert logged["eval/Level2/finish_rate"] == [(96, 1.0)]
    [image] = events(tmp_path / "run").Images("eval/Level1-agent")
    assert image.step == 96
    assert image.encoded_image_string.startswith(b"GIF89a")
    assert len(imageio.mimread(image.encoded_image_string, format="GIF")) == pytest.approx(10, abs=2)
    assert video.exists()
    assert video.with_suffix(".gif").exists() == keep_gifs


def test_a_video_that_can_not_be_converted_is_reported_and_costs_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    written = log(tmp_path / "run")
    written.evaluation(Evaluation({"Level1": {"finish_rate": 0.5}}, [], [tmp_path / "broken.mp4"]), 96)
    written.close()
    assert scalars(tmp_path / "run")["eval/Level1/finish_rate"] == [(96, 0.5)]
    [line] = capsys.readouterr().err.splitlines()[1:]
    assert "broken.gif: can't be converted from " in line
    assert line.endswith(" The run continues without this video.")


def test_a_folder_that_can_not_be_written_to_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        log(tmp_path / "file" / "run")


def test_a_log_prints_the_error_of_tensorboards_thread_only_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorBoard raises it at the next call, too, where the run reports it."""
    log(tmp_path).close()

    def fail(error: Exception) -> None:
        raise error

    for error in (OSError("the disk is full"), ValueError("a mistake")):
        thread = threading.Thread(target=fail, args=(error,))
        thread.start()
        thread.join()
    printed = capsys.readouterr().err
    assert "the disk is full" not in printed
    assert "a mistake" in printed


def test_memory_is_that_of_this_process_and_its_children() -> None:
    before = memory_mb()
    code = "import time; memory = bytearray(b'x') * 100_000_000; print(flush=True); time.sleep(60)"
    with psutil.Popen([sys.executable, "-c", code], stdout=-1) as child:
        child.stdout.readline()
        after = memory_mb()
        child.kill()
    assert after["children_mb"] - before["children_mb"] > 90
    assert after["trainer_mb"] == pytest.approx(psutil.Process().memory_info().rss / 2**20, rel=0.2)


# ---------------------------------------------------------------------------------------------- the log of a real run
def test_the_log_shows_rewards_by_term_race_losses_and_rates(trained: TrainedRun) -> None:
    logged = scalars(trained.folder)
    assert logged["rewards/top_speed"][0][1] > 0
    for table in ("rewards", "rewards_transformed", "rewards_share", "rewards_count"):
        assert {f"{table}/{term}" for term in ("wall", "checkpoint", "terrain", "time", "backwards")} <= logged.keys()
    assert {"race/laps_completed", "race/finished", "race/off_road_seconds", "race/wall_hits"} <= logged.keys()
    assert {"charts/episodic_return", "charts/episodic_length", "charts/learning_rate", "charts/SPS"} <= logged.keys()
    assert [step for step, _ in logged["losses/value_loss"]] == [32, 64, 96]
    assert logged["charts/episodic_length"][0][1] <= 40


def test_the_log_holds_the_options_and_the_terms(trained: TrainedRun) -> None:
    logged = events(trained.folder)
    [options] = logged.Tensors("hyperparameters/text_summary")
    assert b"|gae_lambda|0.95|" in options.tensor_proto.string_val[0]
    [terms] = logged.Tensors("reward_terms/text_summary")
    assert b"|top_speed|0.02|" in terms.tensor_proto.string_val[0]


def test_the_charts_of_the_custom_scalars_have_curves(trained: TrainedRun) -> None:
    layout = layout_pb2.Layout()
    [config] = events(trained.folder).Tensors("custom_scalars__config__")
    layout.ParseFromString(config.tensor_proto.string_val[0])
    assert [page.title for page in layout.category] == ["rewards", "rewards in evaluations", "race", "time"]
    tags, without_curves = scalars(trained.folder), []
    for page in layout.category:
        for chart in page.chart:
            [pattern] = chart.multiline.tag
            if not any(re.match(pattern, tag) for tag in tags):
                without_curves.append(pattern)
    of_laps = {"rewards_per_lap/", "median_lap", "ratio_to_reference", "split_", "best_lap"}
    assert all(any(word in pattern for word in of_laps) for pattern in without_curves), without_curves
    charging = layout.category[0].chart[1].multiline.tag[0]
    assert charging == "^rewards_per_minute/(wall|terrain|time|backwards)$"


def test_each_evaluation_has_a_map_of_where_terms_fired(trained: TrainedRun) -> None:
    maps = events(trained.folder).Images("eval/Level1/map")
    assert [image.step for image in maps] == [64, 96]
    picture = imageio.imread(maps[-1].encoded_image_string)
    assert picture.shape[1] == 600
    assert (picture == (165, 150, 255)).all(axis=-1).sum() > 150, (
        "the fourth term, time, has more marks than its legend"
    )


def test_the_videos_in_the_log_are_small(trained: TrainedRun) -> None:
    for image in events(trained.folder).Images("eval/Level1-agent"):
        assert len(image.encoded_image_string) < 1_000_000


def test_the_log_shows_where_time_and_memory_go(trained: TrainedRun) -> None:
    logged = scalars(trained.folder)
    parts = ["emulator", "scoring", "observation", "transfer", "policy", "update"]
    for part in parts:
        assert len(logged[f"time/{part}_ms_per_step"]) == 3
    assert all(value > 0 for part in parts if part != "transfer" for _, value in logged[f"time/{part}_ms_per_step"])
    assert logged["memory/trainer_mb"][0][1] > 100
    assert logged["memory/children_mb"][0][1] > 100


# ----------------------------------------------------------------------------------------------- the line on a terminal
class Clock:
    """The time, in seconds, as a test sets it."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of tqdm."""
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_a_new_line_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(1000, 0)
    lines = []
    for seconds in range(1, 26):
        clock.seconds = 1000.0 + seconds
        progress.update(8 * seconds)
        lines += [(seconds, line) for line in capsys.readouterr().out.splitlines()]
    assert [seconds for seconds, _ in lines] == [10, 20]
    assert lines[0][1] == "80/1,000 steps   8.00 steps/s  01:55 left"
    progress.close()
    assert capsys.readouterr().out == "200/1,000 steps   8.00 steps/s  01:40 left\n"


def test_a_terminal_gets_one_line_that_changes(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    progress = Progress(1000, 0)
    assert not terminal.getvalue(), "nothing to show before the first update"
    for update in range(1, 4):
        clock.seconds += 1.0
        progress.update(8 * update)
    progress.close()
    shown = [line.strip() for line in terminal.getvalue().split("\r") if line.strip()]
    assert [line.split()[0] for line in shown[:3]] == ["8/1,000", "16/1,000", "24/1,000"]
    assert terminal.getvalue().count("\n") == 1
    assert terminal.getvalue().endswith("\n")


def test_a_message_ends_the_line_and_no_line_is_repeated(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(1000, 0)
    clock.seconds += 1
    progress.update(8)
    progress.print("first")
    clock.seconds += 10
    progress.update(16)
    progress.print("second")
    clock.seconds += 60
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" steps")[0] for line in lines] == ["8/1,000", "first", "16/1,000", "second"]


def test_a_terminal_keeps_the_line_above_a_message(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    progress = Progress(1000, 0)
    clock.seconds += 1
    progress.update(1000)
    progress.end_line()
    clock.seconds += 60
    progress.print("a message")
    progress.close()
    lines = [line.rpartition("\r")[2].partition(" steps")[0] for line in terminal.getvalue().split("\n")]
    assert lines == ["1,000/1,000", "a message", ""]


RACES = {"episodes": 5, "finish_rate": 0.4, "median_lap_time_seconds": 9.414, "median_return": 3.0}


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        ({"Level1": RACES}, "2 of 5 races finished, median lap 9.41 s"),
        ({"Level1": {"episodes": 1, "finish_rate": 0.0, "median_return": 3.0}}, "0 of 1 race finished"),
        (
            {"Level1": RACES | {"ratio_to_reference": 1.0818}},
            "2 of 5 races finished, median lap 9.41 s (1.08 x the reference lap)",
        ),
        ({"Level1": RACES, "Level2": {**RACES, "finish_rate": 1.0}}, "7 of 10 races finished on 2 courses"),
        ({"Level1": {"episodes": 5, "median_return": 3.14}}, "median return 3.1"),
    ],
)
def test_an_evaluation_in_a_few_words(metrics: dict[str, dict[str, float]], text: str) -> None:
    assert Evaluation(metrics, []).text() == text


def test_an_evaluation_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = log(tmp_path)
    written.evaluation(Evaluation({"Level1": RACES}, [0.4]), 4096, is_best=True)
    written.evaluation(Evaluation({"Level1": RACES}, [0.4]), 8192)
    written.close()
    text = "2 of 5 races finished, median lap 9.41 s"
    assert capsys.readouterr().out.splitlines() == [
        f"evaluation after 4,096 steps: {text} -> best.pt",
        f"evaluation after 8,192 steps: {text}",
    ]


@pytest.mark.parametrize(
    ("shares", "text"),
    [
        ({}, ""),
        ({"wall": -0.25, "checkpoint": 0.7497, "time": -0.0003, "terrain": 0.0},
         "share of the reward: checkpoint +75.0%, wall -25.0%, time -<0.1%; nothing: terrain"),
        ({"wall": 0.0, "time": 0.0}, "no reward term paid or charged anything"),
    ],
)  # fmt: skip
def test_the_shares_of_the_terms_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shares: dict[str, float], text: str
) -> None:
    written = log(tmp_path)
    written.evaluation(Evaluation({"Level1": RACES}, [0.4], shares=shares), 4096)
    written.close()
    assert capsys.readouterr().out.splitlines()[1:] == ([text] if text else [])


@pytest.mark.parametrize(
    ("checkpoints", "touches", "steps", "warned"),
    [(40, 1, 0, True), (1, 1, 0, False), (40, 0, 0, False), (40, 1, 32, False)],
    ids=["almost all", "not all", "no other term fired", "resumed"],
)
def test_a_term_that_is_almost_all_of_the_reward_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoints: int, touches: int, steps: int, warned: bool
) -> None:
    rewards = EpisodeRewards(SCORING.terms)
    for number in range(checkpoints):
        rewards(snapshot(laps=128 + number // 30, checkpoint=number % 30, current_frame=361))
    for _ in range(touches):
        rewards(snapshot(collision=1, current_frame=361))
    written = log(tmp_path, steps)
    last = {**info(3.0, 7), "episode_rewards": rewards.episode_summary()}
    written.update(steps + 32, {}, [(steps + number, last) for number in range(10)], TIMES, 0.25)
    for after in (32, 64):
        written.evaluation(Evaluation({"Level1": RACES}, [0.4]), steps + after)
    written.close()
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    text = (
        "checkpoint is 99.94% of everything that the agent was paid and charged in 10 episodes: the other terms hardly "
    )
    assert [line.startswith(f"warning: {text}") for line in warnings] == [True] * warned


@pytest.mark.parametrize("lengths", [[1] * 12, [1] * 9 + [2, 1, 1, 1]], ids=["all", "all but one"])
def test_episodes_that_all_end_on_their_first_step_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lengths: list[int]
) -> None:
    written = log(tmp_path)
    episodes = [(i, {**info(0.0, length), "done_rule": "wall_hits"}) for i, length in enumerate(lengths)]
    written.update(32, {}, episodes, TIMES, 0.25)
    written.close()
    warned = "warning: each of the first 10 episodes ended on its first step, the last by the done rule wall_hits"
    assert (warned in capsys.readouterr().out) == (2 not in lengths)


def test_a_run_that_ends_before_its_first_update_shows_no_line(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    Progress(1000, 0).close()
    assert not capsys.readouterr().out


def test_the_line_shows_the_mean_return_the_finished_races_and_the_best_lap(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(1000, 0)
    for number in range(30):
        race = {"finished": number < 22} | ({"best_lap_time_seconds": 60.0 - number} if number < 5 else {})
        progress.episode(float(number), race)
    progress.episode(19.5, {})
    clock.seconds += 10.0
    progress.update(80)
    assert capsys.readouterr().out.endswith("left  return 20.0  finished 2 of 10  best lap 56.00 s\n"), (
        "means of the last 20"
    )


def test_the_rate_is_that_of_this_process(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(1000, 200)
    clock.seconds += 10.0
    progress.update(300)
    assert progress.steps_per_second() == pytest.approx(10.0)
    assert capsys.readouterr().out == "300/1,000 steps  10.00 steps/s  01:10 left\n"


def test_a_run_goes_on_if_nobody_reads_its_output(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ``python ppo_continuous_single_file.py | head``."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        progress = Progress(1000, 0)
        for update in range(1, 4):
            clock.seconds += 10.0
            progress.update(8 * update)
        progress.close()
        print("the end", flush=True)
        monkeypatch.undo()


# ---------------------------------------------------------------------------------------------------- Weights & Biases
needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="wandb is not installed: pip install 'kart_rewards[wandb]'"
)


def test_weights_and_biases_is_asked_for_only_if_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(KartRewardsError, match="--track needs Weights & Biases: pip install"):
        check_wandb()
    log(tmp_path).close()


# KempnerInstitute/KempnerForge#19: a resumed training began a new run of Weights & Biases instead of going on in its
# own.
@needs_wandb
def test_a_tracked_run_and_its_resume_are_mirrored_to_weights_and_biases(tmp_path: Path) -> None:
    """Without a connection: W&B's offline mode writes to a folder what it would send."""
    offline = os.environ | {
        "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_CACHE_DIR": str(tmp_path / "cache"),
        "WANDB_CONFIG_DIR": str(tmp_path / "config"), "WANDB_ERROR_REPORTING": "false",
    }  # fmt: skip
    runs = tmp_path / "runs"
    arguments = ["--env-id", GAME, *SMALL, "--total-timesteps", 32, "--runs-path", runs]
    train(*arguments, "--track", "--wandb-project-name", "karts", env=offline)
    agent = only_run(runs) / "agent.pt"
    train(*RESUME, agent, "--total-timesteps", 64, env=offline)  # it is tracked, too
    assert Checkpoint.load(agent).steps == 64
    assert [step for step, _ in scalars(agent.parent)["losses/value_loss"]] == [32, 64]

    written = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    assert len(written) == 2
    for path in written:
        content = path.read_bytes()
        for words in ("karts", agent.parent.name, "gae_lambda", "losses/value_loss", "charts/SPS"):
            assert re.search(words.encode(), content), words
    names = {path.name for path in written}
    assert len(names) == 1, "the resumed run goes on in the same W&B run"
