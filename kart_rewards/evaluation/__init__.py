"""Complete episodes of agents and drivers, and statistics of them.

* ``play_episode``, ``EpisodeResult``, ``Policy``, ``PolicyMaker``, ``OnStep`` - one episode
* ``Contestant``, ``DriverPolicy``, ``drivers``, ``left_out`` - who is compared
* ``Evaluator`` - many episodes in worker processes
* ``summarise``, ``across_seeds``, ``evaluation_score`` - statistics
* ``table``, ``seeds_table``, ``lost_table``, ``write_json`` - statistics as text and as JSON
* ``TrainedAgent``, ``load_agent``, ``evaluate_agents``, ``EvalOptions`` - trained agents
"""

from kart_rewards.evaluation.agents import EvalOptions, TrainedAgent, evaluate_agents, load_agent
from kart_rewards.evaluation.contestants import Contestant, DriverPolicy, drivers, left_out
from kart_rewards.evaluation.episodes import EpisodeResult, OnStep, Policy, PolicyMaker, play_episode
from kart_rewards.evaluation.evaluator import Evaluator
from kart_rewards.evaluation.statistics import (
    Metrics,
    SeedStatistics,
    Summary,
    across_seeds,
    evaluation_score,
    summarise,
)
from kart_rewards.evaluation.tables import lost_table, seeds_table, table, write_json

__all__ = [
    "Contestant",
    "DriverPolicy",
    "EpisodeResult",
    "EvalOptions",
    "Evaluator",
    "Metrics",
    "OnStep",
    "Policy",
    "PolicyMaker",
    "SeedStatistics",
    "Summary",
    "TrainedAgent",
    "across_seeds",
    "drivers",
    "evaluate_agents",
    "evaluation_score",
    "left_out",
    "load_agent",
    "lost_table",
    "play_episode",
    "seeds_table",
    "summarise",
    "table",
    "write_json",
]
