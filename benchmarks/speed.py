"""Measures the speed of the environment and of the trainer. Compares with the bare core and with Stable-Baselines3.

    python benchmarks/speed.py

All measurements are in one run. Measurements that are compared run in turns, so that a change of the machine's load has
the same effect on each:

(a) One environment and the bare core, frames/s: turns of half a second on the same emulator, in five processes one
    after the other, because the effect of the caches differs between processes. First with ``--max-pool``, then with
    the defaults, to which the goal refers.
(b) The vector environment as the trainer uses it, and the same number of bare cores in parallel, frames/s: turns of at
    least half a second, with 8 and with 16 environments. Gymnasium's AsyncVectorEnv is measured, too.
(c) This project's trainer and Stable-Baselines3's PPO, steps/s, with the same ROM, observation, actions, batch and
    epochs. Stable-Baselines3 runs on stable-retro's environment with Gymnasium's wrappers, and on this project's
    environment. All use max pooling, because Gymnasium's MaxAndSkipObservation does. The trainer runs with
    ``--precision auto``, and with float32, which Stable-Baselines3 uses; and once without max pooling. Each run is a
    new process, in turns.
(d) The parts of a training step's time, and its memory, without max pooling.
(e) Updates on this machine's device, samples/s: float32, bfloat16, compiled bfloat16.

It prints the median over the turns. A ratio is the median of the turns' ratios. The exit code is 1 if a goal is missed.
It needs the ``dev`` extra.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
GAME = ROOT / "integrations" / "HomebrewKart-Snes"
FRAME_SKIP = 4
STEPS_A_TURN = 300
NUM_ENVS, NUM_STEPS, MINIBATCHES, EPOCHS = 16, 64, 4, 4

GOALS = {"environment": 0.95, "vector of 8": 0.85, "vector of 16": 0.85, "training": 2.2}


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


# Each of these functions runs in its own process. It prints one line per turn, with the rate of each column.


def environment(max_pool: int, turns: int) -> None:
    """Measures the frames/s of the bare core (it sets the buttons and steps), of a ``KartEnv``, and with ``draw_all``.

    It prints the parts of a step's time to standard error.
    """
    from kart_rewards import KartEnv, ObservationConfig

    with endless_scenario() as scenario:
        observation = ObservationConfig(max_pool=bool(max_pool))
        env = KartEnv("HomebrewKart-Snes", scenario=scenario, observation=observation)
    env.reset(seed=1)
    bare = bare_stepper(env.em)
    start = env.em.get_state()

    def frames_per_second(step: Callable[[int], object]) -> float:
        env.em.set_state(start)
        began = time.perf_counter()
        for number in range(STEPS_A_TURN):
            step(number)
        return STEPS_A_TURN * FRAME_SKIP / (time.perf_counter() - began)

    def step(number: int) -> None:
        env.step([steering(number)])

    reason, seconds = env.draws_all, env.step_seconds
    spare = dict(seconds)
    for turn in range(turns + 1):
        rates = [frames_per_second(bare)]
        for env.draws_all, env.step_seconds in ((reason, seconds), ("the benchmark wants it", spare)):
            rates.append(frames_per_second(step))
        if turn:  # the first turn is a warm-up
            print(*rates)
    steps = (turns + 1) * STEPS_A_TURN
    assert env.race and env.race.frames == 2 * steps * FRAME_SKIP
    for part, used in seconds.items():
        print(f"{part} {used / steps * 1e6:.0f} us per step", file=sys.stderr)


def bare_stepper(emulator: Any) -> Callable[[int], None]:
    """Returns a function that runs the frames of one agent step on the bare core."""
    masks = {0: np.zeros(12, np.uint8), -1: np.zeros(12, np.uint8)}
    masks[0][0] = masks[-1][0] = masks[-1][6] = 1  # B; B and LEFT

    def step(number: int) -> None:
        emulator.set_button_mask(masks[steering(number)], 0)
        for _ in range(FRAME_SKIP):
            emulator.step()

    return step


def vector(num_envs: int, turns: int) -> None:
    """Measures the frames/s of parallel bare cores, the trainer's environments, and the same in AsyncVectorEnv."""
    import gymnasium as gym

    from kart_rewards.training.episodes import make_training_env, make_training_envs
    from kart_rewards.training.ranks import Ranks

    limit = 10**6
    options = {"game": GAME.name}
    with (
        endless_scenario() as options["scenario"],
        closing(make_training_envs(options, num_envs, limit, Ranks())) as envs,
    ):
        makers = [partial(make_training_env, options, i, limit) for i in range(num_envs)]
        async_envs = gym.vector.AsyncVectorEnv(makers)
        bare = BareCores(num_envs)
        envs.reset(seed=1)
        async_envs.reset(seed=1)
        action = np.zeros((num_envs, 1), np.float32)

        def play_groups(steps: int) -> None:
            for step in range(steps):
                action[:] = steering(step)
                for group, part in enumerate(envs.groups):
                    if step:
                        envs.recv(group)
                    envs.send(group, action[part])
            for group in range(len(envs.groups)):
                envs.recv(group)

        def play_async(steps: int) -> None:
            for step in range(steps):
                action[:] = steering(step)
                async_envs.step(action)

        ways: list[Callable[[int], None]] = [bare.play, play_groups, play_async]
        steps = 2 * STEPS_A_TURN // num_envs
        for way in ways:
            way(steps)  # a warm-up
        for _ in range(turns):
            rates = []
            for way in ways:
                began = time.perf_counter()
                way(steps)
                rates.append(num_envs * steps * FRAME_SKIP / (time.perf_counter() - began))
            print(*rates)
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
        step = bare_stepper(emulator)
        while steps := connection.recv():
            emulator.set_state(start)
            for number in range(steps):
                step(number)
            connection.send(True)

    def play(self, steps: int) -> None:
        """Runs some agent steps on all cores in parallel."""
        for connection in self.connections:
            connection.send(steps)
        for connection in self.connections:
            connection.recv()

    def close(self) -> None:
        """Ends the processes."""
        for connection, process in zip(self.connections, self.processes, strict=True):
            connection.send(0)
            process.join()


def stable_baselines(ours: int, steps: int) -> None:
    """Measures the agent steps/s of Stable-Baselines3's PPO, without the first rollout and update."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import SubprocVecEnv

    class Clock(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            times.append((self.num_timesteps, time.perf_counter()))

    times: list[tuple[int, float]] = []
    envs = SubprocVecEnv([_kart_env if ours else _wrapped_retro_env for _ in range(NUM_ENVS)])
    batch = NUM_ENVS * NUM_STEPS // MINIBATCHES
    model = PPO("CnnPolicy", envs, n_steps=NUM_STEPS, batch_size=batch, n_epochs=EPOCHS, device="cpu", seed=1)
    model.learn(steps + NUM_ENVS * NUM_STEPS, callback=Clock())
    ended = time.perf_counter()  # after the last update
    envs.close()
    print(steps / (ended - times[1][1]))


def _kart_env() -> Any:
    from kart_rewards import ObservationConfig, make_env

    return make_env("HomebrewKart-Snes", action_mode="driving", observation=ObservationConfig(max_pool=True))


def _wrapped_retro_env() -> Any:
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

    stable_retro.data.Integrations.add_custom_path(str(GAME.parent))
    env = stable_retro.make(GAME.name, inttype=stable_retro.data.Integrations.ALL, render_mode="rgb_array")
    road = gym.spaces.Box(0, 255, (80, 256, 3), np.uint8)
    env = wrappers.TransformObservation(wrappers.MaxAndSkipObservation(Driving(env), FRAME_SKIP), _crop, road)
    env = wrappers.ResizeObservation(wrappers.GrayscaleObservation(env), (84, 84))
    return wrappers.TimeLimit(wrappers.FrameStackObservation(env, 4), 3000)


def _crop(screen: np.ndarray) -> np.ndarray:
    return screen[32:112]


def training(precision: str, max_pool: int, steps: int) -> None:
    """Measures the agent steps/s of the trainer, without the first rollout and update. Prints (d) to standard error."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    script = ROOT / "ppo_continuous_single_file.py"
    batch = NUM_ENVS * NUM_STEPS
    with tempfile.TemporaryDirectory() as runs:
        options = {
            "--num-envs": NUM_ENVS,
            "--num-steps": NUM_STEPS,
            "--num-minibatches": MINIBATCHES,
            "--update-epochs": EPOCHS,
            "--total-timesteps": steps + batch,
            "--eval-interval": 0,
            "--checkpoint-interval": 0,
            "--action-mode": "driving",
            "--precision": precision,
        }
        given = [str(part) for option in options.items() for part in option] + ["--max-pool"] * max_pool
        command = [sys.executable, str(script), "--env-id", GAME.name, "--device", "cpu", "--runs-path", runs, *given]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        log = EventAccumulator(runs + "/" + next(Path(runs).iterdir()).name, size_guidance={"scalars": 0})
        log.Reload()
        tags = [tag for tag in log.Tags()["scalars"] if tag.startswith(("time/", "memory/"))]
        for tag in tags:
            values = [event.value for event in log.Scalars(tag)][1:]
            print(f"{tag} {statistics.median(values):.3f} {values[0]:.3f} {values[-1]:.3f}", file=sys.stderr)
        first, last = (log.Scalars("charts/SPS")[i] for i in (0, -1))
        print((last.step - first.step) / (last.wall_time - first.wall_time))


def updates(bfloat16: int, compiled: int) -> None:
    """Measures the samples/s of PPO's update with the trainer's defaults, over all epochs, on a GPU if there is one."""
    import gymnasium as gym
    import torch

    import ppo_continuous_single_file as ppo
    from kart_rewards.training.devices import choose_device, compile_encoder
    from kart_rewards.training.ranks import Ranks

    options, ranks = ppo.PPOOptions(), Ranks()
    device = choose_device("auto", ranks)
    images, actions = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), gym.spaces.Box(-1, 1, (1,), np.float32)
    agent = ppo.Agent(images, actions, torch.bfloat16 if bfloat16 else torch.float32).to(device)
    if compiled:
        compile_encoder(agent, torch.zeros(1, 4, 84, 84, dtype=torch.uint8, device=device))
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
    rates = []
    for _ in range(4):  # the first update is a warm-up
        began = time.perf_counter()
        ppo.update(agent, optimizer, rollout, advantages, returns, options, ranks)
        rates.append(options.batch_size * options.update_epochs / (time.perf_counter() - began))
    print(statistics.median(rates[1:]))


def call(name: str, *args: int | str) -> tuple[list[list[float]], str]:
    """Calls one of the functions above in a new process. Returns the printed rates, and its standard error."""
    command = [sys.executable, __file__, "--only", name, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    return [[float(rate) for rate in line.split()] for line in done.stdout.splitlines()], done.stderr


def show(columns: list[str], turns: list[list[float]], against: int = 0) -> list[float]:
    """Prints the median and the spread of each column. Returns the ratio of each one to column ``against``."""
    ratios = []
    for i, column in enumerate(columns):
        rates = [turn[i] for turn in turns]
        ratios.append(statistics.median(turn[i] / turn[against] for turn in turns))
        spread = f"({min(rates):,.0f} to {max(rates):,.0f})"
        print(f"  {column:46s} {statistics.median(rates):7,.0f} /s  {spread:18s}  ratio {ratios[-1]:.3f}", flush=True)
    return ratios


def main() -> int:
    """Runs all measurements, and compares them with the goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=9, help="turns per process of (a); (b) has three times as many")
    parser.add_argument("--repeats", type=int, default=3, help="runs of (c) and (e)")
    parser.add_argument("--updates", type=int, default=8, help="updates per run of (c)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="call one function: vector 8 5")
    args = parser.parse_args()
    if args.only:
        functions: list[Callable[..., None]] = [environment, vector, stable_baselines, training, updates]
        function = {function.__name__: function for function in functions}[args.only[0]]
        function(*(int(word) if word.isdigit() else word for word in args.only[1:]))
        return 0

    ratios: dict[str, float] = {}
    print("(a) one environment, frames/s")
    for max_pool, column in ((1, "KartEnv with --max-pool"), (0, "KartEnv")):
        answers = [call("environment", max_pool, args.turns) for _ in range(5)]
        columns = ["bare core", column, f"{column}, every frame drawn"]
        ratio = show(columns, [turn for turns, _ in answers for turn in turns])[1]
        print(f"    parts in the last process: {', '.join(answers[-1][1].splitlines())}")
    ratios["environment"] = ratio  # with the defaults
    for num_envs in (8, 16):
        print(f"(b) {num_envs} parallel environments, frames/s")
        turns, _ = call("vector", num_envs, 3 * args.turns)
        columns = ["bare cores", "the trainer's environments", "the same in Gymnasium's AsyncVectorEnv"]
        ratios[f"vector of {num_envs}"] = show(columns, turns)[1]
    print("(c) training, agent steps/s")
    steps = args.updates * NUM_ENVS * NUM_STEPS
    runs = {
        "Stable-Baselines3 on stable-retro": ("stable_baselines", 0, steps),
        "Stable-Baselines3 on KartEnv": ("stable_baselines", 1, steps),
        "this trainer in float32": ("training", "float32", 1, steps),
        "this trainer": ("training", "auto", 1, steps),
        "this trainer, without max pooling": ("training", "auto", 0, steps),
    }
    turns = []
    for _ in range(args.repeats):
        answers = [call(*run) for run in runs.values()]
        turns.append([rates[0][0] for rates, _ in answers])
    ratios["training"] = dict(zip(runs, show(list(runs), turns), strict=True))["this trainer"]
    print("(d) parts of a training step: median, first and last value")
    print("".join(f"  {line}\n" for line in answers[-1][1].splitlines() if line.startswith(("time/", "memory/"))))
    print("(e) updates, samples/s")
    columns = ["float32", "bfloat16", "bfloat16, compiled"]
    show(columns, [[call("updates", *kind)[0][0][0] for kind in ((0, 0), (1, 0), (1, 1))] for _ in range(args.repeats)])
    for name, ratio in ratios.items():
        verdict = "met" if ratio >= GOALS[name] else "MISSED"
        print(f"{name:15s} {ratio:.3f}  (goal: at least {GOALS[name]}, {verdict})")
    return 0 if all(ratios[name] >= goal for name, goal in GOALS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
