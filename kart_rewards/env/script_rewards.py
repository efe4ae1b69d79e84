"""Rewards and done rules in Python for an environment of stable-retro's that exists already.

* ``ScriptRewards`` - the wrapper

Example:
    >>> import stable_retro
    >>> from kart_rewards import reward_term
    >>> @reward_term(weight=0.1)
    ... def lives(ram):
    ...     return ram.lives
    >>> env = ScriptRewards(stable_retro.make("Airstriker-Genesis-v0", render_mode=None), rewards=[lives])
    >>> observation, info = env.reset(seed=1)
    >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    >>> sorted(info["reward_terms"])
    ['lives', 'score']
    >>> env.close()
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import gymnasium as gym
import stable_retro
from gymnasium.utils import EzPickle, RecordConstructorArgs

from kart_rewards.declared import scripts_of
from kart_rewards.env.kart_env import KartEnv
from kart_rewards.env.lua import LuaEngine, lua_errors, with_values
from kart_rewards.episode import EpisodeScore
from kart_rewards.errors import KartRewardsError
from kart_rewards.lua import LuaScripts
from kart_rewards.ram import RamLayout
from kart_rewards.rewards import make_transform
from kart_rewards.scenario import load_scoring
from kart_rewards.scripting import plain_action


class ScriptRewards(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs, EzPickle):
    """Replaces the rewards and the end of episodes of a stable-retro environment by reward terms and done rules.

    On each frame that the environment steps, the wrapper decodes the RAM variables of the game's ``data.json`` and
    scores them. It pays what a ``KartEnv`` with ``frame_skip=1`` and the same arguments pays.

    The wrapper belongs below a frame skip: around the environment that ``stable_retro.make`` returns, or around
    wrappers that step it once per step.

    ``info`` keeps the entries of stable-retro, and gains those of ``KartEnv``: ``reward_terms``, ``episode_rewards``,
    ``ram``, ``race`` and ``done_rule``.

    Args:
        env: An environment that ``stable_retro.make`` returned, or a wrapper around one.
        rewards: See ``KartEnv``.
        scenario: The scenario file: a name in the game's folder, or a path that ends in ``.json``. None: no terms and
            no rules beside ``rewards``. By default the scenario of the environment.
        info: The data file: a name in the game's folder, or a path that ends in ``.json``. By default that of the
            environment.
        reward_weights, reward_transform, reward_scale: See ``KartEnv``.

    Attributes:
        layout: The ``RamLayout`` of the data file.
        scoring: The ``Scoring``: terms and rules.
        score: The ``EpisodeScore`` of the current episode.

    Raises:
        KartRewardsError: The environment is not one of stable-retro's, or an argument is not valid. ``step`` raises it
            if a term or rule fails, or if the environment has stepped more than one frame.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        rewards: Any = (),
        *,
        scenario: str | Path | None = "",
        info: str | Path = "",
        reward_weights: Mapping[str, float] | None = None,
        reward_transform: str = "scale",
        reward_scale: float = 0.01,
    ) -> None:
        options: dict[str, Any] = {
            "rewards": rewards,
            "scenario": scenario,
            "info": info,
            "reward_weights": reward_weights,
            "reward_transform": reward_transform,
            "reward_scale": reward_scale,
        }
        _check_is_of_stable_retro(env)
        RecordConstructorArgs.__init__(self, **options)
        EzPickle.__init__(self, env, **options)
        gym.Wrapper.__init__(self, env)
        core: Any = env.unwrapped
        _, _, own_scenario, own_info, *_ = core._ezpickle_args
        self.layout = RamLayout.from_file(_path(core, info, own_info or "data"))
        path = None if scenario is None else _path(core, scenario, own_scenario or "scenario")
        self.scoring = load_scoring(path, rewards, reward_weights, self.layout.names)
        self.scoring.check(self.layout)
        self.score: EpisodeScore | None = None
        self._transform = make_transform(reward_transform, reward_scale)
        self._data = stable_retro.data.GameData()  # reading with the environment's own would change its ``info``
        self._bind()
        self._read = self.layout.reader(self._data)
        self._scripts = scripts_of((*self.scoring.terms, *self.scoring.done))
        if self._scripts:
            self._use_lua(self._scripts)
        self._asks = any(script.inputs for script in (*self.scoring.terms, *self.scoring.done))
        # The action of each frame of this step. Unpickling makes a second wrapper that shares the list.
        self._actions = actions = list[Any]()
        plain_step = core.step

        def step_and_note(action: Any) -> Any:
            actions.append(action)
            return plain_step(action)

        core.step = step_and_note

    def _use_lua(self, scripts: LuaScripts) -> None:
        """Adds the values of the Lua functions to the snapshots. The environment itself calls them."""
        core: Any = self.unwrapped
        _, _, scenario, info, *_ = core._ezpickle_args
        own = _path(core, "", scenario or "scenario"), _path(core, "", info or "data")
        if (scripts.scenario.resolve(), Path(self.layout.source).resolve()) != tuple(path.resolve() for path in own):
            raise KartRewardsError(
                f"{scripts.scenario}: uses Lua, which the wrapped environment must run from its own files: make it "
                "with this scenario and these variables, stable_retro.make(…, scenario=…, info=…)"
            )
        data = core.data
        try:
            core.lua = LuaEngine(scripts, own[1], lambda each: core.em.configure_data(each))
            core.lua.lend(data)
        finally:
            self._bind()
        self._read = with_values(
            self._read, self.layout.names, scripts, lambda: (data.current_reward(), data.is_done())
        )

    def _lua_errors(self) -> AbstractContextManager[None]:
        return lua_errors(self._scripts, self.layout.names) if self._scripts else nullcontext()

    def _bind(self) -> None:
        """Lets both game data read the emulator's memory, which some cores move when they load a state."""
        core: Any = self.unwrapped
        for data in (self._data, core.data):  # the emulator itself keeps a pointer to the last one
            core.em.configure_data(data)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode. The terms and rules are called with its first frame, but it is not paid."""
        if not hasattr(self.unwrapped, "em"):
            raise gym.error.ClosedEnvironmentError("the environment is closed: make a new one")
        with self._lua_errors():
            observation, info = self.env.reset(seed=seed, options=options)
        self._bind()
        core: Any = self.unwrapped
        self.score = EpisodeScore(self.scoring, self._read(), self._transform, core.em.get_screen_rate())
        return observation, {**info, **self.score.info()}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Steps the environment by one frame, and scores the frame.

        Returns:
            The observation, the reward (float), whether a done rule terminated the episode, whether the environment or
            a done rule truncated it, and ``info``; see the class.
        """
        if self.score is None:
            raise gym.error.ResetNeeded("Call reset before step")
        self._actions.clear()
        with self._lua_errors():
            observation, _, _, truncated, info = self.env.step(action)
        if len(self._actions) != 1:
            raise KartRewardsError(
                f"a step of the wrapped environment ran {len(self._actions)} frames; "
                "ScriptRewards must score each one: "
                "put ScriptRewards around the environment of stable_retro.make, and the frame skip around ScriptRewards"
            )
        self.score.start_step()
        reward = self.score(self._read(), *self._input())
        truncated = bool(truncated) or self.score.truncated
        return observation, reward, self.score.terminated, truncated, {**info, **self.score.info()}

    def _input(self) -> tuple[frozenset[str], Any]:
        """Returns the buttons of the latest frame, of the first player, and its action. It takes time."""
        if not self._asks:
            return frozenset(), None
        core: Any = self.unwrapped
        [action] = self._actions
        held, *_ = core.action_to_array(action)
        names = zip(core.buttons, held, strict=True)
        return frozenset(name for name, is_held in names if is_held and name), plain_action(action)

    def close(self) -> None:
        """Closes the environment."""
        self.score = None
        vars(self.unwrapped).pop("step", None)
        super().close()


def _check_is_of_stable_retro(env: Any) -> None:
    inner = env
    while isinstance(inner, gym.Wrapper):
        if isinstance(inner, ScriptRewards):
            raise KartRewardsError("a ScriptRewards inside another one has no effect: pass all terms and rules to one")
        inner = inner.env
    core = env.unwrapped if isinstance(env, gym.Env) else env
    if isinstance(core, stable_retro.RetroEnv):
        if not hasattr(core, "em"):
            raise KartRewardsError("ScriptRewards needs an open environment, and this one is closed: make another")
        return
    remedy = "wrap an environment of stable_retro.make"
    if isinstance(core, KartEnv):
        remedy = "it scores with terms and rules itself: pass them to make_env or KartEnv as rewards=…"
    elif isinstance(core, gym.vector.VectorEnv):
        remedy = "wrap each of its environments, inside the functions that make them"
    raise KartRewardsError(f"ScriptRewards needs an environment of stable-retro, not {env!r}: {remedy}")


def _path(core: Any, name: str | Path, own: str) -> Path:
    """Returns the path of a JSON file of the game.

    Args:
        core: The environment.
        name: The name of the file in the game's folder, or its path. Empty: that of the environment.
        own: The name or the path that the environment was made with.
    """
    if not name and own.endswith(".json"):
        return Path(own)
    file = f"{str(name or own).removesuffix('.json')}.json"
    found = stable_retro.data.get_file_path(core.gamename, file, core._ezpickle_args[7])
    if not (found or str(name).endswith(".json")):
        raise KartRewardsError(f"{core.gamename}: stable-retro finds no {file} of this game")
    return Path(found or name)
