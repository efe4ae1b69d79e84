"""The Gymnasium environment: it emulates frames, decodes their RAM, and scores them.

* ``KartEnv`` - one game in stable-retro's emulator, with rewards and done rules in Python
* ``make_env`` - makes a ``KartEnv`` with a step limit

``gymnasium.make("kart_rewards:HomebrewKart-Snes")`` makes the same environment. Each game is registered under the name
of its folder.

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
import inspect
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import stable_retro
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import EzPickle

from kart_rewards.declared import scripts_of
from kart_rewards.defaults import DEFAULT_FRAME_SKIP, default_max_episode_steps
from kart_rewards.drivers import RandomDriver
from kart_rewards.env.actions import ButtonMask, make_actions
from kart_rewards.env.core import INEXACT_STATES, SLOW_TURNS, SharedEmulator, buttons_of, console_of, game_runs_on
from kart_rewards.env.lua import LuaEngine, with_values
from kart_rewards.env.observations import ROAD_VIEW, Crop, ObservationConfig, ScreenObserver
from kart_rewards.env.recorder import DriveRecorder
from kart_rewards.env.slow import SlowScripts
from kart_rewards.env.window import Window
from kart_rewards.episode import EpisodeScore
from kart_rewards.errors import KartRewardsError, did_you_mean
from kart_rewards.files import copy_of
from kart_rewards.integrations import find_game
from kart_rewards.notices import notice
from kart_rewards.race import RaceMetrics, is_kart_race
from kart_rewards.ram import RamLayout, load_json, shown
from kart_rewards.rewards import make_transform
from kart_rewards.scenario import load_scoring
from kart_rewards.scripting import from_plain, plain_action, to_plain

_RESET_OPTIONS = ("state", "random_start_frames")
_FRAMES_BETWEEN_SNAPSHOTS = 32  # saving one takes a tenth of a frame; replaying takes a frame for each frame
_FRAMES_TO_COMPARE = 15  # with random buttons; incomplete states show within the first few


class KartEnv(gym.Env[np.ndarray, Any], EzPickle):
    """One game in stable-retro's emulator.

    stable-retro allows one emulator per process. Environments of the same game share it, and their steps may be
    interleaved in any order. A game whose core can't save its state exactly refuses a second environment; see
    ``sharing_fault``. Close all of them before you make an environment of another game.

    ``step`` holds an action for ``frame_skip`` emulated frames. On each frame, it decodes the RAM, scores it, and
    applies the reward transform to the weighted sum. The reward of the step is the sum over its frames. The step ends
    early on the frame on which a done rule is true.

    Frames that nobody sees are not drawn, where the console's core is known to allow it; see
    ``kart_rewards.env.core.Drawing``. All results are the same as if they were drawn. The screen is drawn after
    ``reset`` and ``step``, and on each frame if there is an ``on_frame``.

    ``reset`` accepts these options:

    * ``state``: the start state of this episode
    * ``random_start_frames``: the maximum length of the random start, in emulated frames; it replaces
      ``random_start_steps``. For one state and seed, the start is the same in each action mode

    The terms and rules are called with the first frame of an episode, but it is not paid. A random start is not scored;
    only the race clock includes it.

    ``info`` contains after each step:

    * ``reward_terms``: term -> weighted sum over this step, before the transform
    * ``episode_rewards``: the tables of ``EpisodeRewards.episode_summary``
    * ``race``: the metrics of ``RaceMetrics.summary``, if the game has their variables
    * ``ram``: the snapshot of the last frame, as a dict: variable -> value
    * ``done_rule``: the name of the rule that ended the episode, on its last step

    After a reset, ``info`` also contains ``state``, the name of the start state.

    Args:
        game: The game's folder name.
        integrations: The only folder to look for the game in. None: the standard lookup of
            ``kart_rewards.integrations``.
        state: The start state, or several; each reset selects one of them at random. A pattern such as ``Gen*`` stands
            for all states that match it; see ``Game.chosen_states``. None or an empty list: the state in
            ``metadata.json``.
        scenario: The scenario file: a name in the game's folder, or a path that ends in ``.json``. None: no reward
            terms and no done rules beside ``rewards``.
        info: The data file: a name in the game's folder, or a path that ends in ``.json``.
        rewards: Reward terms and done rules to add to the scenario's: functions and classes, paths of Python files, or
            names of modules; one of them or several.
        reward_weights: Term -> weight; replaces the scenario's weights.
        reward_transform: ``scale``, ``sign`` (as in the original) or ``none``. See ``make_transform``.
        reward_scale: The factor of the transform ``scale``.
        action_mode: One of ``kart_rewards.env.actions.ACTION_MODES``.
        observation: The options of the observations.
        frame_skip: Number of emulated frames per step.
        random_start_steps: The maximum length of a random start, in steps. A reset drives at random for 0 to this many
            steps before the episode begins.
        sticky_actions: The probability, on each emulated frame, that the buttons of the frame before stay held and
            the new action takes effect later (Machado et al., 2018, https://arxiv.org/abs/1709.06009). They use 0.25.
        render_mode: ``rgb_array``: ``render`` returns the screen, uint8, shape (height, width, 3). ``human``: a window
            shows each frame at the console's speed, until the user closes it. None: no rendering.
        draw_all: Whether to draw every frame, also those that nobody sees.

    Attributes:
        draws_all: Why every frame is drawn; an empty text if frames that nobody sees are not drawn.
        ram: The ``RamSnapshot`` of the latest frame.
        score: The ``EpisodeScore`` of the current episode; None before the first ``reset``.
        step_seconds: Part -> wall-clock seconds in ``step`` so far. The parts are ``emulator``, ``scoring`` (decoding,
            terms, rules and info) and ``observation``.
        lua: The engine of the scenario's Lua scripts; None if no term or rule needs it.
        observer: The ``ScreenObserver`` that makes the observations.
        action_mode: See the arguments.
        em: stable-retro's emulator. After ``reset`` or ``step`` it runs this environment's game, until another
            environment uses it.
        buttons: The names of the console's buttons in the core's order; None where the core has no button.
        on_frame: A function that is called after each emulated frame, or None.
        recorder: Records the drives of the episodes that begin from now on. None: nothing is recorded.

    Raises:
        KartRewardsError: A file of the game or an argument is not valid. The message says which one and why.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 15}  # noqa: RUF012 - Gymnasium's own form

    def __init__(
        self,
        game: str,
        *,
        integrations: str | Path | None = None,
        state: str | Path | Sequence[str | Path] | None = (),
        scenario: str | Path | None = "scenario",
        info: str | Path = "data",
        rewards: Any = (),
        reward_weights: Mapping[str, float] | None = None,
        reward_transform: str = "scale",
        reward_scale: float = 0.01,
        action_mode: str = "auto",
        observation: ObservationConfig = ObservationConfig(),  # noqa: B008 - frozen
        frame_skip: int = DEFAULT_FRAME_SKIP,
        random_start_steps: int = 0,
        sticky_actions: float = 0.0,
        render_mode: str | None = None,
        draw_all: bool = False,
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
            sticky_actions=sticky_actions,
            render_mode=render_mode,
            draw_all=draw_all,
        )
        if not isinstance(observation, ObservationConfig):
            raise KartRewardsError(f"observation must be an ObservationConfig, not {observation!r}")
        if not (state is None or isinstance(state, (str, Path, Iterable))):
            raise KartRewardsError(f"state must be the name or path of a start state, or a list of them, not {state!r}")
        for name, value, least in (("frame_skip", frame_skip, 1), ("random_start_steps", random_start_steps, 0)):
            if not isinstance(value, (int, np.integer)) or value < least:
                raise KartRewardsError(f"{name} must be an integer, {least} or more, not {value!r}")
        if not isinstance(sticky_actions, (int, float, np.number)) or not 0 <= sticky_actions < 1:
            raise KartRewardsError(
                f"sticky_actions must be a probability: a number from 0 to less than 1, not {sticky_actions!r}"
            )
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise KartRewardsError(f"unknown render mode {render_mode!r}: it is None, 'human' or 'rgb_array'")
        self.game = find_game(game, integrations)
        rom, data_path = self.game.rom(), self.game.json_path(info)
        scenario_path = None if scenario is None else self.game.json_path(scenario)
        self.layout = RamLayout.from_file(data_path)
        self.scoring = load_scoring(scenario_path, rewards, reward_weights, self.layout.names)
        self.scoring.check(self.layout)
        self.step_seconds = {"emulator": 0.0, "scoring": 0.0, "observation": 0.0}
        self.frame_skip = frame_skip
        self.random_start_steps = random_start_steps
        self.sticky_actions = sticky_actions
        self.action_mode = action_mode
        self.render_mode = render_mode
        self._transform = make_transform(reward_transform, reward_scale)
        self.score: EpisodeScore | None = None
        self._slow_scripts = SlowScripts(frame_skip)
        names = [state] if isinstance(state, (str, Path)) else list(state or ())
        self.states = self.game.chosen_states(names) or [self.game.default_state()]
        self._loaded_states = {name: self.game.load_state(name) for name in self.states}

        self._window: Window | None = None
        self.recorder: DriveRecorder | None = None
        self.on_frame: Callable[[], object] | None = self._show if render_mode == "human" else None
        self._emulator: Any = SharedEmulator.of(rom)
        self.em = self._emulator.em
        self._snapshot: bytes | None = None
        self._since_snapshot: list[ButtonMask] = []  # one mask per frame; recorded if frames may stay undrawn
        self.draws_all = "draw_all is set" if draw_all else "with a frame skip of 1, every frame is seen"
        self._screen: np.ndarray | None = None  # the screen while another environment uses the emulator
        try:
            self._emulator.take(self)
            self.data = self._load_data(data_path, scenario_path)
            self._prepare(rom, action_mode, observation)
            if len(self._emulator.players) > 1:
                self._check_sharing()
            if not draw_all and self._first_seen > 1:
                self._emulator.drawing.settle()
                writing = "Lua scripts may write to the game's memory" if self.lua else ""
                self.draws_all = self._emulator.drawing.obstacle or writing or self.sharing_fault()
                self._emulator.drawing.rewind()
        except BaseException:
            self.close()  # otherwise a reference to the exception keeps the process's only emulator alive
            raise

    def _load_data(self, data_path: Path, scenario_path: Path | None) -> Any:
        """Returns stable-retro's ``GameData``, bound to the emulator."""
        data = stable_retro.data.GameData()
        self._emulator.configure(data)
        self.em.step()
        scripts = scripts_of((*self.scoring.terms, *self.scoring.done))
        self.lua = LuaEngine(scripts, data_path, self._emulator.configure) if scripts else None
        if self.lua:
            self._emulator.configure(data)
        if not data.load(str(copy_of(data_path)), scenario_path and str(copy_of(scenario_path))):
            raise KartRewardsError(f"stable-retro can't load {data_path} with {scenario_path}: check both files")
        if scenario_path:
            self._check_buttons(scenario_path)
        return data

    def _check_buttons(self, scenario_path: Path) -> None:
        """Raises KartRewardsError if ``actions`` name a button that the console lacks. stable-retro presses none."""
        buttons = [name for name in buttons_of(self._emulator.console) if name]
        for name in chain.from_iterable(chain.from_iterable(load_json(scenario_path).get("actions", []))):
            if name not in buttons:
                hint = did_you_mean(name, buttons)
                raise KartRewardsError(
                    f'{scenario_path}: "actions": {self._emulator.console} has no button {name!r}, but '
                    f"{', '.join(buttons)}.{hint}"
                )

    def _prepare(self, rom: Path, action_mode: str, observation: ObservationConfig) -> None:
        """Does the part of the constructor that needs the emulator."""
        self._read: Any = self.layout.reader(self.data)
        self._read_frame: Any = self._read
        if self.lua:
            self._read_frame = with_values(self._read, self.layout.names, self.lua.scripts, self.lua)
        screens = {name: self._try_state(name) for name in self.states}
        self.frames_per_second: float = self.em.get_screen_rate()
        self.metadata = self.metadata | {"render_fps": self.frames_per_second / self.frame_skip}

        self.buttons = buttons_of(console_of(rom))
        self._released = self._held = np.zeros(len(self.buttons), np.uint8)
        self._names_of_masks: dict[bytes, frozenset[str]] = {}
        self._actions = make_actions(
            action_mode, self.buttons, self.data.valid_actions(), self.data.filter_action, self._is_snes_race
        )
        self.observer = ScreenObserver(observation, screens[self.states[0]], self._own_crop(screens[self.states[0]]))
        for name, screen in screens.items():
            try:
                self.observer.fit(screen)
            except KartRewardsError as error:
                raise KartRewardsError(f"{self.game.state_path(name)}: {error}") from None
        self._pooled_frame = self.frame_skip if observation.max_pool and self.frame_skip > 1 else None
        self._first_seen = self.frame_skip - 1 if self._pooled_frame else self.frame_skip  # of a step's frames, from 1
        self.action_space = self._actions.space
        self.observation_space = self.observer.space

    @property
    def _is_snes_race(self) -> bool:
        return is_kart_race(self.layout.names) and self._emulator.console == "Snes"

    def _own_crop(self, screen: tuple[int, ...]) -> Crop | None:
        """Returns the crop that fits this game, for the crop ``auto``; None for the complete screen of this shape."""
        rotation = self.em.get_rotation()  # the scenario's crop is one of the screen as the core draws it
        kept = np.rot90(np.zeros(screen[:2], bool), rotation)
        left, top, width, height = self.data.crop_info(0)  # as for stable-retro, 0 is up to the end
        kept[top : top + height if height else None, left : left + width if width else None] = True
        if not kept.any():
            return top, top + height, left, left + width  # it does not fit the screen
        if not kept.all():
            rows, columns = (np.flatnonzero(np.rot90(kept, -rotation).any(axis)) for axis in (1, 0))
            return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        return ROAD_VIEW if self._is_snes_race else None

    def _try_state(self, name: str) -> tuple[int, ...]:
        """Loads a start state, and raises KartRewardsError if the game does not continue from it.

        Returns:
            The shape of its screen, which may be another one than that of other states and of the start of the game.
        """
        path = self.game.state_path(name)
        if not self.em.set_state(self._loaded_states[name]):
            raise KartRewardsError(
                f"{path}: the emulator refuses this state: it is damaged, or another console's or core's"
            )
        checkable = "current_frame" in self.layout.names
        if checkable and not game_runs_on(self.em, self.data, self.layout, self._read, self.em.step):
            raise KartRewardsError(
                f"{path}: the game does not run on from this state (its current_frame does not count up): the state "
                f"was made with another ROM than {self.game.name}'s. Make a state of this game"
            )
        self.em.set_state(self._loaded_states[name])
        self.em.step()
        screen: tuple[int, ...] = self.em.get_screen().shape
        return screen

    def _take(self) -> None:
        """Loads this environment's state into the emulator, if another one uses it.

        Raises:
            ClosedEnvironmentError: The environment is closed.
        """
        if self._emulator is None:
            raise gym.error.ClosedEnvironmentError("the environment is closed: make a new one")
        self._emulator.take(self)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode.

        Args:
            seed: Seed of the random numbers of this and the following episodes. None continues with the current ones.
            options: ``state`` and ``random_start_frames``; see the class.

        Returns:
            The first observation, and ``info``; see the class.

        Raises:
            KartRewardsError: The start state is not valid, or a term or rule failed.
        """
        super().reset(seed=seed)
        self._take()
        options = options or {}
        if not isinstance(options, Mapping):
            raise KartRewardsError(f'reset: options must be a dict such as {{"state": "Level1"}}, not {shown(options)}')
        for key in options.keys() - {*_RESET_OPTIONS, "states"}:  # states: see kart_rewards.training.episodes
            hint = did_you_mean(key, _RESET_OPTIONS)
            raise KartRewardsError(f"reset: unknown option {key!r}.{hint} The options are {', '.join(_RESET_OPTIONS)}")
        state = options.get("state") or self.states[self.np_random.integers(len(self.states))]
        if not isinstance(state, (str, Path)):
            raise KartRewardsError(f"reset: state must be the name or path of one start state, not {shown(state)}")
        state = str(state)
        if state not in self._loaded_states:
            self._loaded_states[state] = self.game.load_state(state)
            self._try_state(state)
        self._load(self._loaded_states[state], self._released)
        if self.recorder:
            self.recorder.begin(self._loaded_states[state], state, seed)
            self.recorder.lead(self._released)
        self._actions.reset()
        self._held = self._released
        self.em.set_button_mask(self._held, 0)
        self._advance(self._held)
        start = self._read()
        start_frames = self._drive_at_random(
            options.get("random_start_frames", self.random_start_steps * self.frame_skip)
        )
        if self.lua:
            self.lua.begin_episode()
        self.ram = self._read_frame()
        if self.recorder:
            self.recorder.first(self.ram)
        held = self._pressed(self._held)
        self.score = EpisodeScore(
            self.scoring, self.ram, self._transform, self.frames_per_second, start_frames, held, start
        )
        return self.observer.reset(self.em.get_screen()), {"state": state, **self.score.info()}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Holds an action for ``frame_skip`` emulated frames.

        Args:
            action: An element of the action space.

        Returns:
            The observation, the reward (float), whether a done rule terminated the episode, whether one truncated it
            (the step limit is not part of this class), and ``info``; see the class.

        Raises:
            KartRewardsError: The action is not an element of the action space, or a term or rule failed.
        """
        score = self.score
        if score is None:
            raise gym.error.ResetNeeded("Call reset before step")
        score.start_step()
        reward = emulator_seconds = scoring_seconds = 0.0
        screen_before = held = None
        given = plain_action(action)
        measured = self._slow_scripts.begin_step(score.rewards.calls, score.done.calls)
        began = perf_counter()
        self._take()
        masks = self._actions.frames(action, self.frame_skip)
        if self.sticky_actions:
            masks = self._delayed(masks)
        if not self.draws_all:
            self._keep_snapshot()
        recorder = self.recorder
        if recorder:
            recorder.step(action)
        first_seen = 1 if self.on_frame else self._first_seen
        for frame, buttons in enumerate(masks, start=1):
            if frame == self._pooled_frame:
                screen_before = self.em.get_screen()
            if buttons is not held:
                self.em.set_button_mask(buttons, 0)
                held, pressed = buttons, self._pressed(buttons)
            self._advance(buttons, frame >= first_seen)
            emulated = perf_counter()
            emulator_seconds += emulated - began
            self.ram = ram = self._read_frame()
            if recorder:
                recorder.frame(buttons, ram)
            reward += score(ram, pressed, given)
            began = perf_counter()
            scoring_seconds += began - emulated
            if score.ended_by:
                break
        self._held = buttons
        if recorder:
            recorder.paid(reward)
        if score.ended_by and self._emulator.drawing.behind:
            self._draw_again()
        observation = self.observer.observe(self.em.get_screen(), screen_before)
        observed = perf_counter()
        info = score.info()
        if measured:
            self._slow_scripts.end_step(frame, emulator_seconds)
        self.step_seconds["emulator"] += emulator_seconds
        self.step_seconds["observation"] += observed - began
        self.step_seconds["scoring"] += scoring_seconds + perf_counter() - observed
        return observation, reward, score.terminated, score.truncated, info

    def _pressed(self, mask: ButtonMask) -> frozenset[str]:
        """Returns the names of the buttons that a mask holds."""
        key = mask.tobytes()
        if key not in self._names_of_masks:
            held = (name for name, is_held in zip(self.buttons, mask, strict=True) if is_held and name)
            self._names_of_masks[key] = frozenset(held)
        return self._names_of_masks[key]

    def _delayed(self, masks: Sequence[ButtonMask]) -> list[ButtonMask]:
        """Returns the masks of a step's frames, with the latest mask on the frames before the action takes effect."""
        late = 0
        while late < len(masks) and self.np_random.random() < self.sticky_actions:
            late += 1
        return [self._held] * late + list(masks[late:])

    def _drive_at_random(self, most_frames: int) -> int:
        """Drives at random for 0 to ``most_frames`` emulated frames. Returns the number of frames."""
        if not isinstance(most_frames, (int, np.integer)) or most_frames < 0:
            raise KartRewardsError(f"random_start_frames must be an integer, 0 or more, not {most_frames!r}")
        if not most_frames:
            return 0
        driver = RandomDriver(int(self.np_random.integers(2**31)))
        frames = int(self.np_random.integers(most_frames + 1))
        for frame in range(1, frames + 1):
            held = driver(self._read())
            self._held = np.array([button in held for button in self.buttons], np.uint8)
            self.em.set_button_mask(self._held, 0)
            self._advance(self._held, frame == frames)
            if self.recorder:
                self.recorder.lead(self._held)
        return frames

    def _advance(self, buttons: ButtonMask, seen: bool = True) -> None:
        """Runs an emulated frame, with the buttons that the emulator holds already. It is drawn if it is seen."""
        if self.draws_all:
            self._emulator.drawing.frame(self.em.step, True)
        else:
            self._since_snapshot.append(buttons)
            if not self._emulator.drawing.frame(self.em.step, seen or self.on_frame is not None):
                self._draw_again()
        self._screen = None
        if self.on_frame:
            self.on_frame()

    def _load(self, snapshot: bytes, held: np.ndarray) -> bool:
        """Loads a state. Returns whether the core accepts it."""
        self._snapshot, self._since_snapshot = snapshot, []
        return bool(self._emulator.load(self.data, snapshot, held))

    def _save(self) -> None:
        self._snapshot, self._since_snapshot = self.em.get_state(), []

    def _keep_snapshot(self) -> None:
        """Makes sure that ``_draw_again`` can repeat the next step."""
        drawing = self._emulator.drawing
        if len(self._since_snapshot) >= _FRAMES_BETWEEN_SNAPSHOTS or drawing.disturbed:
            self._save()
            drawing.settle()

    def _draw_again(self) -> None:
        """Runs the frames since the last snapshot again, and draws them."""
        drawing, frames = self._emulator.drawing, self._since_snapshot
        drawing.rewind()
        self._load(self._snapshot, self._released)  # type: ignore[arg-type]
        for buttons in frames:
            self.em.set_button_mask(buttons, 0)
            drawing.frame(self.em.step, True)
        self._since_snapshot = frames

    @property
    def race(self) -> RaceMetrics | None:
        """The metrics of the episode; None if the game does not have their variables, or before the first ``reset``."""
        return self.score.race if self.score else None

    def get_state(self) -> dict[str, Any]:
        """Returns the complete state of the environment as plain values and bytes, for ``set_state``.

        It consists of the emulator's state, the memory of terms and rules, the race metrics, the stacked images, the
        remainder of the steering, the buttons of the last frame and the state of the random generator.

        Raises:
            KartRewardsError: The memory of a term or rule can't be saved. See ``ScriptCalls.get_state``.
        """
        self._take()
        assert self.score, "reset comes first"
        return {
            "emulator": zlib.compress(self.em.get_state(), level=1),
            **self.score.get_state(),
            "remainder": self._actions.remainder,
            "held": self._held.tobytes(),
            "frames": self.observer.frames.tobytes(),
            "random": to_plain(self.np_random.bit_generator.state),
        }

    def set_state(self, state: dict[str, Any]) -> np.ndarray:
        """Restores a state that ``get_state`` of an environment with the same options returned. Call ``reset`` first.

        Returns:
            The latest observation at the time of ``get_state``.

        Raises:
            KartRewardsError: The state is of another ROM or another version of this package, or the scenario uses Lua.
            LookupError, TypeError, ValueError, zlib.error: It is damaged.
        """
        if self.lua:
            raise KartRewardsError(f"{self.game.name}: the memory of Lua scripts is not saved: begin a new episode")
        held = np.frombuffer(state.get("held", bytes(len(self.buttons))), np.uint8)  # older versions did not save it
        self._take()
        if self.recorder:
            self.recorder.forget()
        if not self._load(zlib.decompress(state["emulator"]), held.reshape(len(self.buttons))):
            raise KartRewardsError(
                f"the emulator refuses the saved state: it was made with another ROM than {self.game.name}'s"
            )
        self.ram = self._read()
        assert self.score, "reset comes first"
        self.score.set_state(state, self.ram)
        self._actions.remainder = float(state["remainder"])
        self._held = held
        frames = self.observer.frames
        frames[:] = np.frombuffer(state["frames"], frames.dtype).reshape(frames.shape)
        self.np_random.bit_generator.state = from_plain(state["random"])
        return self.observer.observation()

    def render(self) -> Any:
        """Returns the screen in ``rgb_array`` mode, uint8, shape (height, width, 3); None in the other modes.

        In ``human`` mode, ``step`` and ``reset`` update the window.
        """
        if self.render_mode != "rgb_array":
            return None
        return self.em.get_screen() if self._screen is None else self._screen

    def put_aside(self) -> None:
        """Saves the game. The shared emulator calls this method before the turn of another environment."""
        self._save()
        self._screen = self.render()  # the emulator's state does not contain the screen

    def take_up(self) -> None:
        """Loads the saved game. The shared emulator calls this method at the beginning of this environment's turn."""
        if self._snapshot is not None:
            self._load(self._snapshot, self._held)

    def describe_drawing(self) -> str:
        """Returns a sentence that says which frames are drawn."""
        if self.draws_all:
            return f"Every frame is drawn, because {self.draws_all}"
        return "Frames that nobody sees are not drawn"

    def slow_turns(self) -> str:
        """Returns why turns on a shared emulator are slow on this console; an empty text if they are not."""
        return SLOW_TURNS.get(self._emulator.console, "")

    def sharing_fault(self) -> str:
        """Returns why environments of this game can't share an emulator; an empty text if they can.

        After a change of turns, a game must run on from its saved state as if alone. Not every core saves its complete
        state, and cartridges may have chips of their own. This method therefore plays some frames with random buttons,
        first alone, then in turns with another game, and compares RAM and screen. Call ``reset`` afterwards.
        """
        shared = self._emulator
        if any(getattr(player, "lua", None) for player in (self, *shared.players)):
            return "its scenario uses Lua, and stable-retro has one Lua engine per process"
        if shared.rom not in shared.faults:
            shared.faults[shared.rom] = INEXACT_STATES.get(shared.console) or self._compare_turns()
        return str(shared.faults[shared.rom])

    def _compare_turns(self) -> str:
        """Returns the result of ``sharing_fault`` by playing frames."""
        self._take()
        alone, in_turns = self._sample_frames(False), self._sample_frames(True)
        for number, (one, other) in enumerate(zip(alone, in_turns, strict=True), start=1):
            for what, of_one, of_other in zip(("RAM", "screen"), one, other, strict=True):
                if of_one != of_other:
                    return f"its core does not save its complete state: in turns the {what} differs on frame {number}"
        return ""

    def _sample_frames(self, in_turns: bool) -> list[tuple[dict[int, bytes], bytes]]:
        """Returns RAM and screen of the frames that ``_compare_turns`` compares."""
        random = np.random.default_rng(1)
        real = np.array([name is not None for name in self.buttons], np.uint8)
        self._emulator.load(self.data, self._loaded_states[self.states[0]], self._released)
        snapshot_of_other, held_by_other, self._held = self.em.get_state(), self._released, self._released
        frames = []
        for _ in range(_FRAMES_TO_COMPARE):
            own, others = random.integers(0, 2, (2, len(real)), np.uint8) * real
            if in_turns:
                self.put_aside()
                self._emulator.load(self.data, snapshot_of_other, held_by_other)
                self.em.set_button_mask(others, 0)
                self.em.step()
                snapshot_of_other, held_by_other = self.em.get_state(), others
                self.take_up()
            self.em.set_button_mask(own, 0)
            self.em.step()
            self._held = own
            frames.append((self.data.memory.blocks, self.em.get_screen().tobytes()))
        return frames

    def _check_sharing(self) -> None:
        """Raises KartRewardsError if environments of this game can't share the emulator."""
        fault = self.sharing_fault()
        remedy = "make each environment in a process of its own, for example with gymnasium.make_vec"
        if fault:
            raise KartRewardsError(
                f"{self.game.name}: a process can have one environment of this game, because {fault}. Close the other "
                f"one first, or {remedy}"
            )
        slow = self.slow_turns()
        if slow:
            notice(f"{self.game.name}: several environments in a process are slow, because {slow}. Faster: {remedy}")

    def _show(self) -> None:
        if self._window is None:
            self._window = Window(self.game.name, instead="To get the pictures instead: render_mode='rgb_array'")
        self._window.show(self.em.get_screen(), frames_per_second=self.frames_per_second)

    def close(self) -> None:
        """Ends the use of the emulator. The emulator ends with its last environment."""
        if self._emulator:
            self._emulator.leave(self)
        self.data = self.em = self.lua = self._read = self._read_frame = self._emulator = None
        gc.collect()
        if self._window is not None:
            self._window.close()
            self._window = None


def make_env(
    game: str,
    *,
    integrations: str | Path | None = None,
    max_episode_steps: int | None = None,
    frame_skip: int = DEFAULT_FRAME_SKIP,
    **options: Any,
) -> gym.Env[np.ndarray, Any]:
    """Makes a ``KartEnv`` with a step limit.

    Args:
        game: The game's folder name, such as ``HomebrewKart-Snes``.
        integrations: The folder of games.
        max_episode_steps: Agent steps until an episode is truncated. The default is the number of steps in 12,000
            emulated frames.
        frame_skip: Number of emulated frames per step.
        options: The other arguments of ``KartEnv``: state, scenario, info, rewards, reward_weights, reward_transform,
            reward_scale, action_mode, observation, random_start_steps, sticky_actions, render_mode, draw_all.

    Raises:
        KartRewardsError: See ``KartEnv``; or the game's name is not valid, or there is no such argument.
    """
    known = {**inspect.signature(make_env).parameters, **inspect.signature(KartEnv).parameters}
    for unknown in options.keys() - known.keys():
        raise KartRewardsError(f"make_env has no argument {unknown!r}.{did_you_mean(unknown, known)}")
    if not (isinstance(frame_skip, (int, np.integer)) and frame_skip >= 1):
        raise KartRewardsError(f"frame_skip must be an integer, 1 or more, not {frame_skip!r}")
    frame_skip = int(frame_skip)  # Gymnasium would not copy a number of NumPy
    steps = default_max_episode_steps(frame_skip) if max_episode_steps is None else max_episode_steps
    if max_episode_steps is not None and not (isinstance(steps, (int, np.integer)) and steps >= 1):
        raise KartRewardsError(f"max_episode_steps must be an integer, 1 or more, not {steps!r}")
    try:
        spec = EnvSpec(
            game,
            "kart_rewards.env:KartEnv",
            max_episode_steps=steps,
            disable_env_checker=True,
            kwargs={"game": game},
        )
    except (gym.error.Error, TypeError):
        raise KartRewardsError(f"{game!r} can't be a game's name: Gymnasium allows letters, digits, _ and -") from None
    return gym.make(spec, integrations=integrations, frame_skip=frame_skip, **options)
