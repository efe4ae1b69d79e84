"""Evaluation of an agent while it trains.

* ``TorchPolicy`` - makes the policy of an agent with PyTorch weights, in the process that plays
* ``EvaluationInTraining`` - plays deterministic episodes with the agent as it is
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from kart_rewards.drives import DRIVES_FOLDER
from kart_rewards.env import KartEnv
from kart_rewards.errors import counted
from kart_rewards.evaluation.agents import EvalOptions
from kart_rewards.evaluation.contestants import Contestant
from kart_rewards.evaluation.courses import draw_map, find_courses, reference_laps
from kart_rewards.evaluation.episodes import EpisodeResult, Policy, PolicyMaker
from kart_rewards.evaluation.evaluator import Evaluator
from kart_rewards.evaluation.model_card import CARD, installed_versions, model_card, rom_hash, weights_hash
from kart_rewards.evaluation.sectors import draw_time_lost, reference_lap, time_lost
from kart_rewards.evaluation.statistics import evaluation_score, mean_shares, summarise
from kart_rewards.files import atomic_write
from kart_rewards.integrations import find_game, state_labels
from kart_rewards.training.checkpoints import load_weights
from kart_rewards.training.log import Evaluation


class TorchPolicy:
    """Makes the policy of an agent where it plays: in a process that evaluates, or beside a window.

    Args:
        agent_class: Makes the agent from an observation space and an action space. The agent is a ``torch.nn.Module``
            with a method ``act(observations, deterministic)``. Its state dict must hold all its tensors. The class must
            be at the top of a module, because it is pickled.
        weights: The agent's state dict, on the CPU.
        deterministic: Take the most probable action. False: sample actions, as in training, by the episode's seed.
    """

    def __init__(self, agent_class: Callable[..., Any], weights: Mapping[str, Tensor], deterministic: bool) -> None:
        self.agent_class = agent_class
        self.weights = dict(weights)
        self.deterministic = deterministic
        self._agent: Any = None

    def __call__(self, env: KartEnv, state: str, seed: int) -> Policy:
        if self._agent is None:
            torch.set_num_threads(1)  # several such processes play at the same time
            with torch.device("meta"):  # without an initialisation of the weights, which are replaced
                self._agent = self.agent_class(env.observation_space, env.action_space)
            load_weights(self._agent, self.weights)
        torch.manual_seed(seed)
        return self._act

    @torch.no_grad()
    def _act(self, env: KartEnv, observation: np.ndarray) -> np.ndarray:
        action: Tensor = self._agent.act(torch.as_tensor(observation)[None], self.deterministic)[0]
        return action.numpy()


class EvaluationInTraining:
    """Plays deterministic episodes with the agent as it is: a ``kart_rewards.training.run.Evaluate``.

    Args:
        make_policy: Returns the policy maker of an agent: ``make_policy(weights, deterministic)``.
        env_options: ``KartEnv``'s arguments by name, ``game`` among them.
        courses: Start states.
        options: How often to evaluate, how many episodes, and whether to write videos.
        max_episode_frames: Emulated frames after which an episode is truncated.

    Raises:
        KartRewardsError: A file of the game that describes its courses or reference laps is damaged.
    """

    def __init__(
        self,
        make_policy: Callable[[dict[str, Tensor], bool], PolicyMaker],
        env_options: Mapping[str, Any],
        courses: Sequence[str],
        options: EvalOptions,
        max_episode_frames: int,
    ) -> None:
        self._make_policy = make_policy
        self._env_options = env_options
        self._courses = courses
        self._options = options
        self._max_episode_frames = max_episode_frames
        self._evaluator = Evaluator()
        game = find_game(env_options["game"], env_options.get("integrations"))
        self._maps, self._reference_laps = find_courses(game.folder), reference_laps(game.folder)
        self._references = {course: lap for course in courses if (lap := reference_lap(game.folder, course))}
        self._rom_hash = rom_hash(game)

    def is_due(self, updates: int, last: bool) -> bool:
        """Whether to evaluate after so many updates; ``last`` says that the run ends after them."""
        interval = self._options.eval_interval
        return interval > 0 and (last or updates % interval == 0)

    def __call__(self, agent: nn.Module, folder: Path, steps: int, stop: threading.Event) -> Evaluation | None:
        """Evaluates the agent; see ``kart_rewards.training.run.Evaluate``.

        Raises:
            KartRewardsError: See ``Evaluator.play``.
        """
        options = self._options
        weights = {name: value.detach().cpu() for name, value in agent.state_dict().items()}
        contestant = Contestant("agent", self._make_policy(weights, True), self._env_options, steps=steps)
        videos = folder / "videos" / str(steps) if options.capture_video else None
        results = []
        for result in self._evaluator.play(
            [contestant],
            self._courses,
            options.eval_episodes,
            options.eval_seed,
            max_episode_frames=self._max_episode_frames,
            video_folder=videos,
            drive_folder=folder / DRIVES_FOLDER / str(steps),
        ):
            results.append(result)
            if stop.is_set():
                return None
        summary, labels = summarise(results), state_labels(self._courses)
        metrics = {
            labels[course]: {name: value for name, value in by_policy["agent"].items() if value is not None}
            for course, by_policy in summary.items()
        }
        for course, lap in self._reference_laps.items():
            of_course = metrics.get(labels.get(course, ""), {})
            if "median_lap_time_seconds" in of_course:
                of_course["ratio_to_reference"] = of_course["median_lap_time_seconds"] / lap
        return Evaluation(
            metrics,
            evaluation_score(summary),
            sorted(videos.glob("[!.]*.mp4")) if videos else [],
            options.video_gif,
            mean_shares(results),
            {
                labels[course]: self._map(course, results, metrics[labels[course]], steps)
                for course in self._maps
                if any(result.state == course and result.marks and result.marks.path for result in results)
            },
            {
                labels[course]: draw_time_lost(
                    by_policy["agent"],
                    self._references[course],
                    f"{course}, {counted(options.eval_episodes, 'episode')} after {counted(steps, 'training step')}: "
                    "time lost per lap to the reference lap",
                    self._maps.get(course),
                )
                for course, by_policy in time_lost(results, self._references).items()
                if by_policy
            },
        )

    def _map(self, course: str, results: Sequence[EpisodeResult], metrics: Mapping[str, float], steps: int) -> bytes:
        """Returns a PNG of where the terms fired on a course."""
        episodes = [result.marks for result in results if result.state == course and result.marks]
        captions = {}
        for name in episodes[0].fired:
            count = counted(sum(len(episode.fired[name]) for episode in episodes), "step")
            paid, value = metrics[f"rewards_per_minute/{name}"], metrics[f"values_per_minute/{name}"]
            rate = f"paid {paid:+,.1f} a minute" if paid else f"not paid, {value:,.1f} a minute"
            captions[name] = f"in {count}, {rate}"
        title = (
            f"{course}, {counted(len(episodes), 'episode')} after {counted(steps, 'training step')}: where terms fired"
        )
        picture = draw_map(self._maps[course], episodes, title, captions)
        return bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1])

    def write_card(
        self,
        folder: Path,
        agent: Mapping[str, Any],
        evaluation: Evaluation,
        meanings: Mapping[str, str],
        command: Sequence[str],
    ) -> None:
        """Writes the model card of ``best.pt``; see ``kart_rewards.training.run.Evaluate``."""
        card = model_card(
            "best.pt",
            weights=weights_hash(agent["agent"]),
            steps=agent["steps"],
            options=agent["options"],
            scoring=agent["scoring"],
            rom=self._rom_hash,
            metrics=evaluation.metrics,
            meanings=meanings,
            command=command,
            versions=installed_versions(),
        )
        with atomic_write(folder / CARD) as file:
            file.write_text(card, encoding="utf-8", errors="replace")

    def close(self) -> None:
        """Ends the processes that evaluate."""
        self._evaluator.close()
