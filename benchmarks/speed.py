"""How fast the environment and the trainer are, against the bare emulator core and against Stable-Baselines3.

    python benchmarks/speed.py

Everything is measured in one run, in fresh processes that take turns, so that a change in the machine's load meets all;
printed are medians and ratios:

(a) one environment over the bare core, frames/s;
(b) the vector environment over as many bare cores at once, frames/s, with 8 and with 16;
(c) training over Stable-Baselines3's PPO, steps/s, with the same ROM, observation, actions, batch and epochs: on
    stable-retro's environment with Gymnasium's wrappers, as its users have it today, and on this project's environment;
    ours with ``--precision auto`` and with float32, as theirs is;
(d) where a training step's time goes, and how much memory it takes;
(e) updates, samples/s, on this machine's device: float32, bfloat16, bfloat16 compiled.

Exit code 1 means that a goal was missed. Needs the ``dev`` extra.
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
GAME = ROOT / "integrations" / "HomebrewKart-Snes"
FRAME_SKIP = 4
WARM_UP_STEPS = 30
NUM_ENVS, NUM_STEPS, MINIBATCHES, EPOCHS = 8, 128, 4, 4

GOALS = {"environment": 0.95, "vector of 8": 0.85, "vector of 16": 0.85, "training": 2.2}


def steering(step: int) -> int:
    """The drive of every measurement: full throttle, 30 frames left, 60 straight."""
    return -1 if step * FRAME_SKIP // 30 % 3 == 0 else 0


@contextmanager
def endless_scenario() -> Iterator[str]:
    """The reference's rewards without its done rules: the drive goes on at a wall, as the bare core's does."""
    with tempfile.TemporaryDirectory() as folder:
        scenario = Path(folder) / "endless.json"
        scenario.write_text('{"kart_rewards": {"done": []}}')
        yield str(scenario)


# Each of these runs in a process of its own and returns a rate.


def bare_core(steps: int) -> float:
    """Frames/s of the core alone: set buttons, step, nothing else."""
    step = _bare_stepper()
    began = 0.0
    for number in range(-WARM_UP_STEPS, steps):
        if number == 0:
            began = time.perf_counter()
        step(number)
    return steps * FRAME_SKIP / (time.perf_counter() - began)


def _bare_stepper() -> Callable[[int], None]:
    import gzip

    import stable_retro

    emulator = stable_retro.RetroEmulator(str(GAME / "rom.sfc"))
    emulator.set_state(gzip.decompress((GAME / "Level1.state").read_bytes()))
    masks = {0: np.zeros(12, np.uint8), -1: np.zeros(12, np.uint8)}
    masks[0][0] = masks[-1][0] = masks[-1][6] = 1  # B; B and LEFT

    def step(number: int) -> None:
        for _ in range(FRAME_SKIP):
            emulator.set_button_mask(masks[steering(number)], 0)
            emulator.step()

    return step


def one_environment(steps: int) -> float:
    """Frames/s of one ``KartEnv`` with its defaults."""
    from kart_rewards import KartEnv

    with endless_scenario() as scenario:
        env = KartEnv("HomebrewKart-Snes", scenario=scenario)
    env.reset(seed=1)
    began = 0.0
    for step in range(-WARM_UP_STEPS, steps):
        if step == 0:
            began = time.perf_counter()
        env.step([steering(step)])
    assert env.race and env.race.frames == (WARM_UP_STEPS + steps) * FRAME_SKIP
    return steps * FRAME_SKIP / (time.perf_counter() - began)


def vector(num_envs: int, steps: int) -> float:
    """Frames/s of the trainer's vector environment, all together."""
    import ppo_continuous_single_file as ppo

    args = ppo.Args()
    args.env.env_id, args.env.max_episode_steps, args.ppo.num_envs = "HomebrewKart-Snes", 10**6, num_envs
    with endless_scenario() as args.env.scenario, ppo.environments(args, ppo.Ranks()) as envs:
        envs.reset(seed=1)
        began = 0.0
        for step in range(-WARM_UP_STEPS, steps):
            if step == 0:
                began = time.perf_counter()
            envs.step(np.full((num_envs, 1), steering(step), np.float32))
        return num_envs * steps * FRAME_SKIP / (time.perf_counter() - began)


def bare_cores(count: int, seconds: int) -> float:
    """Frames/s of several bare cores, all together, while all of them run."""
    barrier, frames = multiprocessing.Barrier(count), multiprocessing.Queue()
    processes = [multiprocessing.Process(target=_run_bare, args=(barrier, frames, seconds)) for _ in range(count)]
    for process in processes:
        process.start()
    total = sum(frames.get() for _ in processes)
    for process in processes:
        process.join()
    return total / seconds


def _run_bare(barrier: Any, frames: Any, seconds: int) -> None:
    step = _bare_stepper()
    for number in range(WARM_UP_STEPS):
        step(number)
    barrier.wait()
    ends, number = time.perf_counter() + seconds, 0
    while time.perf_counter() < ends:
        step(number)
        number += 1
    frames.put(number * FRAME_SKIP)


def stable_baselines(ours: bool, steps: int) -> float:
    """Agent steps/s of Stable-Baselines3's PPO, after a first rollout and update."""
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
    ended = time.perf_counter()  # of the last update
    envs.close()
    return steps / (ended - times[1][1])


def _kart_env():
    from kart_rewards import make_env

    return make_env("HomebrewKart-Snes", action_mode="driving")


def _wrapped_retro_env():
    """What a user of stable-retro and Gymnasium writes for the same observation."""
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


def training(precision: str, steps: int) -> float:
    """Agent steps/s of the trainer, after a first rollout and update; prints (d) to standard error."""
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
        given = [str(part) for option in options.items() for part in option]
        command = [sys.executable, str(script), "--env-id", GAME.name, "--device", "cpu", "--runs-path", runs, *given]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        log = EventAccumulator(runs + "/" + next(Path(runs).iterdir()).name, size_guidance={"scalars": 0})
        log.Reload()
        tags = [tag for tag in log.Tags()["scalars"] if tag.startswith(("time/", "memory/"))]
        for tag in tags:
            values = [event.value for event in log.Scalars(tag)][1:]
            print(f"{tag} {statistics.median(values):.3f} {values[0]:.3f} {values[-1]:.3f}", file=sys.stderr)
        first, last = (log.Scalars("charts/SPS")[i] for i in (0, -1))
        return (last.step - first.step) / (last.wall_time - first.wall_time)


def updates(bfloat16: bool, compiled: bool) -> float:
    """Samples/s of PPO's update with the trainer's defaults, on a GPU if there is one; each epoch counts."""
    import gymnasium as gym
    import torch

    import ppo_continuous_single_file as ppo

    options, ranks = ppo.PPOOptions(), ppo.Ranks()
    device = ppo.choose_device("auto", ranks)
    images, actions = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8), gym.spaces.Box(-1, 1, (1,), np.float32)
    agent = ppo.Agent(images, actions, torch.bfloat16 if bfloat16 else torch.float32).to(device)
    if compiled:
        ppo.compile_encoder(agent, torch.zeros(1, 4, 84, 84, dtype=torch.uint8, device=device))
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-6)
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
    for _ in range(4):  # the first warms up
        began = time.perf_counter()
        ppo.update(agent, optimizer, rollout, advantages, returns, options, ranks)
        rates.append(options.batch_size * options.update_epochs / (time.perf_counter() - began))
    return statistics.median(rates[1:])


def measure(calls: list[str], repeats: int) -> tuple[dict[str, float], str]:
    """Returns the median rate of each call, made in turns, and what the last one wrote to standard error."""
    rates: dict[str, list[float]] = {call: [] for call in calls}
    said = ""
    for _ in range(repeats):
        for call in calls:
            done = subprocess.run(
                [sys.executable, __file__, "--only", call], capture_output=True, text=True, check=False
            )
            if done.returncode:
                sys.exit(f"{call} failed:\n{done.stderr}")
            rates[call].append(float(done.stdout.split()[-1]))
            said = done.stderr
    for call, values in rates.items():
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        print(f"  {call:34s} median {statistics.median(values):8,.0f} /s   ({spread})", flush=True)
    return {call: statistics.median(values) for call, values in rates.items()}, said


def main() -> int:
    """Measures, and compares with the goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each")
    parser.add_argument("--steps", type=int, default=600, help="steps a measurement of (a) and (b)")
    parser.add_argument("--updates", type=int, default=8, help="updates a measurement of (c)")
    parser.add_argument("--only", help="one measurement, such as bare_core(600)")
    args = parser.parse_args()
    if args.only:
        name, _, given = args.only.rstrip(")").partition("(")
        functions: list[Callable[..., float]] = [
            bare_core, one_environment, vector, bare_cores, stable_baselines, training, updates,
        ]  # fmt: skip
        call = {function.__name__: function for function in functions}[name]
        print(call(*(int(item) if item.isdigit() else item for item in given.split(","))))
        return 0

    ratios: dict[str, float] = {}
    steps, train_steps = args.steps, args.updates * NUM_ENVS * NUM_STEPS
    print("(a) one environment, frames/s")
    rates, _ = measure([f"bare_core({steps})", f"one_environment({steps})"], args.repeats)
    bare, wrapped = rates.values()
    ratios["environment"] = wrapped / bare
    for num_envs in (8, 16):
        print(f"(b) {num_envs} environments at once, frames/s")
        rates, _ = measure([f"bare_cores({num_envs},5)", f"vector({num_envs},{steps // 2})"], args.repeats)
        bare, wrapped = rates.values()
        ratios[f"vector of {num_envs}"] = wrapped / bare
    print("(c) training, agent steps/s; stable_baselines(0): stable-retro's environment, (1): this project's")
    calls = [f"stable_baselines({ours},{train_steps})" for ours in (0, 1)]
    calls += [f"training({precision},{train_steps})" for precision in ("float32", "auto")]
    rates, said = measure(calls, args.repeats)
    theirs, theirs_on_ours, ours_in_float32, ours = rates.values()
    ratios["training"] = ours / theirs
    print("(d) a training step: median; first; last")
    print("".join(f"  {line}\n" for line in said.splitlines() if line.startswith(("time/", "memory/"))))
    print("(e) updates, samples/s; updates(bfloat16, compiled)")
    measure(["updates(0,0)", "updates(1,0)", "updates(1,1)"], args.repeats)
    for name, ratio in ratios.items():
        verdict = "met" if ratio >= GOALS[name] else "MISSED"
        print(f"{name:15s} {ratio:.2f}  (goal: at least {GOALS[name]}, {verdict})")
    print(f"training over theirs on this project's environment: {ours / theirs_on_ours:.2f}")
    print(f"training in float32 over theirs: {ours_in_float32 / theirs:.2f}")
    return 0 if all(ratios[name] >= goal for name, goal in GOALS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
