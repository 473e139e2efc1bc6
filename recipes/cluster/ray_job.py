"""A run over the nodes of a Ray cluster, begun again from its last checkpoint when nodes are lost:

    ray job submit --working-dir . -- python recipes/cluster/ray_job.py \\
        --run /shared/runs/first --nodes 2 --gpus 8 recipes/tulu3-llama3.1-8b.yaml

One task a node holds its GPUs and runs node.sh beside this file; Ray places the tasks and says when
a node is gone. Ray ends tasks without SIGTERM, so that what remains is the last checkpoint:
--save-steps says how much is done again. The run folder lies on a disk that all nodes share.
Run here with Ray 2.60 on one machine in the place of two; not on a cluster.
"""

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

NODE = Path(__file__).with_name("node.sh")
AGAIN = 143


@ray.remote(max_retries=0)
def address() -> tuple[str, int]:
    """Of the node that this runs on, with a port that is free there."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


@ray.remote(max_retries=0)
def node(settings: dict[str, str], arguments: list[str]) -> int:
    """The exit code of node.sh."""
    return subprocess.run(["bash", NODE, *arguments], env={**os.environ, **settings}).returncode


def attempt(run: str, nodes: int, gpus: int, pack: str, arguments: list[str]) -> int:
    """The largest exit code of the nodes; ``AGAIN`` where a node was lost."""
    share = {"CPU": 1.0, **({"GPU": float(gpus)} if gpus else {})}
    group = placement_group([share] * nodes, strategy=pack)
    ray.get(group.ready())

    def place(task, index: int):
        where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        return task.options(num_cpus=1, num_gpus=gpus, scheduling_strategy=where)

    try:
        head, port = ray.get(place(address, 0).remote())
        about = {"NRT_RUN": run, "NRT_NODES": str(nodes), "NRT_HEAD": head, "NRT_PORT": str(port)}
        about["NRT_GPUS"] = os.environ.get("NRT_GPUS", str(gpus))
        tasks = [
            place(node, index).remote({**about, "NRT_NODE_RANK": str(index)}, arguments)
            for index in range(nodes)
        ]
        waiting, codes = tasks, []
        while waiting:  # one by one: a lost node ends the attempt at once
            ready, waiting = ray.wait(waiting)
            codes += ray.get(ready)
        return max(codes)
    except RayError as error:
        print(f"begins again: {error}", file=sys.stderr, flush=True)
        return AGAIN
    finally:
        remove_placement_group(group)  # ends what still runs in it


def main() -> int:
    """Attempts until the run has ended, or failed without a new checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=8, help="of a node")
    parser.add_argument("--attempts", type=int, default=100)
    parser.add_argument("--pack", default="STRICT_SPREAD", help="Ray's placement strategy")
    own, arguments = parser.parse_known_args()
    ray.init()
    code = AGAIN
    for _ in range(own.attempts):
        code = attempt(own.run, own.nodes, own.gpus, own.pack, arguments)
        if code != AGAIN:
            break
    return code


if __name__ == "__main__":
    sys.exit(main())
