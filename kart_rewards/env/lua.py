"""Lua rewards and done rules, run by stable-retro's own engine.

* ``LuaEngine`` - the engine of one environment
* ``with_values`` - adds the values of the Lua functions to snapshots
* ``lua_errors`` - reports errors of the scripts with file and line

stable-retro has one Lua engine per process. Its ``GameData.reset`` and ``GameData.load`` begin the engine anew, with
the scripts of that ``GameData``. So a process can have one environment whose scenario uses Lua.

On each emulated frame, stable-retro calls the function of ``done``, then those of ``reward`` and ``rewards``. Reset
loads the scripts again: nothing that they keep lasts longer than an episode. Scripts read the variables of
``data.json`` as ``data.NAME``, with stable-retro's own types.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import stable_retro

from kart_rewards.declared import LUA_DONE, LUA_REWARD
from kart_rewards.errors import KartRewardsError, did_you_mean
from kart_rewards.files import copy_of
from kart_rewards.lua import LuaFile, LuaScripts
from kart_rewards.ram import load_json, snapshot_class

_CHUNK = "kart_rewards_{}"
"""The name of a script in messages of Lua, which has no space for a path there."""

_FAILED = "Lua call failed: "

_SCRIPTS = "scripts.lua"
_REWARD = {"reward": {"script": "lua:kart_rewards_reward"}}
_DONE = {"done": {"script": "lua:kart_rewards_done"}}

_LIBRARY = """
local values, frames, failure = data, scenario, nil
local error, ipairs, loadstring, pcall = error, ipairs, loadstring, pcall
local setmetatable, tonumber, tostring, type = setmetatable, tonumber, tostring, type
local known, kept = {known}, {{}}

local function element(address)
  return values[address]
end

data = setmetatable({{}}, {{
  __index = function(_, name)
    if tonumber(name) then
      local inside, value = pcall(element, tonumber(name))
      if not inside then
        error("data[" .. tostring(name) .. "] lies outside memory", 2)
      end
      return value
    end
    if not (type(name) == "string" and (known[name] or kept[name])) then
      error("data has no variable " .. tostring(name), 2)
    end
    return values[name]
  end,
  __newindex = function(_, name, value)
    local kind = type(value)
    if type(name) ~= "string" or not (kind == "number" or kind == "boolean" or kind == "nil") then
      error("data." .. tostring(name) .. " can't hold a " .. kind, 2)
    end
    kept[name] = true
    values[name] = value
  end
}})

scenario = setmetatable({{}}, {{
  __index = function(_, name)
    if name ~= "frame" and name ~= "timestep" then
      error("scenario has no " .. tostring(name) .. ", only frame and timestep", 2)
    end
    return frames[name]
  end,
  __newindex = function() end
}})

local function call(name)
  local works, value = pcall(_G[name])
  if not works then
    error(tostring(value), 0)
  end
  local kind = type(value)
  if not (kind == "number" or kind == "boolean" or kind == "nil") then
    error(name .. " returned a " .. kind .. ", not a number or true or false", 0)
  end
  return value
end

local function run(script, name)
  local chunk, problem = loadstring(script, name)
  if chunk then
    local works, raised = pcall(chunk)
    problem = not works and tostring(raised)
  end
  failure = failure or problem
end
"""
"""What stands before the scripts. It replaces two tables of stable-retro, which let the process crash or return 0 where
a script is wrong. Scripts may have global variables with the names of Lua's own functions, such as ``type``."""

_CHECK = """
function kart_rewards_done()
  if failure then
    error(failure, 0)
  end
  for _, name in ipairs({functions}) do
    if _G[name] == nil then
      error("missing " .. name, 0)
    end
  end
end
kart_rewards_reward = kart_rewards_done
"""

_CALLS = """
function kart_rewards_done()
  return {done}
end

function kart_rewards_reward()
  local value = {reward}
  for _, name in ipairs({others}) do
    call(name)
  end
  return value
end
"""


class LuaEngine:
    """Runs the Lua scripts of a scenario for one environment.

    Args:
        scripts: The scripts. The engine keeps their text, even if the files change.
        data_path: The ``data.json``.
        bind: Binds a ``stable_retro.data.GameData`` to the emulator's memory.

    Attributes:
        scripts: The scripts.

    Raises:
        KartRewardsError: A script can't be loaded, or no script defines a function that the scenario names.
    """

    def __init__(self, scripts: LuaScripts, data_path: Path, bind: Callable[[Any], object]) -> None:
        self.scripts, self._bind = scripts, bind
        self._variables = list(load_json(data_path)["info"])
        self._data = stable_retro.data.GameData()
        bind(self._data)
        self._folder = TemporaryDirectory(prefix="kart_rewards-")  # stable-retro reads a script at each reset
        self._data_path, self._scenario = data_path, Path(self._folder.name) / "scenario.json"
        self._scenario.write_text(json.dumps({"scripts": [_SCRIPTS], **_REWARD, **_DONE}))
        named = (scripts.done, scripts.reward, *scripts.others)
        self._write(_CHECK.format(functions=_list(name for name in named if name)))
        self._data.load(str(copy_of(data_path)), str(self._scenario))
        with lua_errors(scripts, self._variables):
            self._data.update_ram()
        done, reward = (f"call({_text(name)})" if name else "0" for name in (scripts.done, scripts.reward))
        self._write(_CALLS.format(done=done, reward=reward, others=_list(scripts.others)))

    def _write(self, functions: str) -> None:
        """Writes the file that stable-retro loads."""
        known = "{" + "".join(f"[{_text(name)}] = true, " for name in self._variables) + "}"
        runs = [f'run({_text(_source(file))}, "={_CHUNK.format(i)}")' for i, file in enumerate(self.scripts.files)]
        text = "\n".join([_LIBRARY.format(known=known), *runs, functions])
        self._scenario.with_name(_SCRIPTS).write_text(text, encoding="ascii")

    def lend(self, data: Any) -> None:
        """Lets an environment of stable-retro call the functions itself, from its next reset on.

        The engine must be kept as long as the environment. Without this method, stable-retro takes a wrong value of a
        function for 0, or even crashes.

        Args:
            data: The environment's ``GameData``. Its scenario stays the same but for the functions.
        """
        content = {**load_json(self.scripts.scenario), "scripts": [_SCRIPTS]}
        if self.scripts.reward:
            content.pop("rewards", None)
            content |= _REWARD
        if self.scripts.done:
            content |= _DONE
        self._scenario.write_text(json.dumps(content))
        data.load(str(copy_of(self._data_path)), str(self._scenario))

    def begin_episode(self) -> None:
        """Loads the scripts again, as a reset of stable-retro does. The next call reads the episode's first frame."""
        self._bind(self._data)  # some cores move their memory when they load a state
        self._data.reset()

    def __call__(self) -> tuple[float, bool]:
        """Calls the functions for the latest frame of the emulator.

        Returns:
            The reward, and whether the episode is over. Without a function, 0 and False.

        Raises:
            KartRewardsError: A function failed, or returned something else than a number, true, false or nil.
        """
        with lua_errors(self.scripts, self._variables):
            self._data.update_ram()
        return self._data.current_reward(), self._data.is_done()


@contextmanager
def lua_errors(scripts: LuaScripts, variables: Iterable[str]) -> Iterator[None]:
    """Raises KartRewardsError, with file and line, if a call of stable-retro's in the body fails in Lua.

    Args:
        scripts: The scripts.
        variables: The names in ``data.json``.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not text.startswith(_FAILED):
            raise
        raise KartRewardsError(_message(text.removeprefix(_FAILED), scripts, list(variables))) from None


def _message(text: str, scripts: LuaScripts, variables: list[str]) -> str:
    """Returns the message about an error of Lua."""
    if text == "attempt to call a nil value":  # one of the two functions of _CALLS
        return (
            f"{scripts.scenario}: stable-retro has one Lua engine per process, and something else has begun it anew "
            "during the episode: reset the environment, and load no other data meanwhile"
        )
    if text == "C++ exception":
        text = f"a script reads a variable that data.json does not define; it defines {', '.join(variables)}"
    if found := re.fullmatch("missing (.*)", text):
        defined = [each.name for file in scripts.files for each in file.functions]
        if found[1] in defined:
            return (
                f"{scripts.where(found[1])}: {found[1]!r} is local, or inside a table or another function: "
                "stable-retro calls only global functions"
            )
        return (
            f"{scripts.scenario}: no script defines the function {found[1]!r}; they define "
            f"{', '.join(defined) or 'none'}.{did_you_mean(found[1], defined)}"
        )
    if found := re.search("data has no variable (.*)", text):
        text += f": data.json defines {', '.join(variables)}.{did_you_mean(found[1], variables)}"
    message = re.sub(_CHUNK.format(r"(\d+):(\d+)"), lambda at: f"{scripts.files[int(at[1])].path}:{at[2]}", text)
    return message if message != text else f"{scripts.scenario}: Lua failed: {text}"


def with_values(
    read: Callable[[], Any], names: Sequence[str], scripts: LuaScripts, values: Callable[[], tuple[float, bool]]
) -> Callable[[], Any]:
    """Returns a function that reads a frame's ``RamSnapshot`` with ``lua_reward`` and ``lua_done``.

    It has only those of both that a Lua function decides.

    Args:
        read: Reads a snapshot without them.
        names: The names of its variables.
        scripts: The scenario's scripts.
        values: Returns both values of the frame. It is called first, because a script may write to memory.

    Raises:
        KartRewardsError: A variable has one of the two names.
    """
    for name in {LUA_REWARD, LUA_DONE} & {*names}:
        raise KartRewardsError(
            f"{scripts.scenario}: data.json must not define {name!r}: the value of Lua has this name"
        )
    added = {LUA_REWARD: scripts.reward, LUA_DONE: scripts.done}
    snapshot = snapshot_class((*names, *(name for name, function in added.items() if function)))

    def read_with_values() -> Any:
        reward, done = values()
        return snapshot(*read(), *([reward] if scripts.reward else []), *([int(done)] if scripts.done else []))

    return read_with_values


def _source(file: LuaFile) -> bytes:
    """Returns the text for Lua's ``loadstring``. Only files may begin with a line such as ``#!/usr/bin/lua``."""
    return b"--" + file.content if file.content.startswith(b"#") else file.content


def _text(value: str | bytes) -> str:
    """Returns the Lua literal of a text."""
    raw = value.encode() if isinstance(value, str) else value
    return '"' + "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\{byte:03}" for byte in raw) + '"'


def _list(values: Iterable[str]) -> str:
    return "{" + ", ".join(map(_text, values)) + "}"
