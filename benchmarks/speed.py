"""Measures the speed of the environment and of the trainer. Compares with the bare core and with Stable-Baselines3.

    python benchmarks/speed.py

It takes under ten minutes on two cores without other load. Measurements that are compared run in turns, so that a
change of the machine's load has the same effect on each. The parts, which ``--parts`` selects:

* ``environment``: one environment and the bare core, frames/s: turns of half a second on the same emulator, in five
  processes one after the other, because the effect of the caches differs between processes. The step of
  ``stable_retro.make``, and a stack of Gymnasium's wrappers on it, are measured in other processes against the same
  bare core. The limit is a core that draws nothing.
* ``vector``: the vector environment as the trainer uses it, and the same number of bare cores in parallel, frames/s:
  turns of at least half a second, with 8 and with 16 environments. The same environments from ``gymnasium.make_vec``,
  which return the ``info`` of each step, and in Gymnasium's AsyncVectorEnv.
* ``training``: this project's trainer and Stable-Baselines3's PPO, steps/s, with the same ROM, observation, actions,
  batch and epochs. Stable-Baselines3 runs on stable-retro's environment with Gymnasium's wrappers, and on this
  project's environment. All use max pooling, because Gymnasium's MaxAndSkipObservation does. The trainer runs with
  ``--precision auto``, and with float32, which Stable-Baselines3 uses; and once without max pooling, with the parts of
  a step's time, and the memory. Each run is a new process, in turns.
* ``updates``: PPO's update alone on this machine's device, samples/s: float32, bfloat16, compiled bfloat16.
* ``growth`` (not by default): steps/s and memory of 1 to 32 environments on one core and on two; what limits the
  training, and a prediction for more cores from it. See docs/scaling.md.

Printed are medians over the turns. A ratio is the median of the turns' ratios. The exit code is 1 if a goal is missed.
``benchmarks/side_by_side.py`` measures several trainings at the same time. Both need the ``dev`` extra.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
GAME = ROOT / "integrations" / "HomebrewKart-Snes"
FRAME_SKIP = 4
MINIBATCHES, EPOCHS = 4, 4

GOALS = {
    "environment": 1.15,
    "vector of 8": 1.0,
    "vector of 16": 1.0,
    "training": 2.7,
    "training in float32": 2.2,
}
PARTS = ("environment", "vector", "training", "updates", "growth")


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        turns: Turns per process of ``environment``. ``vector`` has three times as many.
        repeats: Runs of each training.
        updates: Updates that are measured per run of a training. One more, the first, is not.
        processes: Processes of ``environment``.
        steps: Agent steps per turn.
        vectors: Numbers of environments of ``vector``.
        num_envs: Environments of a training.
        num_steps: Steps of a rollout in each of them.
        trainings: Kinds of training; without the last ones if less than four.
        growth: Numbers of environments of ``growth``.
        compiled: Whether ``updates`` compiles a network, which takes half a minute.
    """

    turns: int = 3
    repeats: int = 3
    updates: int = 4
    processes: int = 5
    steps: int = 300
    vectors: tuple[int, ...] = (8, 16)
    num_envs: int = 16
    num_steps: int = 64
    trainings: int = 4
    growth: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    compiled: bool = True


SMOKE = Sizes(1, 1, 1, 1, 4, (2,), num_envs=1, num_steps=16, trainings=2, growth=(2,), compiled=False)


def steering(step: int) -> int:
    """Returns the steering of a step in all measurements: 30 frames left, then 60 frames straight on."""
    return -1 if step * FRAME_SKIP // 30 % 3 == 0 else 0


@contextmanager
def endless_scenario() -> Iterator[str]:
    """Yields a scenario with the reference rewards and without done rules, so that the drive never ends."""
    with tempfile.TemporaryDirectory() as folder:
        scenario = Path(folder) / "endless.json"
        scenario.write_text('{"kart_rewards": {"done": []}}')
        yield str(scenario)


def bare_stepper(emulator: Any, drawn: int = FRAME_SKIP) -> Callable[[int], None]:
    """Returns a function that runs the frames of one agent step on the bare core.

    Args:
        emulator: stable-retro's emulator.
        drawn: How many frames of the step, its last ones, the core draws. If it can't leave frames undrawn, all.
    """
    masks = {0: np.zeros(12, np.uint8), -1: np.zeros(12, np.uint8)}
    masks[0][0] = masks[-1][0] = masks[-1][6] = 1  # B; B and LEFT

    def step(number: int) -> None:
        emulator.set_button_mask(masks[steering(number)], 0)
        for _ in range(FRAME_SKIP):
            emulator.step()

    def step_undrawn(number: int) -> None:
        emulator.set_button_mask(masks[steering(number)], 0)
        for frame in range(FRAME_SKIP):
            drawing.frame(emulator.step, frame >= FRAME_SKIP - drawn)

    if drawn == FRAME_SKIP:
        return step
    from kart_rewards.env.core import Drawing

    emulator.set_state(emulator.get_state())  # as ``Drawing`` expects it: no one has used the byte since
    drawing = Drawing(emulator, "Snes")
    if drawing.obstacle:
        print(f"all frames are drawn, because {drawing.obstacle}", file=sys.stderr)
    return step_undrawn


# Each function from here to ``network`` runs in its own process. It prints one line per turn, with the rate of each
# column.


def print_turns(emulator: Any, ways: list[Callable[[int], object]], turns: int, steps: int) -> None:
    """Measures the frames/s of several ways to step one emulator, in turns, each from the same state."""
    start = emulator.get_state()
    for turn in range(turns + 1):
        rates = []
        for step in ways:
            step(0)  # a change of turns between environments is not measured
            emulator.set_state(start)
            began = time.perf_counter()
            for number in range(steps):
                step(number)
            rates.append(steps * FRAME_SKIP / (time.perf_counter() - began))
        if turn:  # the first turn is a warm-up
            print(*rates)


def environment(turns: int, steps: int) -> None:
    """Measures the bare core, ``KartEnv`` and the core that draws less. See ``main`` for the columns.

    It prints the parts of a step's time to standard error.
    """
    from kart_rewards import KartEnv, ObservationConfig

    with endless_scenario() as scenario:
        make = partial(KartEnv, "HomebrewKart-Snes", scenario=scenario)
        env, pooled, drawn = make(), make(observation=ObservationConfig(max_pool=True)), make(draw_all=True)
    envs = env, pooled, drawn
    for each in envs:
        each.reset(seed=1)

    def stepper(env: Any) -> Callable[[int], object]:
        return lambda number: env.step([steering(number)])

    ways = [bare_stepper(env.em), *map(stepper, envs), bare_stepper(env.em, 1), bare_stepper(env.em, 0)]
    print_turns(env.em, ways, turns, steps)
    taken = (turns + 1) * (steps + 1)
    assert all(each.race and each.race.frames == taken * FRAME_SKIP for each in envs)
    for part, seconds in env.step_seconds.items():
        print(f"{part} {seconds / taken * 1e6:.0f} us per step", file=sys.stderr)


def stock(turns: int, steps: int) -> None:
    """Measures the bare core, the step of ``stable_retro.make``, ``ScriptRewards`` and the stack of wrappers on it."""
    from kart_rewards import ScriptRewards

    stack = wrapped_retro_env()
    stack.reset(seed=1)
    env: Any = stack.unwrapped
    plain_step = env.step
    scripted = ScriptRewards(env)  # it replaces ``env.step``, to count the frames
    scripted.reset(seed=1)
    actions = {0: 0, -1: 1}  # of the stack: the throttle alone, and left
    masks = {0: np.zeros(12, np.int8), -1: np.zeros(12, np.int8)}
    masks[0][0] = masks[-1][0] = masks[-1][6] = 1

    def step(number: int) -> None:
        for _ in range(FRAME_SKIP):
            plain_step(masks[steering(number)])

    def step_scripted(number: int) -> None:
        for _ in range(FRAME_SKIP):
            scripted.step(masks[steering(number)])

    def step_stack(number: int) -> None:
        stack.step(actions[steering(number)])

    print_turns(env.em, [bare_stepper(env.em), step, step_scripted, step_stack], turns, steps)


def play(envs: Any, steps: int) -> None:
    """Plays some steps in an ``EnvGroups`` as the trainer does, with an agent that needs no time."""
    action = np.zeros((envs.num_envs, 1), np.float32)
    for step in range(steps):
        action[:] = steering(step)
        for group, part in enumerate(envs.groups):
            if step:
                envs.recv(group)
            envs.send(group, action[part])
    for group in range(len(envs.groups)):
        envs.recv(group)


@contextmanager
def training_envs(num_envs: int) -> Iterator[tuple[Any, list[Callable[[], Any]]]]:
    """Yields the trainer's environments, and functions that make each of them."""
    from kart_rewards.training.episodes import make_training_env, make_training_envs
    from kart_rewards.training.ranks import Ranks

    limit = 10**6
    options = {"game": GAME.name}
    with (
        endless_scenario() as options["scenario"],
        closing(make_training_envs(options, num_envs, limit, Ranks())) as envs,
    ):
        envs.reset(seed=1)
        yield envs, [partial(make_training_env, options, i, limit) for i in range(num_envs)]


def vector(num_envs: int, turns: int, steps: int) -> None:
    """Measures the frames/s of several environments at once. See ``show_vector`` for the columns."""
    import gymnasium as gym

    with training_envs(num_envs) as (envs, makers), endless_scenario() as scenario:
        async_envs, bare = gym.vector.AsyncVectorEnv(makers), BareCores(num_envs)
        made = gym.make_vec(f"kart_rewards:{GAME.name}", num_envs, scenario=scenario, max_episode_steps=10**6)
        action = np.zeros((num_envs, 1), np.float32)

        def play_together(vector_env: Any, steps: int) -> None:
            for step in range(steps):
                action[:] = steering(step)
                vector_env.step(action)

        for vector_env in (made, async_envs):
            vector_env.reset(seed=1)
        ways: list[Callable[[int], None]] = [bare.play, partial(play, envs)]
        ways += [partial(play_together, made), partial(play_together, async_envs), partial(bare.play, drawn=0)]
        steps = max(2 * steps // num_envs, 1)
        for way in ways:
            way(steps)  # a warm-up
        for _ in range(turns):
            rates = []
            for way in ways:
                began = time.perf_counter()
                way(steps)
                rates.append(num_envs * steps * FRAME_SKIP / (time.perf_counter() - began))
            print(*rates)
        made.close()
        async_envs.close()
        bare.close()


class BareCores:
    """Bare cores, each in its own process."""

    def __init__(self, count: int) -> None:
        pipes = [multiprocessing.Pipe() for _ in range(count)]
        self.connections = [here for here, _ in pipes]
        self.processes = [multiprocessing.Process(target=self._run, args=(there,), daemon=True) for _, there in pipes]
        for process in self.processes:
            process.start()

    @staticmethod
    def _run(connection: Any) -> None:
        import gzip

        import stable_retro

        emulator = stable_retro.RetroEmulator(str(GAME / "rom.sfc"))
        start = gzip.decompress((GAME / "Level1.state").read_bytes())
        steppers = {drawn: bare_stepper(emulator, drawn) for drawn in (FRAME_SKIP, 0)}
        while asked := connection.recv():
            steps, drawn = asked
            emulator.set_state(start)
            for number in range(steps):
                steppers[drawn](number)
            connection.send(True)

    def play(self, steps: int, drawn: int = FRAME_SKIP) -> None:
        """Runs some agent steps on all cores in parallel. Each core draws the last frames of a step."""
        for connection in self.connections:
            connection.send((steps, drawn))
        for connection in self.connections:
            connection.recv()

    def close(self) -> None:
        """Ends the processes."""
        for connection, process in zip(self.connections, self.processes, strict=True):
            connection.send(None)
            process.join()


def stable_baselines(ours: int, num_envs: int, num_steps: int, updates: int) -> None:
    """Measures the agent steps/s of Stable-Baselines3's PPO, without the first rollout and update."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import SubprocVecEnv

    class Clock(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            times.append(time.perf_counter())

    times: list[float] = []
    envs = SubprocVecEnv([kart_env if ours else wrapped_retro_env for _ in range(num_envs)])
    rollout = num_envs * num_steps
    options = {"n_steps": num_steps, "batch_size": rollout // MINIBATCHES, "n_epochs": EPOCHS}
    model = PPO("CnnPolicy", envs, **options, device="cpu", seed=1)
    model.learn((updates + 1) * rollout, callback=Clock())
    ended = time.perf_counter()  # after the last update
    envs.close()
    print(updates * rollout / (ended - times[1]))


def kart_env() -> Any:
    """Makes this project's environment."""
    from kart_rewards import ObservationConfig, make_env

    return make_env("HomebrewKart-Snes", action_mode="driving", observation=ObservationConfig(max_pool=True))


def wrapped_retro_env() -> Any:
    """Makes an environment with the same observation from stable-retro and Gymnasium's wrappers."""
    import gymnasium as gym
    import stable_retro
    from gymnasium import wrappers

    class Driving(gym.ActionWrapper):
        def __init__(self, env: gym.Env) -> None:
            super().__init__(env)
            self.action_space = gym.spaces.Discrete(4)
            self.masks = np.zeros((4, 12), np.int8)
            self.masks[:, 0] = self.masks[1, 6] = self.masks[2, 7] = self.masks[3, 10] = 1

        def action(self, action: int) -> np.ndarray:
            return self.masks[action]

    def crop(screen: np.ndarray) -> np.ndarray:
        return screen[32:112]

    stable_retro.data.Integrations.add_custom_path(str(GAME.parent))
    env = stable_retro.make(GAME.name, inttype=stable_retro.data.Integrations.ALL, render_mode="rgb_array")
    road = gym.spaces.Box(0, 255, (80, 256, 3), np.uint8)
    env = wrappers.TransformObservation(wrappers.MaxAndSkipObservation(Driving(env), FRAME_SKIP), crop, road)
    env = wrappers.ResizeObservation(wrappers.GrayscaleObservation(env), (84, 84))
    return wrappers.TimeLimit(wrappers.FrameStackObservation(env, 4), 3000)


def training(precision: str, max_pool: int, num_envs: int, num_steps: int, updates: int) -> None:
    """Measures the agent steps/s of the trainer, without the first rollout and update.

    It prints to standard error what the trainer has chosen, the parts of a step's time, and the memory.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    script = ROOT / "ppo_continuous_single_file.py"
    with tempfile.TemporaryDirectory() as runs:
        options = {
            "--num-envs": num_envs,
            "--num-steps": num_steps,
            "--num-minibatches": MINIBATCHES,
            "--update-epochs": EPOCHS,
            "--total-timesteps": (updates + 1) * num_envs * num_steps,
            "--eval-interval": 0,
            "--checkpoint-interval": 0,
            "--action-mode": "driving",
            "--precision": precision,
        }
        given = [str(part) for option in options.items() for part in option] + ["--max-pool"] * max_pool
        command = [sys.executable, str(script), "--env-id", GAME.name, "--device", "cpu", "--runs-path", runs, *given]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        for line in done.stdout.splitlines():
            if line.startswith(("measured ", f"{GAME.name} on ")):
                print(f"chosen: {line.partition(', logging to ')[0]}", file=sys.stderr)
        log = EventAccumulator(runs + "/" + next(Path(runs).iterdir()).name, size_guidance={"scalars": 0})
        log.Reload()
        for tag in log.Tags()["scalars"]:
            if tag.startswith(("time/", "memory/")):
                values = [event.value for event in log.Scalars(tag)][1:]
                print(f"{tag} {statistics.median(values):.3f} {values[0]:.3f} {values[-1]:.3f}", file=sys.stderr)
        first, last = (log.Scalars("charts/SPS")[i] for i in (0, -1))
        print((last.step - first.step) / (last.wall_time - first.wall_time))


def updates(num_envs: int, num_steps: int, turns: int, compiled: int) -> None:
    """Measures the samples/s of PPO's update with the trainer's defaults, over all epochs, on a GPU if there is one."""
    learners = [learner("float32", num_envs, num_steps), learner("bfloat16", num_envs, num_steps)]
    if compiled:
        learners.append(learner("bfloat16", num_envs, num_steps, compiled=True))
    for turn in range(turns + 1):
        rates = [learn() for learn in learners]
        if turn:  # the first update is a warm-up
            print(*rates)


def learner(
    precision: str, num_envs: int, num_steps: int, threads: int = 0, compiled: bool = False
) -> Callable[[], float]:
    """Returns a function that updates an agent on a random rollout and returns the samples/s.

    Args:
        precision: What the network computes with.
        num_envs: Environments of the rollout.
        num_steps: Steps of the rollout in each of them.
        threads: Threads that compute an update. 0: as many as the trainer has.
        compiled: Whether the network is compiled.
    """
    import gymnasium as gym
    import torch

    import ppo_continuous_single_file as ppo
    from kart_rewards.training.devices import choose_device, compile_encoder
    from kart_rewards.training.ranks import Ranks

    torch.set_num_threads(1)  # as in training: see kart_rewards/training/threads.py
    options, ranks = ppo.PPOOptions(num_envs=num_envs, num_steps=num_steps), Ranks()
    device = choose_device("auto", ranks)
    images, actions = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), gym.spaces.Box(-1, 1, (1,), np.float32)
    agent = ppo.Agent(images, actions, getattr(torch, precision)).to(device)
    agent.threads = threads or (ranks.processors() if device.type == "cpu" else 1)
    if compiled:
        example = torch.zeros(options.minibatch_size, 4, 84, 84, dtype=torch.uint8, device=device)
        compile_encoder(agent, example)
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-6, eps=1e-5, fused=True)
    shape = (options.num_steps, options.num_envs)
    numbers = [torch.randn(shape, device=device) for _ in range(6)]
    log_probs, rewards, dones, values, advantages, returns = numbers
    rollout = ppo.Rollout(
        observations=torch.randint(0, 255, (*shape, 4, 84, 84), dtype=torch.uint8, device=device),
        actions=torch.randn(*shape, 1, device=device),
        log_probs=log_probs,
        rewards=rewards,
        dones=dones,
        values=values,
        next_observation=torch.zeros(1),
        next_done=torch.zeros(1),
    )

    def learn() -> float:
        began = time.perf_counter()
        ppo.update(agent, optimizer, rollout, advantages, returns, options, ranks)
        return options.batch_size * options.update_epochs / (time.perf_counter() - began)

    return learn


def growth(num_envs: int, cores: int, turns: int, steps: int) -> None:
    """Measures the trainer's environments on some cores.

    It prints steps/s, the processor time of the process that drives them (microseconds per step), and the memory that
    they add (MiB).
    """
    import psutil

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    with training_envs(num_envs) as (envs, _):
        steps = max(2 * cores * steps // num_envs, 2)
        play(envs, steps)  # a warm-up
        children = psutil.Process().children()
        for _ in range(turns):
            began, used = time.perf_counter(), time.process_time()
            play(envs, steps)
            took, driving = time.perf_counter() - began, time.process_time() - used
            memory = sum(child.memory_full_info().uss for child in children) / 2**20
            print(num_envs * steps / took, 1e6 * driving / (num_envs * steps), memory)


def network(num_envs: int, num_steps: int, turns: int) -> None:
    """Measures what the agent computes, in the faster precision of a processor.

    It prints the samples/s of an update with one thread and with two, and the answers/s to 8, 32 and 128 observations
    at once, with one thread as in training.
    """
    import gymnasium as gym
    import torch

    import ppo_continuous_single_file as ppo

    learns = {precision: learner(precision, num_envs, num_steps, 1) for precision in ("float32", "bfloat16")}
    for learn in learns.values():
        learn()  # a warm-up
    precision = max(learns, key=lambda precision: learns[precision]())
    learners = [learns[precision], learner(precision, num_envs, num_steps, 2)]
    images, actions = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), gym.spaces.Box(-1, 1, (1,), np.float32)
    agent = ppo.Agent(images, actions, getattr(torch, precision))
    for turn in range(turns + 1):
        rates = [learn() for learn in learners]
        for batch in BATCHES.values():
            observations = torch.zeros(batch, 4, 84, 84, dtype=torch.uint8)
            began = time.perf_counter()
            with torch.no_grad():
                for _ in range(512 // batch):
                    agent.get_action_and_value(observations)
            rates.append(512 // batch * batch / (time.perf_counter() - began))
        if turn:  # the first one is a warm-up
            print(*rates)


FUNCTIONS: list[Callable[..., None]] = [
    *(environment, stock, vector, stable_baselines, training, updates, growth, network),
]


# ----------------------------------------------------------------------------------------------------- the main process
def call(name: str, *args: int | str) -> tuple[list[list[float]], str]:
    """Calls one of the functions above in a new process. Returns the printed rates, and its standard error."""
    command = [sys.executable, __file__, "--call", name, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    return [[float(rate) for rate in line.split()] for line in done.stdout.splitlines()], done.stderr


def show(columns: list[str], turns: list[list[float]]) -> list[float]:
    """Prints the median and the spread of each column. Returns the ratio of each one to the first.

    Only the first turns may have the last columns.
    """
    ratios = []
    for i, column in enumerate(columns):
        having = [turn for turn in turns if i < len(turn)]
        rates = [turn[i] for turn in having]
        ratios.append(statistics.median(turn[i] / turn[0] for turn in having))
        spread = f"({min(rates):,.0f} to {max(rates):,.0f})"
        print(f"  {column:58s} {statistics.median(rates):7,.0f} /s  {spread:18s}  ratio {ratios[-1]:.3f}", flush=True)
    return ratios


def medians(turns: list[list[float]]) -> list[float]:
    """Returns the median of each column."""
    return [statistics.median(column) for column in zip(*turns, strict=True)]


def show_environment(sizes: Sizes) -> dict[str, float]:
    """Measures and prints the part ``environment``. Returns goal -> ratio, as do the following functions."""
    print("one environment, frames/s")
    answers = [call("environment", sizes.turns, sizes.steps) for _ in range(sizes.processes)]
    columns = ["bare core", "KartEnv", "KartEnv with max_pool", "KartEnv with draw_all"]
    columns += ["core that draws one frame of four", "core that draws nothing: the limit"]
    ratios = show(columns, [turn for turns, _ in answers for turn in turns])
    print(f"  KartEnv has {ratios[1] / ratios[5]:.3f} of the limit")
    print(f"  parts in the last process: {', '.join(answers[-1][1].splitlines())}")
    answers = [call("stock", sizes.turns, sizes.steps) for _ in range(min(sizes.processes, 2))]
    columns = ["bare core", "stable_retro.make", "the same with ScriptRewards"]
    columns.append("stable_retro.make with frame skip, crop, grey, resize, stack")
    show(columns, [turn for turns, _ in answers for turn in turns])
    return {"environment": ratios[1]}


def show_vector(sizes: Sizes, rates: dict[str, float]) -> dict[str, float]:
    """Measures and prints the part ``vector``. Keeps the rate of cores that draw nothing."""
    result = {}
    for num_envs in sizes.vectors:
        print(f"{num_envs} parallel environments, frames/s")
        turns, _ = call("vector", num_envs, 3 * sizes.turns, sizes.steps)
        columns = ["bare cores", "the trainer's environments", "the same from gymnasium.make_vec"]
        columns += ["the same in Gymnasium's AsyncVectorEnv", "cores that draw nothing: the limit"]
        ratios = show(columns, turns)
        made = statistics.median(turn[2] / turn[1] for turn in turns)
        print(f"  those from gymnasium.make_vec have {made:.3f} of the rate of the trainer's")
        print(f"  the trainer's environments have {ratios[1] / ratios[4]:.3f} of the limit")
        result[f"vector of {num_envs}"] = ratios[1]
        rates["undrawn frames"] = medians(turns)[4]
    return result


def show_training(sizes: Sizes, rates: dict[str, float]) -> dict[str, float]:
    """Measures and prints the part ``training``. Keeps the trainer's rate without max pooling."""
    print("training, agent steps/s")
    size = (sizes.num_envs, sizes.num_steps, sizes.updates)
    runs: dict[str, tuple[Any, ...]] = {
        "Stable-Baselines3 on stable-retro": ("stable_baselines", 0, *size),
        "this trainer": ("training", "auto", 1, *size),
        "this trainer in float32": ("training", "float32", 1, *size),
        "this trainer, without max pooling": ("training", "auto", 0, *size),
    }
    columns = list(runs)[: sizes.trainings]
    turns = []
    for _ in range(sizes.repeats):
        answers = [call(*runs[column]) for column in columns]
        turns.append([rate[0][0] for rate, _ in answers])
    rates["training"] = statistics.median(turn[-1] for turn in turns)
    once, _ = call("stable_baselines", 1, *size)
    turns[0].append(once[0][0])
    ratios = show([*columns, "Stable-Baselines3 on KartEnv, once"], turns)
    lines = [line for line in answers[-1][1].splitlines() if line.startswith(("chosen: ", "time/", "memory/"))]
    print(f"  {columns[-1]}, the last run: median, first and last value")
    print("".join(f"    {line}\n" for line in lines), end="")
    return {"training": ratios[1], "training in float32": ratios[2]}


def show_updates(sizes: Sizes, rates: dict[str, float]) -> None:
    """Measures and prints the part ``updates``. Keeps the rate of the faster precision."""
    print("updates alone, samples/s")
    turns, _ = call("updates", sizes.num_envs, sizes.num_steps, sizes.repeats, int(sizes.compiled))
    show(["float32", "bfloat16", "bfloat16, compiled"][: len(turns[0])], turns)
    rates["updates"] = max(medians(turns)[:2])


def show_limit(rates: dict[str, float]) -> None:
    """Prints how fast a training would be that has only the emulation without drawing, and the update."""
    seconds = FRAME_SKIP / rates["undrawn frames"] + EPOCHS / rates["updates"]
    print("the limit of training: a step consists of four undrawn frames of as many bare cores, and its update alone")
    share = rates["training"] * seconds
    print(f"  {1 / seconds:,.0f} steps/s; this trainer, without max pooling, has {share:.3f} of it")


BATCHES = {2: 8, 16: 32, 64: 128}
"""Cores -> observations that the agent answers at once: half of 16 environments, then half of four per core."""


def show_growth(sizes: Sizes) -> None:
    """Measures and prints the part ``growth``, and a prediction for more cores."""
    if not hasattr(os, "sched_setaffinity"):
        print("growth is not measured: this platform can't restrict a process to some cores")
        return
    print("the trainer's environments on one core and on two: steps/s, memory that they add")
    have = len(os.sched_getaffinity(0))
    by_cores: dict[int, list[list[float]]] = {}
    for num_envs in sizes.growth:
        text = f"  {num_envs:2d} environments"
        for cores in range(1, min(have, 2) + 1):
            turns, _ = call("growth", num_envs, cores, sizes.turns, sizes.steps)
            measured = medians(turns)
            by_cores.setdefault(cores, []).append(measured)
            steps, driving, memory = measured
            text += f"   {cores} core(s): {steps:6,.0f} /s, {memory:4.0f} MiB, {driving:3.0f} us driving"
        print(text, flush=True)
    cores = max(by_cores)
    steps, driving, _ = by_cores[cores][-1]  # with several environments per core
    measured = medians(call("network", sizes.num_envs, sizes.num_steps, sizes.turns)[0])
    one_thread, two_threads, *answers = measured
    answers_of = dict(zip(BATCHES.values(), answers, strict=True))
    listed = ", ".join(f"{rate:,.0f} /s at {batch} at once" for batch, rate in answers_of.items())
    print(f"the update: {one_thread:,.0f} samples/s with one thread, {two_threads:,.0f} with two")
    print(f"the agent's answers with one thread: {listed}")
    print("predicted steps/s: environments alone, rollouts, updates, training")
    for more, batch in BATCHES.items():
        predicted = predict(more, steps / cores, driving / 1e6, answers_of[batch], one_thread, two_threads)
        print(f"  {more:2d} cores, {2 * batch} environments: " + ", ".join(f"{rate:,.0f}" for rate in predicted))


def predict(
    cores: int, steps_a_core: float, driving: float, answers: float, one_thread: float, two_threads: float
) -> tuple[float, float, float, float]:
    """Predicts steps/s on a number of cores: of the environments alone, of rollouts, of updates, and of training.

    Emulators share nothing, so their work is divided by the number of cores. One thread drives them and answers; it
    takes its time from one of the cores, and it limits the rollouts once there are many. The part of an update that
    threads share is calculated from one thread and two (Amdahl's law); a minibatch of 256 has 16 parts at most.

    Args:
        cores: The number of cores.
        steps_a_core: Steps/s of the environments on one core, and of what drives them.
        driving: Seconds per step that driving the environments takes.
        answers: Answers/s of the agent.
        one_thread: Samples/s of an update with one thread.
        two_threads: The same with two.
    """
    environments = min(cores * steps_a_core, 1 / driving)
    rollouts = min(cores / (1 / steps_a_core + 1 / answers), 1 / (driving + 1 / answers))
    shared = min(max(2 * (1 - one_thread / two_threads), 0.0), 1.0)
    updates = one_thread / (1 - shared + shared / min(cores, 16)) / EPOCHS
    return environments, rollouts, updates, 1 / (1 / rollouts + 1 / updates)


def goals_met(ratios: dict[str, float]) -> bool:
    """Prints each ratio and whether it meets its goal. Returns whether all do."""
    for name, ratio in ratios.items():
        print(f"{name:20s} {ratio:.3f}  (goal: at least {GOALS[name]}, {'met' if ratio >= GOALS[name] else 'MISSED'})")
    return all(ratio >= GOALS[name] for name, ratio in ratios.items())


def main() -> int:
    """Runs the parts, and compares them with the goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="what to measure; by default all except growth")
    parser.add_argument("--turns", type=int, default=Sizes.turns, help="turns per process; vector: three times as many")
    parser.add_argument("--repeats", type=int, default=Sizes.repeats, help="runs of each training")
    parser.add_argument("--updates", type=int, default=Sizes.updates, help="measured updates per run of a training")
    parser.add_argument("--smoke", action="store_true", help="run each part once, as short as possible, without goals")
    parser.add_argument("--call", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.call:
        function = {function.__name__: function for function in FUNCTIONS}[args.call[0]]
        function(*(int(word) if word.isdigit() else word for word in args.call[1:]))
        return 0

    sizes = SMOKE if args.smoke else replace(Sizes(), turns=args.turns, repeats=args.repeats, updates=args.updates)
    parts = args.parts or (PARTS if args.smoke else PARTS[:-1])
    began = time.perf_counter()
    print(f"the load of this machine before: {os.getloadavg()[0]:.1f}")
    ratios: dict[str, float] = {}
    rates: dict[str, float] = {}
    if "environment" in parts:
        ratios |= show_environment(sizes)
    if "vector" in parts:
        ratios |= show_vector(sizes, rates)
    if "training" in parts:
        ratios |= show_training(sizes, rates)
    if "updates" in parts:
        show_updates(sizes, rates)
    if {"vector", "training", "updates"} <= set(parts):
        show_limit(rates)
    if "growth" in parts:
        show_growth(sizes)
    print(f"measured in {(time.perf_counter() - began) / 60:.1f} minutes")
    return 0 if args.smoke or goals_met(ratios) else 1


if __name__ == "__main__":
    sys.exit(main())
