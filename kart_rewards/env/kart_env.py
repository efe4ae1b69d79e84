"""The Gymnasium environment: emulate, decode, score.

* ``KartEnv`` - one game in stable-retro's emulator, with rewards and done rules in Python
* ``make_env`` - the same with a step limit, from any folder of integrations

``gymnasium.make("kart_rewards:HomebrewKart-Snes")`` makes the same environment; every game under ``integrations/`` is
registered under its folder's name.

Example:
    >>> env = make_env("HomebrewKart-Snes", action_mode="driving")
    >>> observation, info = env.reset(seed=1)
    >>> observation, reward, terminated, truncated, info = env.step(0)
    >>> sorted(info["reward_terms"])
    ['backwards', 'checkpoint', 'terrain', 'time', 'wall']
    >>> env.close()
"""

from __future__ import annotations

import gc
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import stable_retro
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import EzPickle

from kart_rewards.defaults import DEFAULT_FRAME_SKIP, default_max_episode_steps
from kart_rewards.done import EpisodeDone
from kart_rewards.drivers import RandomDriver
from kart_rewards.env.actions import make_actions
from kart_rewards.env.core import SharedEmulator, buttons_of, console_of, game_runs_on
from kart_rewards.env.observations import ObservationConfig, ScreenObserver
from kart_rewards.env.window import Window
from kart_rewards.errors import KartRewardsError
from kart_rewards.integrations import INTEGRATIONS, find_game
from kart_rewards.race import METRIC_VARIABLES, RaceMetrics
from kart_rewards.ram import RamLayout
from kart_rewards.rewards import EpisodeRewards, make_transform
from kart_rewards.scenario import load_scoring
from kart_rewards.scripting import from_plain, to_plain


class KartEnv(gym.Env[np.ndarray, Any], EzPickle):
    """One game in stable-retro's emulator.

    stable-retro allows one emulator a process. Environments of the same game share it: their steps may come in any
    order. Close them before making one of another game.

    ``step`` holds an action for ``frame_skip`` emulated frames. Each frame's RAM is decoded and scored, the reward
    transform is applied to each frame's reward, and the step's reward is their sum. The step ends early on the frame on
    which a done rule holds.

    ``reset`` takes ``options={"state": name}`` to start from that state. Its first frame is scored once and that score
    is thrown away; the terms keep what they saw. ``options={"random_start_frames": n}`` takes the place of
    ``random_start_steps``, in emulated frames: from one state and seed it leads to the same start in every action mode.
    The start is unscored; only the race clock counts it.

    ``info`` holds, after each step:

    * ``reward_terms``: term -> weighted sum over this step, before the transform
    * ``episode_rewards``: what each term did over the episode: the tables of ``EpisodeRewards.episode_summary``
    * ``race``: the metrics of ``RaceMetrics.summary``, for games that have the variables
    * ``done_rule``: what ended the episode, once a rule did

    Args:
        game: The game's folder name.
        integrations: The folder of games.
        state: Start state, or several, of which each reset draws one. By default ``metadata.json`` says.
        scenario: Scenario file: a name in the game's folder, or a path that ends in ``.json``.
        info: Data file, likewise.
        rewards: Reward terms and done rules to add to the scenario's: functions and classes, paths of Python files, or
            names of modules.
        reward_weights: Term -> weight, over the scenario's.
        reward_transform: ``scale``, ``sign`` (as the original) or ``none``, applied to each emulated frame's reward.
        reward_scale: The factor of ``scale``.
        action_mode: One of ``kart_rewards.env.actions.ACTION_MODES``.
        observation: What the agent sees.
        frame_skip: Emulated frames a step.
        random_start_steps: A reset plays 0 to this many steps of random driving before the episode begins.
        render_mode: ``rgb_array``: ``render`` returns the screen, uint8 (height, width, 3). ``human``: a window shows
            every frame, at the console's pace, until it is closed. None: neither.

    Attributes:
        ram: The snapshot of the latest frame.
        race: The episode's ``RaceMetrics``; None for games without their variables.
        step_seconds: Wall-clock time that ``step`` has taken so far, by part: ``emulator``, ``scoring`` (decoding,
            terms, rules and info) and ``observation``.
        em: stable-retro's emulator. It runs this environment's game from its ``reset`` or ``step`` to those of another.
        buttons: The console's buttons, in the core's order.
        on_frame: Is called after each emulated frame, if it is not None.

    Raises:
        KartRewardsError: Something about the game's files or the options is wrong; says what.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 15}  # noqa: RUF012 - Gymnasium's own form

    def __init__(
        self,
        game: str,
        *,
        integrations: str | Path = INTEGRATIONS,
        state: str | Path | Sequence[str | Path] = (),
        scenario: str | Path = "scenario",
        info: str | Path = "data",
        rewards: str | Path | Iterable[Any] = (),
        reward_weights: Mapping[str, float] | None = None,
        reward_transform: str = "scale",
        reward_scale: float = 0.01,
        action_mode: str = "continuous",
        observation: ObservationConfig = ObservationConfig(),  # noqa: B008 - frozen
        frame_skip: int = DEFAULT_FRAME_SKIP,
        random_start_steps: int = 0,
        render_mode: str | None = None,
    ) -> None:
        EzPickle.__init__(
            self,
            game,
            integrations=integrations,
            state=state,
            scenario=scenario,
            info=info,
            rewards=rewards,
            reward_weights=reward_weights,
            reward_transform=reward_transform,
            reward_scale=reward_scale,
            action_mode=action_mode,
            observation=observation,
            frame_skip=frame_skip,
            random_start_steps=random_start_steps,
            render_mode=render_mode,
        )
        for name, value, least in (("frame_skip", frame_skip, 1), ("random_start_steps", random_start_steps, 0)):
            if not isinstance(value, (int, np.integer)) or value < least:
                raise KartRewardsError(f"{name} must be a whole number, {least} or more, not {value!r}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise KartRewardsError(f"unknown render mode {render_mode!r}: it is None, 'human' or 'rgb_array'")
        self.game = find_game(game, integrations)
        rom, data_path, scenario_path = self.game.rom(), self.game.json_path(info), self.game.json_path(scenario)
        self.layout = RamLayout.from_file(data_path)
        added = [rewards] if isinstance(rewards, (str, Path)) else rewards
        self.scoring = load_scoring(scenario_path, added, reward_weights)
        self.scoring.check(self.layout)
        self.step_seconds = {"emulator": 0.0, "scoring": 0.0, "observation": 0.0}
        self.frame_skip = frame_skip
        self.random_start_steps = random_start_steps
        self.render_mode = render_mode
        self._transform = make_transform(reward_transform, reward_scale)
        names = [state] if isinstance(state, (str, Path)) else list(state)
        self.states = [str(name) for name in names] or [self.game.default_state()]
        self._loaded_states = {name: self.game.load_state(name) for name in self.states}

        self._window: Window | None = None
        self.on_frame: Callable[[], object] | None = self._show if render_mode == "human" else None
        self._emulator: Any = SharedEmulator.of(rom)
        self.em = self._emulator.em
        self._snapshot: bytes | None = None
        self._screen: np.ndarray | None = None  # from another environment's turn to this one's next frame
        try:
            self._emulator.take(self)
            self.data = self._load_data(data_path, scenario_path)
            self._prepare(rom, action_mode, observation)
        except BaseException:
            self.close()  # or whoever keeps the exception keeps the process's one emulator
            raise

    def _load_data(self, data_path: Path, scenario_path: Path) -> Any:
        """Returns stable-retro's game data, bound to the emulator."""
        data = stable_retro.data.GameData()
        self._emulator.configure(data)
        self.em.step()
        if not data.load(str(data_path), str(scenario_path)):
            raise KartRewardsError(f"stable-retro can't load {data_path} with {scenario_path}: check both files")
        return data

    def _prepare(self, rom: Path, action_mode: str, observation: ObservationConfig) -> None:
        """The part of the constructor that needs the emulator."""
        self._read: Any = self.layout.reader(self.data)
        for name in self.states:
            self._try_state(name)
        self.frames_per_second: float = self.em.get_screen_rate()
        self.metadata = self.metadata | {"render_fps": self.frames_per_second / self.frame_skip}

        self.buttons = buttons_of(console_of(rom))
        self._released = np.zeros(len(self.buttons), np.uint8)
        self._actions = make_actions(action_mode, self.buttons, self.data.valid_actions(), self.data.filter_action)
        self._observer = ScreenObserver(observation, self.em.get_screen().shape)
        self._pooled_frame = self.frame_skip if observation.max_pool and self.frame_skip > 1 else None
        self.action_space = self._actions.space
        self.observation_space = self._observer.space
        self._has_race = set(self.layout.names) >= METRIC_VARIABLES

    def _try_state(self, name: str) -> None:
        """Raises KartRewardsError if the emulator refuses a start state, or the game does not run on from it."""
        path = self.game.state_path(name)
        if not self.em.set_state(self._loaded_states[name]):
            raise KartRewardsError(
                f"{path}: the emulator refuses this state: it is damaged, or another console's or core's"
            )
        if "current_frame" in self.layout.names and not game_runs_on(self.em, self.data, self._read, self.em.step):
            raise KartRewardsError(
                f"{path}: the game does not run on from this state (its current_frame does not count up): the state "
                f"was made with another ROM than {self.game.name}'s. Make a state of this game"
            )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Loads a start state and begins an episode. See the class."""
        super().reset(seed=seed)
        self._emulator.take(self)
        options = options or {}
        state = options.get("state") or self.states[self.np_random.integers(len(self.states))]
        if state not in self._loaded_states:
            self._loaded_states[state] = self.game.load_state(state)
            self._try_state(state)
        self.em.set_state(self._loaded_states[state])
        self._actions.reset()
        self.em.set_button_mask(self._released, 0)
        self._advance()
        start_frames = self._drive_at_random(
            options.get("random_start_frames", self.random_start_steps * self.frame_skip)
        )
        self.ram = self._read()
        self._rewards = EpisodeRewards(self.scoring.terms, self._transform)
        self._done = EpisodeDone(self.scoring.done)
        self._rewards(self.ram)
        self._done(self.ram)
        self._rewards.discard()
        self.race = RaceMetrics(self.ram, self.frames_per_second) if self._has_race else None
        if self.race:
            self.race.frames = start_frames  # the first lap and the race are timed from the grid
        return self._observer.reset(self.em.get_screen()), {"state": state, **self._info()}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Holds an action for ``frame_skip`` emulated frames. See the class."""
        self._rewards.start_step()
        reward = emulator_seconds = scoring_seconds = 0.0
        stopped_by = screen_before = held = None
        began = perf_counter()
        self._emulator.take(self)
        for frame, buttons in enumerate(self._actions.frames(action, self.frame_skip), start=1):
            if frame == self._pooled_frame:
                screen_before = self.em.get_screen()
            if buttons is not held:
                self.em.set_button_mask(buttons, 0)
                held = buttons
            self._advance()
            emulated = perf_counter()
            emulator_seconds += emulated - began
            self.ram = ram = self._read()
            reward += self._rewards(ram)
            if self.race:
                self.race.update(ram)
            stopped_by = self._done(ram)
            began = perf_counter()
            scoring_seconds += began - emulated
            if stopped_by:
                break
        observation = self._observer.observe(self.em.get_screen(), screen_before)
        observed = perf_counter()
        info = self._info()
        if stopped_by:
            info["done_rule"] = stopped_by
        self.step_seconds["emulator"] += emulator_seconds
        self.step_seconds["observation"] += observed - began
        self.step_seconds["scoring"] += scoring_seconds + perf_counter() - observed
        return observation, reward, stopped_by is not None, False, info

    def _drive_at_random(self, most_frames: int) -> int:
        """Drives at random for 0 to ``most_frames`` emulated frames; returns how many."""
        if not most_frames:
            return 0
        driver = RandomDriver(int(self.np_random.integers(2**31)))
        frames = int(self.np_random.integers(most_frames + 1))
        for _ in range(frames):
            held = driver(self._read())
            self.em.set_button_mask(np.array([button in held for button in self.buttons], np.uint8), 0)
            self._advance()
        return frames

    def _advance(self) -> None:
        self.em.step()
        self._screen = None
        if self.on_frame:
            self.on_frame()

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {
            "reward_terms": self._rewards.step,
            "episode_rewards": self._rewards.episode_summary(),
        }
        if self.race:
            info["race"] = self.race.summary()
        return info

    def get_state(self) -> dict[str, Any]:
        """Returns all that the rest of the run depends on, as plain values and bytes.

        That is the emulator's snapshot, what terms and rules remember, the race so far, the stacked observations and
        the random numbers to come.

        Raises:
            KartRewardsError: A term or rule remembers what can't be saved. See ``ScriptCalls.get_state``.
        """
        self._emulator.take(self)
        return {
            "emulator": zlib.compress(self.em.get_state(), level=1),
            "rewards": self._rewards.get_state(),
            "done": self._done.get_state(),
            "race": to_plain(vars(self.race)) if self.race else None,
            "remainder": self._actions.remainder,
            "frames": self._observer.frames.tobytes(),
            "random": to_plain(self.np_random.bit_generator.state),
        }

    def set_state(self, state: dict[str, Any]) -> np.ndarray:
        """Takes back what ``get_state`` of an environment with the same options returned, after a reset.

        Returns:
            The observation that was the latest then.

        Raises:
            KartRewardsError: The emulator refuses its part of it.
        """
        self._emulator.take(self)
        if not self.em.set_state(zlib.decompress(state["emulator"])):
            raise KartRewardsError(
                f"the emulator refuses the saved state: it is of another ROM than {self.game.name}'s"
            )
        self.ram = self._read()
        self._rewards.set_state(state["rewards"])
        self._done.set_state(state["done"])
        if self.race:
            vars(self.race).update(from_plain(state["race"]))
        self._actions.remainder = state["remainder"]
        frames = self._observer.frames
        frames[:] = np.frombuffer(state["frames"], frames.dtype).reshape(frames.shape)
        self.np_random.bit_generator.state = from_plain(state["random"])
        return self._observer.observation()

    def render(self) -> Any:
        """Returns the screen in ``rgb_array`` mode; in ``human`` mode the window shows every frame anyway."""
        if self.render_mode != "rgb_array":
            return None
        return self.em.get_screen() if self._screen is None else self._screen

    def put_aside(self) -> None:
        """Saves the game: another environment's turn at the emulator begins."""
        self._snapshot = self.em.get_state()
        self._screen = self.render()  # snapshots have no picture

    def take_up(self) -> None:
        """Loads the game again: this environment's turn begins."""
        if self._snapshot is not None:
            self.em.set_state(self._snapshot)

    def _show(self) -> None:
        if self._window is None:
            self._window = Window(self.game.name)
        self._window.show(self.em.get_screen(), frames_per_second=self.frames_per_second)

    def close(self) -> None:
        """Leaves the emulator; it ends with its last environment."""
        if self._emulator:
            self._emulator.leave(self)
        self.data = self.em = self._read = self._emulator = None
        gc.collect()
        if self._window is not None:
            self._window.close()
            self._window = None


def make_env(
    game: str,
    *,
    integrations: str | Path = INTEGRATIONS,
    max_episode_steps: int | None = None,
    frame_skip: int = DEFAULT_FRAME_SKIP,
    **options: Any,
) -> gym.Env[np.ndarray, Any]:
    """Makes a ``KartEnv`` with a step limit.

    Args:
        game: The game's folder name, such as ``HomebrewKart-Snes``.
        integrations: The folder of games.
        max_episode_steps: Agent steps until an episode is truncated. By default as many as make 12,000 emulated frames.
        frame_skip: Emulated frames a step.
        options: ``KartEnv``'s other arguments: state, scenario, info, rewards, reward_weights, reward_transform,
            reward_scale, action_mode, observation, random_start_steps, render_mode.

    Raises:
        KartRewardsError: See ``KartEnv``.
    """
    steps = max_episode_steps or default_max_episode_steps(frame_skip)
    try:
        spec = EnvSpec(game, "kart_rewards.env:KartEnv", max_episode_steps=steps, kwargs={"game": game})
    except gym.error.Error:
        raise KartRewardsError(f"{game!r} can't be a game's name: Gymnasium allows letters, digits, _ and -") from None
    return gym.make(spec, integrations=integrations, frame_skip=frame_skip, **options)
